"""Samples of formats that others wrote, collected as columns, and the classes and names that they have here.

Formats name a class by number, by text, by WordNet id, or only in the file's name. The WordNet id wins wherever it is
known, so that the same images have the same catalog (law 4) whichever format they come from. What contradicts itself
is refused before anything is written.
"""

from __future__ import annotations

import os
import re
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gaeanet.data.formats import IMAGE_SUFFIXES
from gaeanet.data.sources.catalog import (
    IMAGENET_COUNTS,
    WNID,
    Catalog,
    Split,
    check_classes,
    check_names,
    imagenet_english,
    imagenet_wnids,
)
from gaeanet.errors import RequestError
from gaeanet.runtime.names import is_whole, shortened, shown

_INTEGER = re.compile(r"-?[0-9]{1,9}")
_IN_NAME = re.compile(r"(?:^|/)(n\d{8})(?=[_/])|_(n\d{8})(?=\.[A-Za-z]+$|$)")
_ILSVRC = re.compile(r"n\d{8}_\d+|ILSVRC2012_(?:val|test)_\d{8}")

Label = int | str


class Rows:
    """The samples of one split, in the order in which the format holds them: some 80 bytes each."""

    def __init__(self) -> None:
        self.names, self.ends = bytearray(), array("q")
        self.keys, self.wnids = array("i"), array("i")
        self.units, self.offsets, self.sizes = array("i"), array("q"), array("q")

    def __len__(self) -> int:
        return len(self.keys)

    def forget_names(self) -> None:
        """Frees the memory of the names, which nothing asks for once they are in the catalog."""
        self.names, self.ends = bytearray(), array("q")

    def name(self, row: int) -> str:
        """What the format calls a sample."""
        start = self.ends[row - 1] if row else 0
        return self.names[start : self.ends[row]].decode("utf-8", "surrogateescape")


class Samples:
    """The samples of both splits.

    Args:
        units: The files that the samples are in, for messages and for samples of the same name.
        class_names: The names of its class numbers, where the format has them, or None.
    """

    def __init__(self, units: Mapping[str, Sequence[Path]], class_names: Sequence[str] | None = None) -> None:
        self.units, self.class_names = units, class_names
        for name in class_names or ():
            if not is_whole(name):
                raise RequestError(f"{units['train'][0].parent}: has a class called {shown(name)!r}: no text is")
        self.rows = {"train": Rows(), "val": Rows()}
        self._keys: dict[Label, int] = {}
        self._wnids: dict[str, int] = {}

    def add(
        self,
        split: str,
        name: str,
        label: Label | None,
        unit: int,
        offset: int = 0,
        size: int = 0,
        wnid: str | None = None,
    ) -> None:
        """Adds a sample.

        Args:
            name: Its path as the format has it, with an image's suffix.
            label: Number or name of its class; None where only its name may show it.
            unit: Number of the file it is in.
            offset, size: Where its bytes are in that file.
            wnid: Its WordNet id, where the format has that beside the label.

        Raises:
            RequestError: It has no class, or what stands for one is none.
        """
        if not is_whole(name) or (isinstance(label, str) and not is_whole(label)):
            raise RequestError(f"{self._location(split, unit, name)}: its name or label holds half a character")
        match = _IN_NAME.search(name)
        named = (match[1] or match[2]) if match else None
        if wnid is not None and named not in (None, wnid):
            raise RequestError(
                f"{self._location(split, unit, name)}: its WordNet id is {wnid}, its name says {named}: one is wrong"
            )
        wnid = wnid or named
        if isinstance(label, str) and _INTEGER.fullmatch(label):
            label = int(label)
        if label is None:
            label = wnid
        if label is None or label == "":
            raise RequestError(f"{self._location(split, unit, name)}: has no label")
        if isinstance(label, int):
            most = len(self.class_names) if self.class_names else 1 << 31
            if not 0 <= label < most:
                asked = f"0 to {most - 1}, one for each class name" if self.class_names else "0 or more"
                raise RequestError(f"{self._location(split, unit, name)}: its label is {label}, must be {asked}")
            if self.class_names and WNID.fullmatch(self.class_names[label]):
                label = self.class_names[label]
        if isinstance(label, str) and WNID.fullmatch(label):
            if wnid not in (None, label):
                raise RequestError(
                    f"{self._location(split, unit, name)}: its label is {label}, its name says {wnid}: one is wrong"
                )
            wnid = label
        rows = self.rows[split]
        rows.names += name.encode("utf-8", "surrogateescape")
        rows.ends.append(len(rows.names))
        rows.keys.append(self._keys.setdefault(label, len(self._keys)))
        rows.wnids.append(-1 if wnid is None else self._wnids.setdefault(wnid, len(self._wnids)))
        rows.units.append(unit)
        rows.offsets.append(offset)
        rows.sizes.append(size)

    def _location(self, split: str, unit: int, name: str) -> str:
        return f"{self.units[split][unit]}: {shown(shortened(name, 100))}"

    def catalog(self, where: str, notes: list[str]) -> tuple[Catalog, dict[str, NDArray[np.int64]]]:
        """The catalog, and for each split the row of each of its samples, int64 (samples,).

        Args:
            where: The location, for messages.
            notes: Notes about the classes are appended to it.

        Raises:
            RequestError: The labels contradict each other or the names, the splits have different classes, or two
                samples have one name.
        """
        for split in ("train", "val"):
            if not len(self.rows[split]):
                raise RequestError(f"{where}: has no {split} images")
        of_key = self._class_names(notes)
        keys = {split: np.frombuffer(rows.keys, np.int32) for split, rows in self.rows.items()}
        present = {split: sorted({of_key[key] for key in np.unique(keys[split]).tolist()}) for split in keys}
        check_classes(present["train"], present["val"], where)
        classes = tuple(present["train"])
        number = {name: label for label, name in enumerate(classes)}
        label_of = np.array([number[name] for name in of_key], np.int32)
        splits, order = {}, {}
        for split in ("train", "val"):
            splits[split], order[split] = self._split(split, label_of[keys[split]], classes)
        catalog = Catalog(classes, splits["train"], splits["val"])
        check_names(catalog, where)
        return catalog, order

    def _class_names(self, notes: list[str]) -> list[str]:
        """The class of each key, by WordNet id where it is known for all of them."""
        keys = list(self._keys)
        known = self._wnid_of_keys(keys)
        if len(known) == len(keys):
            return [known[key] for key in range(len(keys))]
        numbers = [key for key in keys if isinstance(key, int)]
        if len(numbers) < len(keys) and numbers and not self.class_names:
            text = next(key for key in keys if isinstance(key, str))
            raise RequestError(
                f"{self._first(keys.index(numbers[0]))}: its label is the number {numbers[0]}, others are names, as "
                f"{shown(shortened(text))!r}: write all one way"
            )
        if self.class_names and is_imagenet_list(self.class_names):
            wnids = imagenet_wnids()
            for key, wnid in known.items():
                expected = wnids[int(keys[key])] if isinstance(keys[key], int) else wnid
                if wnid != expected:
                    raise RequestError(
                        f"{self._first(key)}: its label {keys[key]} is {expected}, its name says {wnid}: one of them "
                        "is wrong"
                    )
            return [wnids[key] if isinstance(key, int) else key for key in keys]
        if self.class_names or not numbers:
            names = [self.class_names[key] if isinstance(key, int) and self.class_names else str(key) for key in keys]
            if twice := [name for name, count in Counter(names).items() if count > 1]:
                raise RequestError(f"{self._first(0)}: two labels are called {shown(twice[0])!r}: rename one")
            if self.class_names and sorted(self.class_names) != list(self.class_names):
                notes.append("classes are numbered by their sorted names, not by the numbers that the labels have")
            return names
        counts = {split: len(rows) for split, rows in self.rows.items()}
        if len(numbers) == 1000 and max(numbers) - min(numbers) == 999 and counts == IMAGENET_COUNTS:
            notes.append("labels taken for ImageNet's, in the order of the WordNet ids: their number and counts fit")
            return [imagenet_wnids()[key - min(numbers)] for key in numbers]
        width = len(str(max(numbers)))
        return [f"{key:0{width}d}" for key in numbers]

    def _wnid_of_keys(self, keys: list[Label]) -> dict[int, str]:
        """The WordNet id of each key for which any sample has one; raises `RequestError` where samples disagree."""
        wnids, known, key_of = list(self._wnids), dict[int, str](), dict[str, int]()
        for split, rows in self.rows.items():
            of_row = np.frombuffer(rows.wnids, np.int32)
            with_wnid = np.flatnonzero(of_row >= 0)
            pairs = np.frombuffer(rows.keys, np.int32)[with_wnid].astype(np.int64) << 32 | of_row[with_wnid]
            unique, first = np.unique(pairs, return_index=True)
            for at in np.argsort(first):
                row, key, wnid = int(with_wnid[first[at]]), int(unique[at] >> 32), wnids[int(unique[at] & 0xFFFFFFFF)]
                sample = self._location(split, rows.units[row], rows.name(row))
                if known.setdefault(key, wnid) != wnid:
                    raise RequestError(
                        f"{sample}: its label is {shown(str(keys[key]))}, which is {known[key]} for others, its name "
                        f"says {wnid}: one of them is wrong"
                    )
                if key_of.setdefault(wnid, key) != key:
                    raise RequestError(
                        f"{sample}: {wnid} has the label {shown(str(keys[key]))}, and {shown(str(keys[key_of[wnid]]))} "
                        "for others: one of them is wrong"
                    )
        return known

    def _first(self, key: int) -> str:
        """Where the first sample of a key is, for messages."""
        for split, rows in self.rows.items():
            if key in rows.keys:
                row = rows.keys.index(key)
                return self._location(split, rows.units[row], rows.name(row))
        raise AssertionError(key)

    def _split(
        self, split: str, labels: NDArray[np.int32], classes: tuple[str, ...]
    ) -> tuple[Split, NDArray[np.int64]]:
        """The samples of a split sorted by class and name, and their rows."""
        rows = self.rows[split]
        by_class = np.argsort(labels, kind="stable")
        bounds = np.searchsorted(labels[by_class], np.arange(len(classes) + 1))
        names, ends, order = bytearray(), array("q"), array("q")
        for label, name in enumerate(classes):
            group = by_class[bounds[label] : bounds[label + 1]].tolist()
            files = [file_name(rows.name(row), name) for row in group]
            if len(set(files)) < len(files):  # whole paths distinguish them, or the files that they are in
                files = [_path(rows.name(row)) for row in group]
            if len(set(files)) < len(files):
                units = self.units[split]
                stems = [units[rows.units[row]].name.split(".")[0] for row in group]
                files = [f"{stem}/{file}" for stem, file in zip(stems, files)]
            pairs = sorted(
                (f"{name}/{file}".encode("utf-8", "surrogateescape"), row) for file, row in zip(files, group)
            )
            for (one, _), (other, row) in pairwise(pairs):
                if one == other:
                    raise RequestError(
                        f"{self._location(split, rows.units[row], rows.name(row))}: two samples of class {shown(name)} "
                        "have this name: rename one"
                    )
            for text, row in pairs:
                names += text
                ends.append(len(names))
                order.append(row)
        rows_in_order = np.frombuffer(order, np.int64)
        ordered = Split(np.frombuffer(names, np.uint8), np.frombuffer(ends, np.int64), labels[rows_in_order])
        return ordered, rows_in_order


class Ranges(NamedTuple):
    """Where the samples of a split are: file, offset and size of each, (samples,)."""

    units: NDArray[np.int32]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Rows, order: NDArray[np.int64]) -> Ranges:
        """Those of `rows`, in this order."""
        columns = np.frombuffer(rows.units, np.int32), np.frombuffer(rows.offsets, np.int64)
        return cls(columns[0][order], columns[1][order], np.frombuffer(rows.sizes, np.int64)[order])

    def reading_order(self) -> NDArray[np.int64]:
        """The samples in the order in which they lie: file after file, each from its beginning to its end."""
        return np.lexsort((self.offsets, self.units))


def file_name(path: str, class_name: str) -> str:
    """The name of a sample's file, without directories; ILSVRC2012's own are as they are in its archives.

    Hugging Face appends the WordNet id to them, and webdataset changes their suffix.
    """
    stem, suffix = os.path.splitext(path.rsplit("/", 1)[-1])
    original = stem.removesuffix(f"_{class_name}")
    if _ILSVRC.fullmatch(original):
        return f"{original}.JPEG"
    return stem + (suffix if suffix.lower() in IMAGE_SUFFIXES else f"{suffix}.jpg")


def _path(path: str) -> str:
    head, _, tail = path.removeprefix("./").rpartition("/")
    return (f"{head}/" if head else "") + file_name(tail, "")


def is_imagenet_list(names: Sequence[str]) -> bool:
    """Whether these are the English names of ILSVRC2012's classes in the order of their WordNet ids.

    Lists name the two cranes, and the like, differently: most names must agree in their first word.
    """
    known = imagenet_english()
    if len(names) != len(known):
        return False
    agree = sum(
        ours.split(",")[0].lower() == theirs.split(",")[0].strip().lower() for ours, theirs in zip(known, names)
    )
    return agree >= 900
