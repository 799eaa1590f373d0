"""The shards that an epoch is at, whole on this machine while they are streamed from a bucket.

An epoch mixes a few shards at a time. Each is fetched once, in long ranges, by whichever process needs it first, read
by all, and thrown out when the epoch has moved on. Where that does not work (no room, a shard that does not agree with
its digest), samples are read from the bucket one by one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from gaeanet.data.local_copy import LocalCopy


class ShardWindow(LocalCopy):
    """The shards used last, in `root`, shared by all processes of this machine that read the same location.

    Args:
        most: How many are kept; a shard that is thrown out while others still read it is read from the bucket.
    """

    def __init__(self, root: Path, most: int) -> None:
        super().__init__(root, {}, None)
        self._most = most

    @staticmethod
    def has_room(folder: Path, needed: int) -> bool:
        """Whether `needed` bytes fit on the disk of `folder`, which is made."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return shutil.disk_usage(folder).free > needed
        except OSError:
            return False

    def use(self, name: str) -> None:
        """Notes that a shard is in use."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.root / name)

    def tidy(self) -> None:
        """Throws out all but the shards that were used last."""
        used = []
        for path in self.root.glob("*.tar"):
            with contextlib.suppress(FileNotFoundError):
                used.append((path.stat().st_mtime_ns, path))
        for _, path in sorted(used)[: -self._most]:
            path.unlink(missing_ok=True)
