"""Images of a source that is read from one end to the other, laid down so that they can be read in any order."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gaeanet.data.prepare.shard_writer import readable
from gaeanet.data.sources.source import Source
from gaeanet.errors import RunError, reason

_IMAGES = 4096
"""Images of one file: what is read again after a stop."""


class Spooled(Source):
    """The images of `source` in files below `root`, all written before this returns; those that are there are kept.

    Raises:
        RunError: An image cannot be read, or a file cannot be written.
    """

    def __init__(self, source: Source, root: Path) -> None:
        self.location, self.notes, self.catalog = source.location, source.notes, source.catalog
        self._source, self._root = source, root
        root.mkdir(parents=True, exist_ok=True)
        self._where: dict[str, NDArray[np.int64]] = {}
        for split in ("train", "val"):
            order = source.reading_order(split)
            self._where[split] = where = np.zeros((len(order), 3), np.int64)  # file, offset, size
            for number, start in enumerate(range(0, len(order), _IMAGES)):
                indices = order[start : start + _IMAGES]
                sizes = np.array(self._write(split, number, indices.tolist()), np.int64)
                where[indices] = np.stack([np.full(len(sizes), number), np.cumsum(sizes) - sizes, sizes], axis=1)

    def _write(self, split: str, number: int, indices: list[int]) -> list[int]:
        """Sizes of the images of a file, which is written if it is not there."""
        path, sizes_path = self._path(split, number), self._path(split, number).with_suffix(".json")
        if path.exists():  # renamed after its sizes were
            return list(json.loads(sizes_path.read_text(encoding="utf-8")))
        sizes = []
        draft = path.with_suffix(f".{os.getpid()}")
        with open(draft, "wb") as file:
            for index, data in zip(indices, self._source.fetch(split, indices)):
                sizes.append(file.write(readable(data, self._source.path(split, index))))
        sizes_path.write_text(json.dumps(sizes), encoding="utf-8")
        draft.replace(path)
        return sizes

    def _path(self, split: str, number: int) -> Path:
        return self._root / f"{split}-{number:06d}.images"

    def size(self, split: str, index: int) -> int:
        return int(self._where[split][index][2])

    def path(self, split: str, index: int) -> str:
        return self._source.path(split, index)

    def read(self, split: str, index: int) -> bytes:
        number, offset, size = self._where[split][index].tolist()
        path = self._path(split, number)
        try:
            with open(path, "rb") as file:
                data = os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise RunError(f"{path}: cannot be read: {reason(error)}") from None
        if len(data) != size:
            raise RunError(f"{path}: cut short: remove it and run again")
        return data
