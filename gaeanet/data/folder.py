"""Images in class folders on disk: `<root>/train/<class>/...` and `<root>/val/<class>/...` (or `validation`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from gaeanet.data.catalog import Catalog, Split, check_classes
from gaeanet.errors import RequestError, RunError

IMAGE_SUFFIXES = frozenset([".jpeg", ".jpg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"])
"""Names of files that are taken for images, whatever they turn out to hold; others are passed over with a note."""


class FolderSource:
    """A directory of class folders.

    Attributes:
        catalog: Its classes and samples; a sample's name is `<class>/<path in it>`.
        location: The directory as it was given.
        notes: What was passed over, one sentence each.

    Raises:
        RequestError: The directory, a split or its classes are missing or do not fit together.
    """

    generated = False

    def __init__(self, location: str) -> None:
        self.location = location
        self.notes: list[str] = []
        root = Path(location).expanduser()
        if not root.is_dir():
            what = "is a file, not a directory" if root.exists() else "does not exist"
            raise RequestError(f"data.location: {location} {what}: it must hold train/ and val/, one folder per class")
        self._splits = {"train": self._split_root(root, "train"), "val": self._split_root(root, "val", "validation")}
        folders = {split: self._class_folders(path) for split, path in self._splits.items()}
        classes = tuple(sorted(folders["train"]))
        if not classes:
            raise RequestError(f"{self._splits['train']}: no class folders in it: images go into train/<class>/")
        check_classes(classes, sorted(folders["val"]), str(self._splits["val"]))
        self.catalog = Catalog(classes, self._index("train", classes), self._index("val", classes))

    def _split_root(self, root: Path, *names: str) -> Path:
        for name in names:
            if (root / name).is_dir():
                return root / name
        raise RequestError(f"data.location: {root} has no {' or '.join(f'{name}/' for name in names)} directory in it")

    def _class_folders(self, path: Path) -> list[str]:
        """Names of the folders that hold something; hidden and empty ones and stray files are noted."""
        folders, passed = [], []
        with _listing(path) as entries:
            for entry in entries:
                if entry.name.startswith(".") or not entry.is_dir() or next(_images(entry.path), None) is None:
                    passed.append(entry.name)
                else:
                    folders.append(entry.name)
        if passed:
            shown = ", ".join(sorted(passed)[:3]) + (", ..." if len(passed) > 3 else "")
            self.notes.append(f"{path}: passed over {len(passed)} entries that hold no class ({shown})")
        return folders

    def _index(self, split: str, classes: tuple[str, ...]) -> Split:
        root = self._splits[split]
        return Split.of(
            (f"{name}/{image}", label) for label, name in enumerate(classes) for image in sorted(_images(root / name))
        )

    def read(self, split: str, index: int) -> bytes:
        """The bytes of a sample's file; raises `RunError` naming the file where it cannot be read."""
        path = self.path(split, index)
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            raise RunError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None

    def path(self, split: str, index: int) -> str:
        """Where a sample is, for messages."""
        return os.path.join(self._splits[split], getattr(self.catalog, split).name(index))


def _listing(path: str | Path) -> os._ScandirIterator[str]:
    try:
        return os.scandir(path)
    except OSError as error:
        raise RequestError(f"{path}: cannot be listed: {(error.strerror or str(error)).lower()}") from None


def _images(folder: str | Path, prefix: str = "") -> Iterator[str]:
    """Paths, relative to `folder`, of the images in it and in the folders below it."""
    with _listing(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _images(entry.path, f"{prefix}{entry.name}/")
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
                yield prefix + entry.name
