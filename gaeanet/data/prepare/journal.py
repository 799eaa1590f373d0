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

    Attributes:
        records: uint8 (count, length).

    Raises:
        OSError: The file cannot be read or written.
    """

    def __init__(self, path: Path, count: int, length: int) -> None:
        self._length = length
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        data = os.pread(self._file, count * length, 0)
        self.records = np.zeros((count, length), np.uint8)
        self.records.reshape(-1)[: len(data)] = np.frombuffer(data, np.uint8)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    @property
    def written(self) -> NDArray[np.bool_]:
        """Which images have a record, (count,)."""
        return self.records.max(axis=1) > 0

    def note(self, index: int, record: bytes) -> None:
        """Records that an image is written: not before it is. May be called from several threads."""
        if os.pwrite(self._file, record, index * self._length) != self._length:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # a disk that is full within a record
        self.records[index] = np.frombuffer(record, np.uint8)
