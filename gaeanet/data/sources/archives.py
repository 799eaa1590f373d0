"""The ILSVRC2012 archives as they are downloaded: a tar of a tar for each class, and a tar of validation images.

Nothing is unpacked: every image is found by its offset, so the archives are a source like any other.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from gaeanet.data.sources.catalog import Catalog, Split, check_classes, check_names
from gaeanet.data.sources.entries import is_hidden_path, is_image, skipped_note
from gaeanet.data.sources.labels import validation_classes
from gaeanet.data.sources.layout import ARCHIVES
from gaeanet.data.sources.source import Source
from gaeanet.errors import RequestError, RunError, reason
from gaeanet.runtime.files import expanded, is_file
from gaeanet.runtime.names import shown


class Member(NamedTuple):
    """A file in a tar: its name, and where its bytes are."""

    name: str
    offset: int
    size: int


class _Section(io.RawIOBase):
    """A part of a file as a file of its own."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        self._file.seek(self._start + self._at)
        data = self._file.read(left if size < 0 else min(size, left))
        self._at += len(data)
        return data


def members(file: BinaryIO, start: int, size: int, name: str) -> Iterator[Member]:
    """The files in the tar that takes `size` bytes of `file` from `start`; offsets are those in `file`.

    Raises:
        RequestError: It is no tar, or cut short.
    """
    section = cast(BinaryIO, _Section(file, start, size))
    end = 0
    try:
        with tarfile.open(fileobj=section, mode="r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // 512) * 512
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError("unexpected end of data")
                if member.isfile():
                    yield Member(member.name, start + member.offset_data, member.size)
                tar.members = []  # type: ignore[attr-defined]  # a million remembered would be a gigabyte
    except tarfile.TarError as error:
        raise RequestError(f"{name}: not a whole tar archive ({error}): download it again") from None
    section.seek(end)
    if section.read(512) != bytes(512):  # tarfile takes any end at a block's edge for the end of the archive
        raise RequestError(f"{name}: cut short, its end mark is missing: download it again")


def _is_archive(name: str) -> bool:
    return name.endswith(".tar") and not is_hidden_path(name)


class ArchiveSource(Source):
    """The archives in a directory; a sample's name is `<class>/<file>`.

    Raises:
        RequestError: An archive is missing, cut short, or holds other classes than the other.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        self.notes: list[str] = []
        root = expanded(location)
        self._paths = {split: root / name for split, name in ARCHIVES.items()}
        for path in self._paths.values():
            if not is_file(path):
                raise RequestError(f"{path}: missing: {root} must hold {' and '.join(ARCHIVES.values())}")
        train = self._train_members()
        classes = tuple(sorted(train))
        labels = {name: label for label, name in enumerate(classes)}
        with open(self._paths["val"], "rb") as file:
            where = str(self._paths["val"])
            val = self._by_name(members(file, 0, self._paths["val"].stat().st_size, where), where, is_image)
        known = validation_classes(root, sorted(val), classes)
        check_classes(classes, sorted(set(known.values())), str(self._paths["val"]))
        ordered = {
            "train": [(f"{name}/{file}", m) for name in classes for file, m in sorted(train[name].items())],
            "val": sorted((f"{known[file]}/{file}", member) for file, member in val.items()),
        }
        splits = {
            split: Split.of((name, labels[name.split("/", 1)[0]]) for name, _ in pairs)
            for split, pairs in ordered.items()
        }
        self.catalog = Catalog(classes, splits["train"], splits["val"])
        check_names(self.catalog, location)
        self._where = {
            split: np.array([(member.offset, member.size) for _, member in pairs], np.int64).reshape(-1, 2)
            for split, pairs in ordered.items()
        }

    def _train_members(self) -> dict[str, dict[str, Member]]:
        """The images of each class by their names."""
        path = self._paths["train"]
        with open(path, "rb") as file:
            outer = members(file, 0, path.stat().st_size, str(path))
            archives = self._by_name(outer, str(path), _is_archive)
            classes = {}
            for name, archive in archives.items():
                where = f"{shown(archive.name)} in {path}"
                images = self._by_name(members(file, archive.offset, archive.size, where), where, is_image)
                classes[name.removesuffix(".tar")] = images
        return classes

    def _by_name(self, members: Iterable[Member], where: str, wanted: Callable[[str], bool]) -> dict[str, Member]:
        """Those that are wanted, by their names without folders; the others are noted, but for hidden ones.

        Raises:
            RequestError: Two have one name.
        """
        by_name: dict[str, Member] = {}
        others = []
        for member in members:
            name = os.path.basename(member.name)
            if wanted(member.name):
                if name in by_name:
                    raise RequestError(f"{where}: holds two files called {shown(name)}: download it again")
                by_name[name] = member
            elif not is_hidden_path(member.name):
                others.append(member.name)
        if others:
            self.notes.append(skipped_note(where, others, "file that does not belong there", "files that do not"))
        return by_name

    def read(self, split: str, index: int) -> bytes:
        offset, size = self._where[split][index].tolist()
        try:
            with open(self._paths[split], "rb") as file:
                data = os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise RunError(f"{self.path(split, index)}: cannot be read: {reason(error)}") from None
        if len(data) != size:
            raise RunError(f"{self.path(split, index)}: the archive ends within it: download it again")
        return data

    def size(self, split: str, index: int) -> int:
        return int(self._where[split][index][1])

    def known_sizes(self, split: str) -> NDArray[np.int64]:
        return self._where[split][:, 1]

    def path(self, split: str, index: int) -> str:
        return f"{self._paths[split]}: {self.catalog.split(split).name(index)}"
