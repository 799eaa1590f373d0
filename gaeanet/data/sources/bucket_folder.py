"""Images in class folders in a bucket: `<prefix>/train/<class>/...` and `<prefix>/validation/<class>/...` (or `val`).

One process of a machine lists the bucket and writes what it found as an index, which all processes map. A later run
looks whether the index still holds: all class folders, and the objects of as many of them, chosen by chance, as hold
`_LOOKED_AT` (all of a small data set, some fifteen classes of ImageNet's training split). Objects that were changed or
removed elsewhere are noticed when they are read, for length and digest are compared.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gaeanet.data.sources.catalog import Catalog, Split, check_classes, check_names
from gaeanet.data.sources.entries import is_hidden, is_image, skipped_note
from gaeanet.data.sources.index import Arrays, catalog_arrays, catalog_from, read_index, write_index
from gaeanet.data.sources.layout import holds_images, split_folder
from gaeanet.data.sources.source import Source
from gaeanet.data.storage.bucket import BucketClient, Entry
from gaeanet.data.storage.bucket_index import BucketIndexes
from gaeanet.data.storage.local_copy import Check, LocalCopy, directory_of
from gaeanet.errors import RequestError, RunError, reason

_LOOKED_AT = 20_000
"""Objects of each split, in whole classes, that are listed again to see whether an index still holds."""

_LOOKED_INTO = 20
"""Folders that are looked into, at most, to find the one that was meant."""

_SPLITS = ("train", "val")


class BucketFolderSource(Source):
    """Class folders in a bucket; a sample's name is `<class>/<path in it>`.

    Args:
        cache: Directory for the index.
        copy: Directory for a local copy, None to read from the bucket each time; `copy_limit` bounds its bytes.

    Raises:
        RequestError: The bucket cannot be read, or a split or its classes are missing or do not fit together.
    """

    start_method = "forkserver"

    def __init__(
        self,
        client: BucketClient,
        *,
        cache: Path,
        copy: Path | None = None,
        copy_limit: int | None = None,
    ) -> None:
        self.location = client.location
        self.notes = ["read without credentials"] * client.anonymous
        self._client = client
        indexes = BucketIndexes(client.location, cache, "listing.safetensors")
        with indexes.lock():
            newest = indexes.newest()
            self._index = newest if newest and self._holds(newest) else self._write_index(indexes)
            indexes.use(self._index)
        self._load()
        check_names(self.catalog, client.location)
        self.notes += self._skipped
        if client.retries:
            self.notes.append(f"{client.retries} requests had to be repeated while the bucket was listed")
        self._copy: LocalCopy | None = None
        if copy is not None:
            self._copy = LocalCopy(
                directory_of(client.location, copy), {s: self._sizes[s] for s in ("val", "train")}, copy_limit
            )
            self.notes.append(self._copy.note)

    def _load(self) -> None:
        arrays, facts = read_index(self._index)
        self.catalog = catalog_from(arrays, facts["classes"])
        self._folders: dict[str, str] = facts["folders"]
        self._etags_are_md5: bool = facts["etags_are_md5"]
        self._skipped: list[str] = facts["passed_over"]
        self._sizes = {split: arrays[f"{split}.sizes"] for split in _SPLITS}
        self._digests = {split: arrays[f"{split}.digests"] for split in _SPLITS}

    def __getstate__(self) -> dict[str, object]:
        # A worker maps the index itself instead of getting a copy of a million entries.
        mapped = ("catalog", "_folders", "_etags_are_md5", "_skipped", "_sizes", "_digests")
        return {key: value for key, value in self.__dict__.items() if key not in mapped}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._load()

    @property
    def retries(self) -> int:
        return self._client.retries

    def size(self, split: str, index: int) -> int:
        return int(self._sizes[split][index])

    def known_sizes(self, split: str) -> NDArray[np.int64]:
        return self._sizes[split]

    def path(self, split: str, index: int) -> str:
        return self._client.url(self._key(split, index))

    def read(self, split: str, index: int) -> bytes:
        name, check = f"{split}/{self.catalog.split(split).name(index)}", self._check(split, index)
        is_copied = self._copy is not None and self._copy.keeps(split, index)
        if self._copy and is_copied and (data := self._copy.read(name, check)) is not None:
            return data
        try:
            data = self._client.get(self._key(split, index), check)
        except RunError as error:
            raise RunError(f"{error}; if the bucket has changed, remove {self._index}") from None
        if self._copy and is_copied:
            self._copy.store(name, data)
        return data

    def fetch(self, split: str, indices: Iterable[int]) -> Iterator[bytes]:
        return self._client.map(partial(self.read, split), indices)

    def _key(self, split: str, index: int) -> str:
        return f"{self._folders[split]}/{self.catalog.split(split).name(index)}"

    def _check(self, split: str, index: int) -> Check:
        size, digest = int(self._sizes[split][index]), self._digests[split][index].tobytes()

        def check(data: bytes) -> str | None:
            if len(data) != size:
                return f"{len(data)} bytes came, the listing has {size}"
            if self._etags_are_md5 and any(digest) and hashlib.md5(data, usedforsecurity=False).digest() != digest:
                return "the bytes have another digest than in the listing"
            return None

        return check

    def _holds(self, index: Path) -> bool:
        """Whether an index still lists what the bucket holds, as far as a few requests can show."""
        self._index = index
        try:
            self._load()
        except (RequestError, KeyError, TypeError, ValueError):
            return False
        for split, folder in self._folders.items():
            samples, classes = self.catalog.split(split), self.catalog.classes
            if tuple(self._class_folders(folder)) != classes:
                return False
            labels = _some_labels(samples.counts(len(classes)))
            listings = self._client.map(self._client.list, [f"{folder}/{classes[label]}" for label in labels])
            for label, listing in zip(labels, listings):
                images = _images(listing)
                first, last = np.searchsorted(samples.labels, [label, label + 1])
                if [entry.key for entry in images] != [self._key(split, index) for index in range(first, last)]:
                    return False
                if [entry.size for entry in images] != self._sizes[split][first:last].tolist():
                    return False
                if not np.array_equal(_digests(images), self._digests[split][first:last]):
                    return False
        return True

    def _write_index(self, indexes: BucketIndexes) -> Path:
        folders = self._split_folders()
        table, val = (self._class_folders(folders[split]) for split in _SPLITS)
        if not table:
            raise RequestError(f"{self._client.url(folders['train'])}: no class folders in it")
        check_classes(table, val, self._client.url(folders["val"]))
        arrays: Arrays = {}
        splits, notes = {}, list[str]()
        for split, folder in folders.items():
            listed = self._list_split(folder, table, notes)
            splits[split], arrays[f"{split}.sizes"], arrays[f"{split}.digests"] = listed
        catalog = Catalog(tuple(table), splits["train"], splits["val"])
        facts = {"classes": table, "folders": folders, "etags_are_md5": False, "passed_over": notes}
        if (first := arrays["train.digests"][0]).any():
            # Encryption with one's own keys makes tags that look like a digest and are none: one object shows it.
            data = self._client.get(f"{folders['train']}/{catalog.train.name(0)}", lambda _: None)
            facts["etags_are_md5"] = hashlib.md5(data, usedforsecurity=False).digest() == first.tobytes()
        arrays |= catalog_arrays(catalog)
        digest = hashlib.sha256()
        for name in sorted(arrays):
            digest.update(arrays[name].tobytes())
        path = indexes.path(digest.hexdigest()[:12])
        try:
            write_index(path, arrays, facts)
        except OSError as error:
            raise RequestError(f"{path}: cannot write the bucket's index: {reason(error)}") from None
        return path

    def _class_folders(self, folder: str) -> list[str]:
        return [name for name in self._client.folders(folder) if not is_hidden(name)]

    def _list_split(
        self, folder: str, table: list[str], notes: list[str]
    ) -> tuple[Split, NDArray[np.int64], NDArray[np.uint8]]:
        """Samples, sizes (n,) and digests (n, 16) of all class folders, which are listed side by side."""
        sizes: list[NDArray[np.int64]] = []
        digests: list[NDArray[np.uint8]] = []
        others: list[str] = []

        def class_folder(name: str) -> tuple[list[str], NDArray[np.int64], NDArray[np.uint8]]:
            everything = self._client.list(f"{folder}/{name}")
            entries = _images(everything)
            if len(entries) < len(everything):
                images = {entry.key for entry in entries}
                others.extend(entry.key[len(folder) + 1 :] for entry in everything if entry.key not in images)
            if not entries:
                raise RequestError(f"{self._client.url(folder)}/{name}: no images in this class folder")
            names = [entry.key[len(folder) + 1 :] for entry in entries]
            return names, np.array([entry.size for entry in entries], np.int64), _digests(entries)

        def samples() -> Iterator[tuple[str, int]]:
            for label, (names, sizes_here, digests_here) in enumerate(self._client.map(class_folder, table)):
                sizes.append(sizes_here)
                digests.append(digests_here)
                yield from ((name, label) for name in names)

        split = Split.of(samples())
        if others:
            what = "object that is no image by name", "objects that are no images by name"
            notes.append(skipped_note(self._client.url(folder), others, *what))
        return split, np.concatenate(sizes), np.concatenate(digests)

    def _split_folders(self) -> dict[str, str]:
        """Folder of each split; where one is missing, the refusal names the prefix that may have been meant."""
        present = self._client.names("")
        try:
            return {split: split_folder(present, split, self.location) for split in _SPLITS}
        except RequestError as error:
            meant = None if holds_images(present) else self._meant_instead(sorted(present))
            raise RequestError(f"{error}; did you mean {meant}?" if meant else str(error)) from None

    def _meant_instead(self, present: list[str]) -> str | None:
        """The location just above or below this one that holds images."""
        above = self.location
        for _ in range(2):
            above = above.rsplit("/", 1)[0]
            if above.endswith(":/"):  # gs:/ is left of gs://bucket
                break
            client = BucketClient(above)
            client.anonymous = self._client.anonymous
            if holds_images(client.names("")):
                return above
        below = (name for name in present[:_LOOKED_INTO] if holds_images(self._client.names(name)))
        return next((self._client.url(name) for name in below), None)


def _some_labels(counts: NDArray[np.int64]) -> list[int]:
    """Classes chosen by chance that hold `_LOOKED_AT` samples together, or all; at least one."""
    labels = random.sample(range(len(counts)), len(counts))
    enough = np.searchsorted(np.cumsum(counts[labels]), _LOOKED_AT) + 1
    return labels[:enough]


def _images(entries: list[Entry]) -> list[Entry]:
    """Those that are taken for images, as on disk: by suffix, nothing hidden; in the order of their names."""
    return sorted(entry for entry in entries if is_image(entry.key))


def _digests(entries: list[Entry]) -> NDArray[np.uint8]:
    """MD5 digests (n, 16) from entity tags; zeros where a tag is none."""
    tags = (entry.etag if re.fullmatch("[0-9a-f]{32}", entry.etag) else "0" * 32 for entry in entries)
    return np.frombuffer(bytes.fromhex("".join(tags)), np.uint8).reshape(-1, 16)
