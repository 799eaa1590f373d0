"""Some of a source's training images, as a source. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from gaeanet.data.sources.catalog import Catalog
from gaeanet.data.sources.source import Contents, Source


class Subset(Source):
    """The training images `indices` of `source`, with its classes.

    An epoch visits them in the order in which the whole source's epoch would, so that shards are still read one after
    the other, and the order is the same for the same images in any kind of source.

    Args:
        indices: Numbers of samples in the source, ascending, int64 (n,).
        held_out: Numbers of other training samples, ascending, that are the validation split; None keeps the source's.
    """

    def __init__(self, source: Source, indices: NDArray[np.int64], held_out: NDArray[np.int64] | None = None) -> None:
        self._source, self._indices, self._held_out = source, indices, held_out
        self.location, self.notes = source.location, source.notes
        self.generated, self.start_method, self.minival = source.generated, source.start_method, source.minival
        self._load()

    def _load(self) -> None:
        whole, held_out = self._source.catalog, self._held_out
        validation = whole.val if held_out is None else whole.train.take(held_out)
        self.catalog = Catalog(whole.classes, whole.train.take(self._indices), validation)

    def __getstate__(self) -> dict[str, object]:
        # A worker works the names out from those of the whole source, which it may map.
        return {key: value for key, value in self.__dict__.items() if key != "catalog"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._load()

    def read(self, split: str, index: int) -> Contents:
        return self._source.read(*self._original(split, index))

    def path(self, split: str, index: int) -> str:
        return self._source.path(*self._original(split, index))

    def size(self, split: str, index: int) -> int:
        return self._source.size(*self._original(split, index))

    def fetch(self, split: str, indices: Iterable[int]) -> Iterator[Contents]:
        originals = [self._original(split, index)[1] for index in indices]
        if split == "val" and self._held_out is not None:
            return self._source.fetch_scattered("train", originals)
        return self._source.fetch(split, originals)

    def epoch_order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        position = np.full(len(self._source.catalog.train), -1, np.int64)
        position[self._indices] = np.arange(len(self._indices))
        order = position[self._source.epoch_order(seed, epoch)]
        return order[order >= 0]

    @property
    def fingerprint(self) -> str:
        return self._source.fingerprint

    @property
    def sizes_fingerprint(self) -> str | None:
        return self._source.sizes_fingerprint

    @property
    def retries(self) -> int:
        return self._source.retries

    def _original(self, split: str, index: int) -> tuple[str, int]:
        """Split and number of a sample in the whole source."""
        if split == "train":
            return "train", int(self._indices[index])
        return ("val", index) if self._held_out is None else ("train", int(self._held_out[index]))
