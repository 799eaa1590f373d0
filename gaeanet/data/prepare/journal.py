"""Which images a stopped `gaeanet prepare` had written: a file with a record for each, beside what it writes.

So images are written straight to where they belong, without a draft and a renaming for each: what has no record is
written again, and what has one is compared with it.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


class Journal:
    """Records of a fixed length for all samples of a split; zeros where an image has not been written.

    Args:
        path: The file, which is made where it is not there.
        count: Samples of the split.
        length: Bytes of a record.

    Raises:
        OSError: The file cannot be read or written.
    """

    def __init__(self, path: Path, count: int, length: int) -> None:
        self._count, self._length = count, length
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def records(self) -> NDArray[np.uint8]:
        """All records as they are now, (count, length)."""
        data = os.pread(self._file, self._count * self._length, 0)
        return np.frombuffer(data.ljust(self._count * self._length, b"\0"), np.uint8).reshape(-1, self._length)

    def note(self, index: int, record: bytes) -> None:
        """Records that an image is written: not before it is. May be called from several processes."""
        if os.pwrite(self._file, record, index * self._length) != self._length:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # a disk that is full within a record
