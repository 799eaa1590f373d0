"""Images at known offsets in files on this machine: one read each, in any order, from any process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gaeanet.data.sources.entries import MOST_BYTES
from gaeanet.data.sources.samples import Ranges, Samples
from gaeanet.data.sources.source import Source
from gaeanet.errors import RequestError, RunError, reason

_OPEN_FILES = 64


class RangeSource(Source):
    """The samples of a format whose images lie in one piece each.

    Args:
        units: The files of each split.
        samples: What they hold.

    Raises:
        RequestError: The samples contradict each other (see `Samples.catalog`), or one is larger than any image.
    """

    def __init__(self, location: str, units: dict[str, list[Path]], samples: Samples, notes: Sequence[str]) -> None:
        self.location, self.notes = location, list(notes)
        self._units = units
        self._files: dict[str, int] = {}
        self.catalog, self._order = samples.catalog(location, self.notes)
        for rows in samples.rows.values():
            rows.forget_names()
        self._ranges = {split: Ranges.of(samples.rows[split], self._order[split]) for split in units}
        for split, ranges in self._ranges.items():
            if (largest := int(ranges.sizes.argmax())) >= 0 and ranges.sizes[largest] > MOST_BYTES:
                raise RequestError(
                    f"{self.path(split, largest)}: too large: {int(ranges.sizes[largest]):,} bytes, at most "
                    f"{MOST_BYTES:,} are read"
                )

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_files": {}}  # a descriptor means nothing to another process

    @property
    def ranges(self) -> dict[str, Ranges]:
        """Where the samples of each split are."""
        return self._ranges

    def size(self, split: str, index: int) -> int:
        return int(self._ranges[split].sizes[index])

    def known_sizes(self, split: str) -> NDArray[np.int64]:
        return self._ranges[split].sizes

    def reading_order(self, split: str) -> NDArray[np.int64]:
        return self._ranges[split].reading_order()

    def path(self, split: str, index: int) -> str:
        unit = self._units[split][int(self._ranges[split].units[index])]
        return f"{unit}: {self.catalog.split(split).name(index)}"

    def read(self, split: str, index: int) -> bytes:
        units, offsets, sizes = self._ranges[split]
        return self._pread(split, index, int(units[index]), int(offsets[index]), int(sizes[index]))

    def _pread(self, split: str, index: int, unit: int, offset: int, size: int) -> bytes:
        path = str(self._units[split][unit])
        try:
            if (file := self._files.get(path)) is None:
                if len(self._files) >= _OPEN_FILES:
                    os.close(self._files.pop(next(iter(self._files))))
                file = self._files[path] = os.open(path, os.O_RDONLY)
            data = os.pread(file, size, offset)
        except OSError as error:
            raise RunError(f"{self.path(split, index)}: cannot be read: {reason(error)}") from None
        if len(data) != size:
            raise RunError(f"{self.path(split, index)}: the file ends within it: copy or download it again")
        return data
