"""The class table and the sample index that every source shares.

A class's number is its index in the table of class names sorted as plain strings (code point by code point, as
torchvision and the ImageNet lists do), made from the training split and used for validation too.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gaeanet.errors import RequestError, counted
from gaeanet.runtime.names import shown, stays_inside

WNID = re.compile(r"n\d{8}")
"""A WordNet id."""

IMAGENET_COUNTS = {"train": 1_281_167, "val": 50_000}
"""Images of ILSVRC2012."""


@dataclass(frozen=True)
class Split:
    """The samples of one split.

    Attributes:
        names: All samples' names (UTF-8), one after the other; arrays, since a million Python strings would cost each
            worker process several hundred megabytes.
        ends: Where each name ends in `names`, int64 (samples,).
        labels: Class of each sample, int32 (samples,).
    """

    names: NDArray[np.uint8]
    ends: NDArray[np.int64]
    labels: NDArray[np.int32]

    @classmethod
    def of(cls, samples: Iterable[tuple[str, int]]) -> Split:
        """From (name, label) pairs, in this order."""
        names, ends, labels = bytearray(), array("q"), array("i")
        for name, label in samples:
            names += name.encode("utf-8", "surrogateescape")
            ends.append(len(names))
            labels.append(label)
        return cls(np.frombuffer(names, np.uint8), np.array(ends, np.int64), np.array(labels, np.int32))

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Name of a sample within its source, e.g. `n01440764/n01440764_10026.JPEG`."""
        start = int(self.ends[index - 1]) if index else 0
        return self.names[start : int(self.ends[index])].tobytes().decode("utf-8", "surrogateescape")

    def take(self, indices: NDArray[np.int64]) -> Split:
        """The samples `indices`, ascending, as a split of their own."""
        is_taken = np.zeros(len(self), bool)
        is_taken[indices] = True
        lengths = np.diff(self.ends, prepend=0)
        return Split(self.names[np.repeat(is_taken, lengths)], np.cumsum(lengths[indices]), self.labels[indices])

    def counts(self, classes: int) -> NDArray[np.int64]:
        """Samples of each class, (classes,)."""
        return np.bincount(self.labels, minlength=classes)


@dataclass(frozen=True)
class Catalog:
    """What a source holds: the class table and both splits."""

    classes: tuple[str, ...]
    train: Split
    val: Split

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that identify this data set: class names and every sample's name."""
        digest = hashlib.sha256("\n".join(self.classes).encode("utf-8", "surrogateescape"))
        for split in (self.train, self.val):
            for values in (split.names, split.ends, split.labels):
                digest.update(values.tobytes())
        return digest.hexdigest()[:12]

    def split(self, name: str) -> Split:
        """The split called `train` or `val`."""
        return self.train if name == "train" else self.val

    @property
    def is_imagenet(self) -> bool:
        """Whether these are the thousand classes of ILSVRC2012 (named by their WordNet ids)."""
        return len(self.classes) == 1000 and all(map(WNID.fullmatch, self.classes))

    @property
    def class_names(self) -> tuple[str, ...]:
        """What each class is called in English, where it is named by a WordNet id; its own name otherwise."""
        known = _timm_table("imagenet_synset_to_lemma.txt")
        return tuple(known.get(name, name) for name in self.classes)


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """The WordNet ids of ILSVRC2012's classes, sorted: a class's number is its index here."""
    return tuple(sorted(_timm_table("imagenet_synsets.txt")))


@cache
def imagenet_english() -> tuple[str, ...]:
    """The English names of ILSVRC2012's classes, in the order of `imagenet_wnids`."""
    known = _timm_table("imagenet_synset_to_lemma.txt")
    return tuple(known.get(wnid, wnid) for wnid in imagenet_wnids())


@cache
def _timm_table(file: str) -> dict[str, str]:
    """A table that timm carries, as first column -> second; read without importing timm, which would import torch."""
    spec = importlib.util.find_spec("timm")
    assert spec is not None
    assert spec.origin is not None
    text = (Path(spec.origin).parent / "data" / "_info" / file).read_text(encoding="utf-8")
    rows = (line.partition("\t") for line in text.splitlines() if line.strip())
    return {key.strip(): value.strip() for key, _, value in rows}


def check_names(catalog: Catalog, where: str) -> None:
    """Raises `RequestError` where a class or a sample has a name that leads out of a directory it is joined to."""
    for name in catalog.classes:
        if "/" in name or not stays_inside(name):
            raise RequestError(f"{where}: has a class called {shown(name)!r}, which is no name of a directory: refused")
    for split in (catalog.train, catalog.val):
        if (index := first_outside(split.names, split.ends)) is not None:
            raise RequestError(
                f"{where}: has a sample called {shown(split.name(index))!r}, which leads out of it: refused"
            )


def first_outside(names: NDArray[np.uint8], ends: NDArray[np.int64]) -> int | None:
    """The number of the first of many names that does not stay inside; None where all do.

    Looks at the bytes of all names at once, since a data set has a million of them.

    Args:
        names, ends: As in `Split`.
    """
    if not len(ends):
        return None
    starts = np.concatenate([[0], ends[:-1]])
    filled = starts < ends
    heads, tails = names[starts[filled]], names[ends[filled] - 1]
    suspect = ~filled
    suspect[filled] = (heads == ord("/")) | (heads == ord(".")) | (tails == ord("/"))
    text = names.tobytes()
    for pattern in (b"//", b"/.", b"\0"):
        at = text.find(pattern)
        while at >= 0:
            suspect[np.searchsorted(ends, at, side="right")] = True
            at = text.find(pattern, at + 1)
    for index in np.flatnonzero(suspect).tolist():
        name = names[starts[index] : ends[index]].tobytes().decode("utf-8", "surrogateescape")
        if not stays_inside(name):
            return int(index)
    return None


def check_imagenet_is_whole(catalog: Catalog, where: str) -> None:
    """Raises `RequestError` where nearly all of ImageNet is there, but not all: an interrupted copy or extraction.

    Fewer than nine tenths of its classes are taken for a subset made on purpose.
    """
    missing = sorted(set(imagenet_wnids()) - set(catalog.classes))
    if len(missing) > 100 or not set(catalog.classes) <= set(imagenet_wnids()):
        return
    if missing:
        raise RequestError(f"{where}: {_named(missing)} of ImageNet's 1000 are missing: was a copy interrupted?")
    for name, expected in IMAGENET_COUNTS.items():
        if (count := len(catalog.split(name))) != expected:
            raise RequestError(
                f"{where}: {count:,} {name} images, ImageNet has {expected:,}: was a copy or an extraction interrupted?"
            )


def check_table(catalog: Catalog, classes: Sequence[str], where: str) -> None:
    """Raises `RequestError` unless the classes are those of a saved table (of a data set or checkpoint) `where`."""
    if list(catalog.classes) == list(classes):
        return
    missing, extra = sorted(set(classes) - set(catalog.classes)), sorted(set(catalog.classes) - set(classes))
    faults = [f"lack {_named(missing)}"] * bool(missing) + [f"have {_named(extra)} more"] * bool(extra)
    raise RequestError(
        f"{where}: the classes found {' and '.join(faults) or 'are in another order'} than its table says"
    )


def check_classes(train: Sequence[str], val: Sequence[str], where: str) -> None:
    """Raises `RequestError` unless validation has exactly the classes of training."""
    missing, extra = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    if missing or extra:
        faults = [f"lacks {_named(missing)}"] * bool(missing) + [f"has {_named(extra)} that training lacks"] * bool(
            extra
        )
        is_flat = not val or (len(val) == 1 and val[0] not in train)
        sorts = "copied to a disk, gaeanet prepare sorts it" if "://" in where else "gaeanet prepare sorts it"
        raise RequestError(
            f"{where}: validation {' and '.join(faults)}: both need the same class folders"
            + (f"; is it one flat folder of images? {sorts} into class folders" if is_flat else "")
        )


def _named(names: Sequence[str], limit: int = 3) -> str:
    shown = ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
    return f"{counted(len(names), 'class')} ({shown})"


def check_class_count(catalog: Catalog, num_classes: int, where: str) -> None:
    """Raises `RequestError` unless the network's classifier has as many outputs as the data has classes."""
    if len(catalog.classes) == 1:
        raise RequestError(
            f"{where} has 1 class ({shown(catalog.classes[0])}), a network takes "
            "two or more, each a folder of its own in train/ and in val/"
        )
    if len(catalog.classes) != num_classes:
        raise RequestError(
            f"hyperparameters.num_classes is {num_classes} but {where} has {counted(len(catalog.classes), 'class')}: "
            f"--set hyperparameters.num_classes={len(catalog.classes)}"
        )
