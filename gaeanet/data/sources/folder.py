"""Images in class folders on disk: `<root>/train/<class>/...` and `<root>/val/<class>/...` (or `validation`).

A tree that `gaeanet prepare` made also has its class table and counts (`dataset.json`), and is held to them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gaeanet.data.formats import Unreadable
from gaeanet.data.sources.catalog import Catalog, Split, check_classes, check_table
from gaeanet.data.sources.entries import identity, images_under, is_hidden, leads_to_directory, read_image, skipped_note
from gaeanet.data.sources.layout import (
    ARCHIVES,
    TABLE,
    UNFINISHED,
    flat_folder,
    holds_images,
    images_root,
    meant_instead,
    split_folder,
    what_is_there,
)
from gaeanet.data.sources.source import Contents, Source
from gaeanet.errors import RequestError, RunError, counted, reason
from gaeanet.runtime.files import exists, expanded, is_directory, read_json

_LARGEST_TABLE = 256_000_000
"""Bytes of a data set's table: a million classes."""


class Files(Source):
    """A source whose samples are files on this machine, at `path`."""

    def read(self, split: str, index: int) -> bytes:
        """The bytes of a sample's file; raises `RunError` naming the file where it cannot be read."""
        path = self.path(split, index)
        try:
            return read_image(path)
        except OSError as error:
            raise RunError(f"{path}: cannot be read: {reason(error)}") from None

    def fetch(self, split: str, indices: Iterable[int]) -> Iterator[Contents]:
        """Many samples; a file that cannot be read, which may be one of a million, does not end it."""
        return (read_or_not(self.path(split, index)) for index in indices)

    def size(self, split: str, index: int) -> int:
        path = self.path(split, index)
        try:
            return os.stat(path).st_size
        except OSError as error:
            raise RunError(f"{path}: cannot be read: {reason(error)}") from None


class FolderSource(Files):
    """A directory of class folders; a sample's name is `<class>/<path in it>`.

    Args:
        location: The directory; in Kaggle's layout the one that holds `ILSVRC/`.
        val_classes: For a flat validation folder: the class of each file in it.

    Raises:
        RequestError: The directory, a split or its classes are missing or do not fit together, or are not what the
            table beside them says.
    """

    def __init__(self, location: str, val_classes: Mapping[str, str] | None = None) -> None:
        self.location = location
        self.notes: list[str] = []
        root = expanded(location)
        if not is_directory(root):
            what = "is a file, not a directory" if exists(root) else "does not exist"
            raise RequestError(f"data.location: {location} {what}: it must hold train/ and val/, one folder per class")
        if exists(root / UNFINISHED):
            raise RequestError(f"{root}: gaeanet prepare was stopped here before its end: run it again to finish")
        root = images_root(root)
        self._splits = _splits(root)
        self._val_is_flat = val_classes is not None
        classes = tuple(sorted(self._class_folders(self._splits["train"])))
        if not classes:
            unopened = any(self._splits["train"].glob("*.tar"))
            raise RequestError(
                f"{self._splits['train']}: no class folders in it: "
                + (
                    "the .tar files in it are the classes' archives: extract each into train/<class>/, or give "
                    f"gaeanet prepare the directory of {ARCHIVES['train']}"
                    if unopened
                    else "images go into train/<class>/"
                )
            )
        if val_classes is None:
            check_classes(classes, sorted(self._class_folders(self._splits["val"])), str(self._splits["val"]))
            val = self._index("val", classes)
        else:
            check_classes(classes, sorted(set(val_classes.values())), str(self._splits["val"]))
            self._splits["val"] = flat_folder(self._splits["val"])
            val = flat_split(val_classes, classes)
        self.catalog = Catalog(classes, self._index("train", classes), val)
        if exists(root / TABLE):
            check_against(read_table(root / TABLE), self.catalog, str(root))

    def _class_folders(self, path: Path) -> list[str]:
        """Names of the folders that hold something; hidden and empty ones and stray files are noted."""
        folders, skipped = [], []
        with listing(path) as entries:
            for entry in entries:
                above = {identity(path)}  # a link that leads back here is no class
                if (
                    is_hidden(entry.name)
                    or not leads_to_directory(entry)
                    or not any(images_under(entry.path, entered=above))
                ):
                    skipped.append(entry.name)
                else:
                    folders.append(entry.name)
        if skipped:
            self.notes.append(
                skipped_note(str(path), skipped, "entry that holds no class", "entries that hold no class")
            )
        return folders

    def _index(self, split: str, classes: tuple[str, ...]) -> Split:
        root, skipped = self._splits[split], list[str]()
        samples = Split.of(
            (image, label)
            for label, name in enumerate(classes)
            for image in sorted(images_under(root / name, f"{name}/", skipped.append, entered={identity(root)}))
        )
        if skipped:
            self.notes.append(
                skipped_note(str(root), skipped, "file that is no image by name", "files that are no images by name")
            )
        return samples

    def split_around(self, path: Path) -> Path | None:
        """The directory of a split that this path is, or lies in; None where it lies in none."""
        real = Path(os.path.realpath(path))
        return next((place for place in self._splits.values() if real.is_relative_to(os.path.realpath(place))), None)

    def path(self, split: str, index: int) -> str:
        """Where a sample is, for messages."""
        name = self.catalog.split(split).name(index)
        return os.path.join(
            self._splits[split], name.split("/", 1)[1] if split == "val" and self._val_is_flat else name
        )


def _splits(root: Path) -> dict[str, Path]:
    """Directory of each split; where one is missing, the refusal names the directory that may have been meant."""
    with listing(root) as entries:
        names = {entry.name for entry in entries if leads_to_directory(entry)}
    try:
        return {split: root / split_folder(names, split, f"data.location: {root}") for split in ("train", "val")}
    except RequestError as error:
        meant = None if holds_images(names) else meant_instead(root)
        advice = f"did you mean {meant}?" if meant else f"{what_is_there(root)}; docs/data.md lists what is read"
        raise RequestError(f"{error}; {advice}") from None


def flat_split(val_classes: Mapping[str, str], classes: tuple[str, ...]) -> Split:
    """The validation split of files whose class is known, as it is once they lie in class folders."""
    numbers = {name: label for label, name in enumerate(classes)}
    return Split.of((f"{name}/{file}", numbers[name]) for name, file in sorted((c, f) for f, c in val_classes.items()))


def table_of(catalog: Catalog) -> dict[str, Any]:
    """The content of a data set's `dataset.json`: the classes with their English names, counts, and fingerprint."""
    return {
        "classes": dict(zip(catalog.classes, catalog.class_names)),
        "counts": {
            name: dict(zip(catalog.classes, catalog.split(name).counts(len(catalog.classes)).tolist()))
            for name in ("train", "val")
        },
        "fingerprint": catalog.fingerprint,
    }


def read_table(path: Path) -> dict[str, Any]:
    """A data set's table; raises `RequestError` where it is damaged."""
    try:
        table = read_json(path, _LARGEST_TABLE)
        blocks = table["classes"], table["counts"]["train"], table["counts"]["val"]
        fits = all(isinstance(block, dict) for block in blocks) and isinstance(table["fingerprint"], str)
    except (OSError, ValueError, KeyError, TypeError):
        fits = False
    if not fits or any(block.keys() != blocks[0].keys() for block in blocks):
        raise RequestError(f"{path}: not a table that gaeanet prepare wrote: run it again, or remove this file")
    return dict(table)


def check_against(table: Mapping[str, Any], catalog: Catalog, where: str) -> None:
    """Raises `RequestError` unless the images found are those that were prepared."""
    check_table(catalog, list(table["classes"]), where)
    for name in ("train", "val"):
        counts = catalog.split(name).counts(len(catalog.classes)).tolist()
        for label, (folder, expected) in enumerate(table["counts"][name].items()):
            if counts[label] != expected:
                raise RequestError(
                    f"{where}: {counted(counts[label], f'{name} image')} in {folder}, {TABLE} says {expected}: was a "
                    f"copy interrupted? (remove {TABLE} if the change was meant)"
                )


def read_or_not(path: str) -> bytes | Unreadable:
    """The bytes of an image file, or why there are none."""
    try:
        return read_image(path)
    except OSError as error:
        return Unreadable(f"cannot be read: {reason(error)}")


def listing(path: str | Path) -> os._ScandirIterator[str]:
    """The entries of a directory, to be closed; raises `RequestError` where it cannot be listed."""
    try:
        return os.scandir(path)
    except OSError as error:
        raise RequestError(f"{path}: cannot be listed: {reason(error)}") from None
