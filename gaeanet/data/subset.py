"""Some of a source's training images, as a source. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from gaeanet.data.catalog import Catalog, Split
from gaeanet.data.source import Contents, Source


class Subset(Source):
    """The training images `indices` of `source`, with its classes and all its validation images.

    An epoch visits them in the order in which the whole source's epoch would, so that shards are still read one after
    the other, and the order is the same for the same images in any kind of source.

    Args:
        indices: Numbers of samples in the source, ascending, int64 (n,).
    """

    def __init__(self, source: Source, indices: NDArray[np.int64]) -> None:
        self._source, self._indices = source, indices
        whole = source.catalog
        samples = ((whole.train.name(index), int(whole.train.labels[index])) for index in indices.tolist())
        self.catalog = Catalog(whole.classes, Split.of(samples), whole.val)
        self.location, self.notes = source.location, source.notes
        self.generated, self.start_method = source.generated, source.start_method

    def read(self, split: str, index: int) -> Contents:
        return self._source.read(split, self._number(split, index))

    def path(self, split: str, index: int) -> str:
        return self._source.path(split, self._number(split, index))

    def size(self, split: str, index: int) -> int:
        return self._source.size(split, self._number(split, index))

    def fetch(self, split: str, indices: Iterable[int]) -> Iterator[Contents]:
        return self._source.fetch(split, [self._number(split, index) for index in indices])

    def epoch_order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        place = np.full(len(self._source.catalog.train), -1, np.int64)
        place[self._indices] = np.arange(len(self._indices))
        order = place[self._source.epoch_order(seed, epoch)]
        return order[order >= 0]

    @property
    def retries(self) -> int:
        return self._source.retries

    def _number(self, split: str, index: int) -> int:
        return int(self._indices[index]) if split == "train" else index
