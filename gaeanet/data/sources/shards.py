"""Images in tar files with an index of where each one lies: few large files instead of a million small ones.

The shards are plain tar in webdataset's layout (`<key>.jpg`, `<key>.cls`), which any tool can read. The index beside
them (`index.safetensors`) holds the catalog and, for each sample, its shard, offset, size and digest, so that any
sample is one ranged read, and the order is nothing a stream consumes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gaeanet.data.sources import order
from gaeanet.data.sources.catalog import check_names
from gaeanet.data.sources.index import Arrays, catalog_from, of_type, read_index, within
from gaeanet.data.sources.layout import INDEX
from gaeanet.data.sources.source import Source
from gaeanet.data.storage.bucket import BucketClient
from gaeanet.data.storage.bucket_index import BucketIndexes
from gaeanet.data.storage.local_copy import Check, LocalCopy, ShardWindow, directory_of
from gaeanet.errors import RequestError, RunError, reason
from gaeanet.runtime.files import exists, expanded
from gaeanet.runtime.names import inside

SHUFFLE_WINDOW = 16
"""Shards whose samples are mixed in an epoch: some twenty thousand images, in two gigabytes."""

INDEX_FORMAT = 2
"""Of the index of shards. In format 1 digests are MD5, and shards have one of their own, which is ignored."""

DIGEST_BYTES = 20
_MD5_BYTES = 16

_RANGE = 8 << 20
"""Bytes of one request when a whole shard is fetched."""


def digest_of_image(data: bytes, length: int = DIGEST_BYTES) -> bytes:
    """What the index says of an image's bytes, to notice damage: SHA-1, for which processors have instructions.

    Args:
        length: Bytes of the digest; 16 for the MD5 of an older index.
    """
    digest = hashlib.md5 if length == _MD5_BYTES else hashlib.sha1
    return digest(data, usedforsecurity=False).digest()


class Shard(NamedTuple):
    """A tar file of the set: its name and bytes."""

    name: str
    size: int


class ShardSource(Source):
    """Shards in a directory.

    Raises:
        RequestError: The index cannot be read, or a shard is missing or has another size than the index says.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        self.notes: list[str] = []
        self._root = expanded(location)
        self._index = self._root / INDEX
        self._files: dict[str, int] = {}
        self._load()
        check_names(self.catalog, f"{location}/{INDEX}")
        for shard in self._all_shards():
            path = inside(self._root, shard.name)
            self._check_size(shard, path.stat().st_size if exists(path) else None)

    def _load(self) -> None:
        arrays, facts = read_index(self._index, f"{self.location}/{INDEX}")
        try:
            self._shards = {split: _shards(facts["shards"][split]) for split in ("train", "val")}
            self.catalog = catalog_from(arrays, facts["classes"])
            self._where = {
                split: _places(arrays, split, shards, len(self.catalog.split(split)))
                for split, shards in self._shards.items()
            }
        except (KeyError, TypeError, ValueError):
            raise RequestError(
                f"{self.location}/{INDEX}: not the index of shards: run gaeanet prepare --shards"
            ) from None

    def __getstate__(self) -> dict[str, object]:
        # A worker maps the index itself instead of getting a copy of a million entries.
        mapped = ("catalog", "_shards", "_where", "_files")
        return {key: value for key, value in self.__dict__.items() if key not in mapped}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._files = {}
        self._load()

    def _all_shards(self) -> list[Shard]:
        return self._shards["train"] + self._shards["val"]

    def _check_size(self, shard: Shard, size: int | None) -> None:
        if size != shard.size:
            what = "missing" if size is None else f"has {size:,} bytes, the index says {shard.size:,}"
            raise RequestError(f"{self.location}/{shard.name}: {what}: was a copy interrupted?")

    def size(self, split: str, index: int) -> int:
        return int(self._where[split][2][index])

    def known_sizes(self, split: str) -> NDArray[np.int64]:
        return self._where[split][2]

    def path(self, split: str, index: int) -> str:
        shard = self._shards[split][int(self._where[split][0][index])].name
        return f"{self.location}/{shard}: {self.catalog.split(split).name(index)}"

    def epoch_order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        return order.windowed_order(self._where["train"][0], len(self._shards["train"]), SHUFFLE_WINDOW, seed, epoch)

    def read(self, split: str, index: int) -> bytes:
        shard, offset, size = self._span_of(split, index)
        try:
            data = self._read_file(inside(self._root, shard.name), offset, size)
        except OSError as error:
            raise RunError(f"{self.path(split, index)}: cannot be read: {reason(error)}") from None
        if wrong := self._check(split, index)(data):
            raise RunError(f"{self.path(split, index)}: {wrong}: copy or prepare the shard again")
        return data

    def _span_of(self, split: str, index: int) -> tuple[Shard, int, int]:
        shard, offset, size, _ = self._where[split]
        return self._shards[split][int(shard[index])], int(offset[index]), int(size[index])

    def _check(self, split: str, index: int) -> Check:
        digest = self._where[split][3][index].tobytes()

        def check(data: bytes) -> str | None:
            right = digest_of_image(data, len(digest)) == digest
            return None if right else f"the {len(data)} bytes have another digest than the index says"

        return check

    def _read_file(self, path: Path, offset: int, size: int) -> bytes:
        descriptor = self._files.get(str(path))
        if descriptor is None:
            if len(self._files) >= 64:  # of thousands of shards, those of the window are in use
                os.close(self._files.pop(next(iter(self._files))))
            descriptor = self._files[str(path)] = os.open(path, os.O_RDONLY)
        return os.pread(descriptor, size, offset)


def _shards(entries: Iterable[Any]) -> list[Shard]:
    """What an index says of the shards of a split; raises TypeError or ValueError where that makes no sense."""
    shards = [Shard(*entry[:2]) for entry in entries]
    for shard in shards:
        if not isinstance(shard.name, str) or type(shard.size) is not int:
            raise TypeError("not a shard")
    if not all(0 <= shard.size < 2**62 for shard in shards):
        raise ValueError("shards of no size")
    return shards


def _places(arrays: Arrays, split: str, shards: list[Shard], samples: int) -> tuple[NDArray[Any], ...]:
    """Shard, offset, size and digest of each sample; raises ValueError where that is not within a shard."""
    digest_bytes = _MD5_BYTES if arrays[f"{split}.digest"].shape[1:] == (_MD5_BYTES,) else DIGEST_BYTES
    types: dict[str, tuple[type[np.generic], list[int]]] = {
        "shard": (np.int32, []), "offset": (np.int64, []), "size": (np.int64, []), "digest": (np.uint8, [digest_bytes])
    }  # fmt: skip
    found = tuple(of_type(arrays[f"{split}.{field}"], kind, *shape) for field, (kind, shape) in types.items())
    shard, offset, size, _ = found
    if {len(array) for array in found} != {samples} or not within(shard, len(shards)):
        raise ValueError("samples in no shard")
    ends = np.array([shard.size for shard in shards], np.int64)[shard]
    if (offset < 0).any() or (size < 0).any() or (size > ends).any() or (offset > ends - size).any():
        raise ValueError("samples beyond their shard")
    return found


class BucketShardSource(ShardSource):
    """Shards in a bucket: whole ones are fetched when first needed, and kept for the window or in a local copy.

    Args:
        cache: Directory for the index.
        copy: Directory for a local copy, None to stream: then `cache` holds the shards that are mixed at the moment.
        copy_limit: Bounds the bytes of the local copy; what lies beyond is read sample by sample.

    Raises:
        RequestError: The index cannot be read, or a shard is missing or has another size than the index says.
    """

    start_method = "forkserver"

    def __init__(
        self, client: BucketClient, *, cache: Path, copy: Path | None = None, copy_limit: int | None = None
    ) -> None:
        self.location = client.location
        self.notes = ["read without credentials"] * client.anonymous
        self._client = client
        self._files = {}
        self._index = self._cached_index(BucketIndexes(client.location, cache, INDEX))
        self._load()
        check_names(self.catalog, client.url(INDEX))
        present = {entry.key: entry.size for entry in client.list("")}
        for shard in self._all_shards():
            self._check_size(shard, present.get(shard.name))
        self._copy: LocalCopy | None = None
        if copy is not None:
            sizes = {
                split: np.array([shard.size for shard in self._shards[split]], np.int64) for split in ("val", "train")
            }
            self._copy = LocalCopy(directory_of(client.location, copy), sizes, copy_limit)
            self.notes.append(self._copy.note)
        self._window = self._opened_window(cache) if copy is None else None

    def _opened_window(self, cache: Path) -> ShardWindow | None:
        """A folder for the shards that are mixed at the moment: this epoch's, and as many that go out or come in."""
        most = 2 * (SHUFFLE_WINDOW + 1)
        needed = most * max(shard.size for shard in self._all_shards())
        folder = directory_of(self.location, cache)
        folder = folder.with_name(f"{folder.name}.window")
        if not ShardWindow.has_space(folder, needed):
            self.notes.append(
                f"{folder}: has no {needed / 1e9:.1f} GB free for the shards that are mixed now: each image is a "
                "request of its own (data.data_download_dir names another folder)"
            )
            return None
        return ShardWindow(folder, most)

    def _cached_index(self, indexes: BucketIndexes) -> Path:
        """The index's copy on this machine, fetched by one process where it is not there or has changed since."""
        entry = self._client.head(INDEX)
        if entry is None:
            raise RequestError(f"{self._client.url(INDEX)}: not found: run gaeanet prepare --shards and upload it too")
        path = indexes.path(hashlib.sha256(f"{entry.etag} {entry.size}".encode()).hexdigest()[:12])
        with indexes.lock():
            if not exists(path):
                data = self._client.get(INDEX, lambda data: None if len(data) == entry.size else "its length is wrong")
                draft = path.with_suffix(f".{os.getpid()}")
                try:
                    draft.write_bytes(data)
                    draft.replace(path)
                except OSError as error:
                    raise RequestError(f"{path}: cannot keep the index of shards: {reason(error)}") from None
            indexes.use(path)
        return path

    @property
    def retries(self) -> int:
        return self._client.retries

    def read(self, split: str, index: int) -> bytes:
        if self._copy is None:  # a whole shard for a single image would be too much
            return self._read_one(split, index)
        return next(self.fetch(split, [index]))

    def fetch(self, split: str, indices: Iterable[int]) -> Iterator[bytes]:
        indices = list(indices)
        for number in sorted({int(self._where[split][0][index]) for index in indices}):
            shard = self._shards[split][number]
            if self._copy and self._copy.keeps(split, number):
                self._fetch_shard(self._copy, split, number)
            elif self._window:
                with contextlib.suppress(RunError):  # reading sample by sample may still work, or reports what is wrong
                    if self._fetch_shard(self._window, split, number):
                        self._window.tidy()
                    self._window.use(shard.name)
        return self._client.map(partial(self._read_one, split), indices)

    def fetch_scattered(self, split: str, indices: Iterable[int]) -> Iterator[bytes]:
        if self._copy:
            return self.fetch(split, indices)
        # A window of whole shards would be filled for one image of each, and empty of those that the epoch is at.
        return self._client.map(partial(self._read_one, split), list(indices))

    def _read_one(self, split: str, index: int) -> bytes:
        shard, offset, size = self._span_of(split, index)
        check = self._check(split, index)
        copied = self._copy and self._copy.keeps(split, int(self._where[split][0][index]))
        copy = self._copy if copied else self._window
        if copy:
            data = copy.read_range(shard.name, offset, size)
            if data is not None and not check(data):
                return data  # a copy that a disk has damaged, or somebody removed, is skipped
        try:
            return self._client.get_range(shard.name, offset, size, check)
        except RunError as error:
            raise RunError(f"{error} (sample {self.catalog.split(split).name(index)})") from None

    def _fetch_shard(self, copy: LocalCopy, split: str, number: int) -> bool:
        """Fetches a whole shard, unless it is there; whether this process did."""
        shard = self._shards[split][number]
        path = inside(copy.root, shard.name)
        if _has_size(path, shard.size):
            return False
        with copy.lock(shard.name):
            if _has_size(path, shard.size):
                return False  # another process was faster
            with copy.writing(shard.name) as draft, open(draft, "wb+") as file:
                for data in self._client.map(partial(self._read_range, shard), range(0, shard.size, _RANGE)):
                    file.write(data)
                file.flush()
                self._check_images(file.fileno(), split, number)
        return True

    def _check_images(self, file: int, split: str, number: int) -> None:
        """Raises `RunError` unless all images of a shard that was fetched agree with their digests."""
        shards, offsets, sizes, _ = self._where[split]
        for index in np.flatnonzero(shards == number).tolist():
            data = os.pread(file, int(sizes[index]), int(offsets[index]))
            if wrong := self._check(split, index)(data):
                url = self._client.url(self._shards[split][number].name)
                raise RunError(f"{url}: {self.catalog.split(split).name(index)}: {wrong}: upload it again")

    def _read_range(self, shard: Shard, start: int) -> bytes:
        return self._client.get_range(shard.name, start, min(_RANGE, shard.size - start), lambda _: None)


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False
