"""A copy on this machine of what lies in a bucket, filled while it is read (`data.streaming: false`).

Files are written under another name and renamed when they are complete, so that any number of processes may share the
directory and any of them may be killed. Which objects are kept follows from their sizes and the limit alone (the
first ones that fit together), so that processes need not communicate, and nothing is thrown out that the next epoch
reads again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gaeanet.errors import RequestError, RunError, reason
from gaeanet.runtime.names import inside

Check = Callable[[bytes], str | None]
"""Returns what is wrong with an object's bytes, None if nothing is."""


def directory_of(location: str, folder: Path) -> Path:
    """Where the copy of `location` lies in `folder`: its own name for every source, readable and unambiguous."""
    readable = re.sub(r"[^A-Za-z0-9.-]+", "-", location).strip("-")[:60]
    return folder / f"{readable}-{hashlib.sha256(location.encode()).hexdigest()[:12]}"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file `path`; whoever else wants it waits. A killed process lets it go.

    Raises:
        RequestError: Its directory cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise RequestError(f"{path.parent}: cannot be written: {reason(error)}; set data.data_download_dir") from None
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class LocalCopy:
    """The copy in `root` of objects of known sizes.

    Args:
        sizes: Bytes of each object, by group; groups are kept in this order, and of each the first that fit.
        limit: Bytes that the copy may take; None for no limit.

    Raises:
        RequestError: The directory cannot be written, or the disk has less free space than the copy will take.
    """

    def __init__(self, root: Path, sizes: dict[str, NDArray[np.int64]], limit: int | None) -> None:
        self.root = root
        self._counts: dict[str, int] = {}
        planned, everything, left = 0, 0, limit
        for group, bytes_each in sizes.items():
            sums = np.cumsum(bytes_each)
            count = len(sums) if left is None else int(np.searchsorted(sums, left, side="right"))
            taken = int(sums[count - 1]) if count else 0
            left = None if left is None else left - taken
            planned, everything = planned + taken, everything + (int(sums[-1]) if len(sums) else 0)
            self._counts[group] = count
        try:
            self._partial.mkdir(parents=True, exist_ok=True)
            self._sweep()
            free = shutil.disk_usage(root).free
        except OSError as error:
            raise RequestError(f"data.data_download_dir: {root} cannot be written: {reason(error)}") from None
        if planned > free and planned - (present := _bytes_below(root)) > free:
            raise RequestError(
                f"data.data_download_dir: the local copy would take {(planned - present) / 1e9:.1f} GB more, "
                f"{root} has {free / 1e9:.1f} GB free: set data.cache_size to less, or data.streaming to true"
            )
        self.note = f"local copy in {root}: " + (
            "everything is kept once it has been read"
            if planned == everything
            else f"{planned / 1e9:.3g} of {everything / 1e9:.3g} GB fit in data.cache_size, the rest is read each time"
        )

    @property
    def _partial(self) -> Path:
        return self.root / ".partial"

    def keeps(self, group: str, index: int) -> bool:
        """Whether object `index` of `group` is to be kept."""
        return index < self._counts[group]

    def read(self, name: str, check: Check) -> bytes | None:
        """The kept bytes of an object; None where they are not there yet, or not right."""
        try:
            data = inside(self.root, name).read_bytes()
        except OSError:
            return None
        return data if check(data) is None else None

    def read_range(self, name: str, start: int, size: int) -> bytes | None:
        """Bytes of a kept object, unchecked; None where it is not there."""
        try:
            with open(inside(self.root, name), "rb") as file:
                return os.pread(file.fileno(), size, start)
        except OSError:
            return None

    def store(self, name: str, data: bytes) -> None:
        """Keeps an object; raises `RunError` where the disk does not take it."""
        with self.writing(name) as draft:
            draft.write_bytes(data)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A path to write an object to, which takes its name when the block ends well."""
        final = inside(self.root, name)
        tag = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        draft = self._partial / f"{tag}.{socket.gethostname()}.{os.getpid()}.{os.urandom(4).hex()}"
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            yield draft
            draft.replace(final)
        except OSError as error:
            raise RunError(
                f"{final}: cannot be kept: {reason(error)}; set data.cache_size, or data.streaming to true"
            ) from None
        finally:
            draft.unlink(missing_ok=True)

    def lock(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Lets one process at a time fetch the object `name`."""
        return locked(self._partial / f"{name.replace('/', '-')}.lock")

    def _sweep(self) -> None:
        """Removes what processes of this machine left when they were killed."""
        for path in self._partial.iterdir():
            match = re.fullmatch(r"[0-9a-f]{16}\.(.+)\.(\d+)\.[0-9a-f]{8}", path.name)
            if match and match[1] == socket.gethostname() and not _is_alive(int(match[2])):
                path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _bytes_below(root: Path) -> int:
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # what another process was writing has got its name
                total += (Path(folder) / name).stat().st_size
    return total


class ShardWindow(LocalCopy):
    """The shards used last, in `root`, shared by all processes of this machine that read the same location.

    Args:
        most: How many are kept; a shard that is thrown out while others still read it is read from the bucket.
    """

    def __init__(self, root: Path, most: int) -> None:
        super().__init__(root, {}, None)
        self._most = most

    @staticmethod
    def has_space(folder: Path, needed: int) -> bool:
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
