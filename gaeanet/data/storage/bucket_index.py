"""What this machine remembers of buckets and foreign tars: one file for each version of an index.

A run that has begun keeps to the file it began with, also in workers that it starts later, whatever another run
finds in the bucket meanwhile; therefore nothing here is ever written over.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from gaeanet.data.storage.local_copy import directory_of, locked
from gaeanet.runtime.files import expanded

_FORGOTTEN_AFTER = 30 * 24 * 3600.0
"""Seconds after its last use at which a version may go."""


def cache_directory() -> Path:
    """Where what can be made again is kept: `~/.cache/gaeanet`, or below `XDG_CACHE_HOME`."""
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "gaeanet"


class BucketIndexes:
    """The versions of one location's index.

    Args:
        location: The bucket's URL, or a directory.
        folder: Directory for the indexes of all locations.
        kind: What the files are called after their version.
    """

    def __init__(self, location: str, folder: Path, kind: str) -> None:
        self._folder, self._kind = directory_of(location, folder), kind

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Lets one process at a time look and write."""
        return locked(self._folder.with_name(f"{self._folder.name}.lock"))

    def path(self, version: str) -> Path:
        """Where a version lies, or will."""
        return self._folder.with_name(f"{self._folder.name}.{version}.{self._kind}")

    def newest(self) -> Path | None:
        """The version that was used last."""
        return max(self._all(), key=lambda path: path.stat().st_mtime_ns, default=None)

    def use(self, path: Path) -> None:
        """Notes that `path` is in use, and forgets versions that have not been for a month."""
        os.utime(path)
        for other in self._all():
            if time.time() - other.stat().st_mtime > _FORGOTTEN_AFTER:
                other.unlink(missing_ok=True)

    def _all(self) -> list[Path]:
        return list(self._folder.parent.glob(f"{self._folder.name}.*.{self._kind}"))
