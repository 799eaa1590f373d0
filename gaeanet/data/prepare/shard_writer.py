"""Writes shards: tar files in webdataset's layout, and the index that `gaeanet.data.sources.shards` reads.

Training samples are spread over the shards by one permutation of all of them, so that any few neighbouring shards hold
all classes. What is written depends on the images alone: written twice, it is bit-exact.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gaeanet.data.formats import Unreadable
from gaeanet.data.sources import order
from gaeanet.data.sources.archives import members
from gaeanet.data.sources.index import Arrays, catalog_arrays, write_index
from gaeanet.data.sources.layout import INDEX
from gaeanet.data.sources.source import Contents, Source
from gaeanet.errors import RequestError, RunError
from gaeanet.runtime.files import exists

SHARD_BYTES = 128 << 20
"""A shard is closed when its images have this many bytes: ImageNet becomes about 1,100 shards."""

Sizes = dict[str, NDArray[np.int64]]
Places = list[tuple[int, int, bytes]]
"""(offset, size, MD5 digest) of each image in a shard."""


def write_shards(
    source: Source, sizes: Sizes, root: Path, partial: Path, shard_bytes: int, done: Callable[[int, bool], None]
) -> None:
    """Writes all shards of `source` and their index into `root`; those that are there already are read instead.

    Args:
        sizes: Bytes of each image.
        partial: Directory, on the same disk, for what is not whole yet.
        done: Called with the bytes of images dealt with since the last call, and whether they were there already.

    Raises:
        RequestError: A shard that is there holds something else.
        RunError: An image cannot be read.
    """
    arrays: Arrays = dict(catalog_arrays(source.catalog))
    shards: dict[str, list[tuple[str, int, str]]] = {}
    for split in ("train", "val"):
        count = len(sizes[split])
        sequence = order.epoch_order(count, 0, -1) if split == "train" else np.arange(count)
        filled = np.cumsum(sizes[split][sequence]) - sizes[split][sequence]
        number = np.unique(filled // shard_bytes, return_inverse=True)[1].astype(np.int32)
        where = np.zeros((count, 2), np.int64)
        digests = np.zeros((count, 16), np.uint8)
        shards[split] = []
        keys, labels = _keys(source, split), source.catalog.split(split).labels
        for shard in range(int(number[-1]) + 1):
            indices = sequence[np.searchsorted(number, shard) : np.searchsorted(number, shard, side="right")]
            path = root / f"{split}-{shard:06d}.tar"
            names = [(keys[index], int(labels[index])) for index in indices.tolist()]
            found = exists(path)
            if found:
                places, size, digest = _read_shard(path, names)
            else:
                places, size, digest = _write_shard(path, partial, names, _contents(source, split, indices))
            if [size for _, size, _ in places] != sizes[split][indices].tolist():
                raise RunError(
                    f"{path}: an image changed while it was written: remove this shard and run prepare again"
                )
            where[indices] = [place[:2] for place in places]
            digests[indices] = np.frombuffer(b"".join(place[2] for place in places), np.uint8).reshape(-1, 16)
            shards[split].append((path.name, size, digest))
            done(int(sizes[split][indices].sum()), found)
        inverse = np.empty(count, np.int32)
        inverse[sequence] = number
        arrays |= {f"{split}.shard": inverse, f"{split}.offset": where[:, 0], f"{split}.size": where[:, 1]}
        arrays[f"{split}.digest"] = digests
    facts: dict[str, Any] = {
        "classes": list(source.catalog.classes),
        "class_names": list(source.catalog.class_names),
        "fingerprint": source.catalog.fingerprint,
        "shards": shards,
    }
    write_index(root / INDEX, arrays, facts)


def _contents(source: Source, split: str, indices: NDArray[np.int64]) -> Iterator[bytes]:
    for start in range(0, len(indices), 256):
        part = indices[start : start + 256].tolist()
        for index, data in zip(part, source.fetch(split, part)):
            yield readable(data, source.path(split, index))


def readable(data: Contents, path: str) -> bytes:
    """An image's bytes; raises `RunError` where there are none."""
    if isinstance(data, Unreadable):
        raise RunError(f"{path}: {data.reason}")
    assert isinstance(data, bytes)
    return data


def _keys(source: Source, split: str) -> list[str]:
    """A key for each sample: its name without suffix; dots would end a key, so they become underscores."""
    samples = source.catalog.split(split)
    used: set[str] = set()
    keys = []
    for index in range(len(samples)):
        key = os.path.splitext(samples.name(index))[0].replace(".", "_")
        key = f"{key}__{index}" if key in used else key
        used.add(key)
        keys.append(key)
    return keys


def _write_shard(
    path: Path, partial: Path, names: list[tuple[str, int]], contents: Iterable[bytes]
) -> tuple[Places, int, str]:
    draft = partial / f"{path.name}.{os.getpid()}"
    digest = hashlib.md5(usedforsecurity=False)
    places: Places = []
    with open(draft, "wb") as file:

        def write(data: bytes) -> None:
            file.write(data)
            digest.update(data)

        for (key, label), data in zip(names, contents):
            write(_header(f"{key}.jpg", len(data)))
            places.append((file.tell(), len(data), hashlib.md5(data, usedforsecurity=False).digest()))
            write(data + bytes(-len(data) % 512))
            text = str(label).encode()
            write(_header(f"{key}.cls", len(text)) + text + bytes(-len(text) % 512))
        write(bytes(1024 + (-(file.tell() + 1024) % tarfile.RECORDSIZE)))
        size = file.tell()
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    return places, size, digest.hexdigest()


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _read_shard(path: Path, names: list[tuple[str, int]]) -> tuple[Places, int, str]:
    """What `_write_shard` returned when it wrote `path`."""
    data = path.read_bytes()
    found = [m for m in members(io.BytesIO(data), 0, len(data), str(path)) if m.name.endswith(".jpg")]
    if [member.name for member in found] != [f"{key}.jpg" for key, _ in names]:
        raise RequestError(f"{path}: holds other images than those to write: remove it, or name an empty directory")
    parts = ((m.offset, m.size, data[m.offset : m.offset + m.size]) for m in found)
    places = [(offset, size, hashlib.md5(part, usedforsecurity=False).digest()) for offset, size, part in parts]
    return places, len(data), hashlib.md5(data, usedforsecurity=False).hexdigest()
