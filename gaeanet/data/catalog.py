"""The class table and the sample index that every source shares.

A class's number is its place in the table of class names sorted as plain strings (code point by code point, as
torchvision and the ImageNet lists do), made from the training split and used for validation too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gaeanet.errors import RequestError


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
        pairs = list(samples)
        encoded = [name.encode("utf-8", "surrogateescape") for name, _ in pairs]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        labels = np.array([label for _, label in pairs], dtype=np.int32)
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), ends, labels)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Name of a sample within its source, e.g. `n01440764/n01440764_10026.JPEG`."""
        start = int(self.ends[index - 1]) if index else 0
        return self.names[start : int(self.ends[index])].tobytes().decode("utf-8", "surrogateescape")

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
        """Twelve hexadecimal digits that tell this data set from another: class names and every sample's name."""
        digest = hashlib.sha256("\n".join(self.classes).encode("utf-8", "surrogateescape"))
        for split in (self.train, self.val):
            for array in (split.names, split.ends, split.labels):
                digest.update(array.tobytes())
        return digest.hexdigest()[:12]

    @property
    def is_imagenet(self) -> bool:
        """Whether these are the thousand classes of ILSVRC2012 (named by their WordNet ids)."""
        return len(self.classes) == 1000 and all(re.fullmatch(r"n\d{8}", name) for name in self.classes)


def check_classes(train: Sequence[str], val: Sequence[str], where: str) -> None:
    """Raises `RequestError` unless validation has exactly the classes of training."""
    missing, extra = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    if missing or extra:
        faults = [f"lacks {_named(missing)}"] * bool(missing) + [f"has {_named(extra)} that training lacks"] * bool(
            extra
        )
        raise RequestError(
            f"{where}: validation {' and '.join(faults)}: both need the same class folders"
            + ("; is it one flat folder of images? sort them into class folders first" if not val else "")
        )


def _named(names: Sequence[str], limit: int = 3) -> str:
    shown = ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
    return f"{len(names)} class{'es' if len(names) != 1 else ''} ({shown})"


def check_class_count(catalog: Catalog, num_classes: int, where: str) -> None:
    """Raises `RequestError` unless the network's classifier has as many outputs as the data has classes."""
    if len(catalog.classes) != num_classes:
        raise RequestError(
            f"hyperparameters.num_classes is {num_classes} but {where} has {len(catalog.classes)} classes: "
            f"--set hyperparameters.num_classes={len(catalog.classes)}"
        )
