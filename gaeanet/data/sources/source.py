"""What every source of images can do. Nothing here needs torch."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from gaeanet.data.formats import Unreadable
from gaeanet.data.sources import order
from gaeanet.data.sources.catalog import Catalog

_PART = 256
"""Samples of a part of the reading order."""

Contents = bytes | NDArray[np.uint8] | Unreadable
"""An image file's bytes, or pixels (H, W, 3); or why there are none."""


class Source(ABC):
    """Where images come from.

    Attributes:
        catalog: Classes and samples. The same images have the same catalog in every kind of source.
        location: As it was given.
        notes: Notes about it, one sentence each.
        generated: Whether the images are made up.
        minival: Fraction of the training split that is the validation split here; None where it is the data's own.
        sequential: Whether only `reading_order` is fast, since an image costs as much as all around it.
        start_method: How worker processes must be started (`forkserver`), None where a fork will do.
    """

    catalog: Catalog
    location: str
    notes: list[str]
    generated = False
    minival: float | None = None
    sequential = False
    start_method: str | None = None

    @abstractmethod
    def read(self, split: str, index: int) -> Contents:
        """A sample; raises `RunError` naming it where it cannot be read."""

    @abstractmethod
    def path(self, split: str, index: int) -> str:
        """Where a sample is, for messages."""

    def size(self, split: str, index: int) -> int:
        """Bytes of a sample's file."""
        return len(self.read(split, index))

    def known_sizes(self, split: str) -> NDArray[np.int64] | None:
        """Bytes of each sample's file, int64 (samples,); None where each file would have to be looked at."""
        return None

    def sizes(self, split: str) -> NDArray[np.int64]:
        """Bytes of each sample's file, int64 (samples,); where `sequential`, all of them are read for it."""
        known, count = self.known_sizes(split), len(self.catalog.split(split))
        if known is not None:
            return known
        return np.fromiter((self.size(split, index) for index in range(count)), np.int64, count)

    def fetch(self, split: str, indices: Iterable[int]) -> Iterator[Contents]:
        """Many samples in the order asked for; sources far away have many requests under way at a time."""
        return (self.read(split, index) for index in indices)

    def fetch_scattered(self, split: str, indices: Iterable[int]) -> Iterator[Contents]:
        """The same for samples that are no neighbours in the order of an epoch, as far apart as they may lie."""
        return self.fetch(split, indices)

    def reading_order(self, split: str) -> NDArray[np.int64]:
        """The order in which all samples of a split are read fastest: a permutation of 0..n-1, int64 (n,)."""
        return np.arange(len(self.catalog.split(split)))

    def reading_parts(self, split: str) -> list[NDArray[np.int64]]:
        """`reading_order` in parts that several processes may read at a time."""
        order = self.reading_order(split)
        return [order[start : start + _PART] for start in range(0, len(order), _PART)]

    @property
    def total_bytes(self) -> int:
        """Bytes of all images, or about as many where that is not known before they are read."""
        return sum(int(self.sizes(split).sum()) for split in ("train", "val"))

    def epoch_order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """The order in which an epoch visits the training samples: a permutation of 0..n-1, int64 (n,)."""
        return order.epoch_order(len(self.catalog.train), seed, epoch)

    @property
    def fingerprint(self) -> str:
        """Of all images at the location, whichever of them are taken."""
        return self.catalog.fingerprint

    @property
    def sizes_fingerprint(self) -> str | None:
        """Of the sizes of all images' files, the same in every kind of source that knows them; None in others."""
        digest = hashlib.sha256()
        for split in ("train", "val"):
            sizes = self.known_sizes(split)
            if sizes is None:
                return None
            digest.update(np.ascontiguousarray(sizes, np.dtype("<i8")).tobytes())
        return digest.hexdigest()[:12]

    @property
    def retries(self) -> int:
        """Requests that this process has had to repeat so far."""
        return 0
