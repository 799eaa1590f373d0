"""MDS directories, as mosaicml-streaming writes them: `index.json` and shards for each split.

A shard is a table of offsets, then samples: the sizes of the columns that vary, and the columns one after the other.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from gaeanet.data.sources.ranges import RangeSource
from gaeanet.data.sources.samples import Label, Samples
from gaeanet.data.sources.split_files import by_split
from gaeanet.errors import RequestError, reason
from gaeanet.runtime.names import inside, shortened, shown

_IMAGES = {"jpeg": ".jpg", "png": ".png", "bytes": ".jpg"}
"""Encodings that keep a file's bytes, and how such files are called."""
_NUMBERS = {"int": "q", "int8": "b", "int16": "h", "int32": "i", "int64": "q"}
_NUMBERS |= {f"u{name}": code.upper() for name, code in _NUMBERS.items() if name != "int"}
_LABELS = ("label", "y", "class", "labels", "target", "cls")
_NAMES = ("filename", "file_name", "path", "name")
_MOST_INDEX = 1 << 28


class _Shard(NamedTuple):
    path: Path
    samples: int
    columns: tuple[tuple[str, str, int | None], ...]
    """Name, encoding and, where it is always the same, size of each column."""


def open_mds(root: Path, indexes: list[str]) -> RangeSource:
    """The splits whose `index.json` these are.

    Raises:
        RequestError: An index or shard is missing, cut short, damaged or compressed, or there is no column of images
            or labels, or the labels contradict each other.
    """
    splits = by_split(indexes, root, "index.json files")
    shards = {split: [shard for index in of_split for shard in _shards(index)] for split, of_split in splits.items()}
    units = {split: [shard.path for shard in of_split] for split, of_split in shards.items()}
    samples = Samples(units)
    for split, of_split in shards.items():
        for number, shard in enumerate(of_split):
            for name, label, offset, size in _samples(shard):
                samples.add(split, name, label, number, offset, size)
    return RangeSource(str(root), units, samples, [])


def is_mds(path: Path) -> bool:
    """Whether an `index.json` is one of MDS shards, and not of something else."""
    try:
        if path.stat().st_size > _MOST_INDEX:
            return False
        index = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(index, dict) and isinstance(index.get("shards"), list)


def _shards(index: Path) -> Iterator[_Shard]:
    try:
        for entry in json.loads(index.read_bytes())["shards"]:
            if entry["format"] != "mds":
                raise RequestError(f"{index}: its shards are {shown(str(entry['format']))}, only mds is read")
            path = inside(index.parent, str(entry["raw_data"]["basename"]))
            size, packed = _count(entry["raw_data"]["bytes"]), entry.get("zip_data")
            columns = tuple(
                (str(name), str(encoding), None if size is None else _count(size))
                for name, encoding, size in zip(entry["column_names"], entry["column_encodings"], entry["column_sizes"])
            )
            if not path.exists() and packed and inside(index.parent, str(packed["basename"])).exists():
                raise RequestError(
                    f"{path}: there compressed only ({shown(str(packed['basename']))}): decompress it first"
                )
            if not path.exists():
                raise RequestError(f"{path}: missing, {index} names it: download it again")
            if path.stat().st_size != size:
                raise RequestError(
                    f"{path}: has {path.stat().st_size:,} bytes, {index.name} says {size:,}: download it again"
                )
            samples = _count(entry["samples"])
            if 4 * (samples + 2) > size:
                raise ValueError(f"{samples} samples in {size} bytes")
            yield _Shard(path, samples, columns)
    except OSError as error:
        raise RequestError(f"{index}: cannot be read: {reason(error)}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RequestError(f"{index}: not an index of MDS shards ({reason(error)}): download it again") from None


def _count(value: Any) -> int:
    """A number of bytes or samples; raises ValueError or TypeError where it is none."""
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"{shortened(str(value))} is no number of bytes or samples")
    return value


def _samples(shard: _Shard) -> Iterator[tuple[str, Label | None, int, int]]:
    """Name, label, offset and size of the image of each sample."""
    image, label, name = _columns(shard)
    try:
        with open(shard.path, "rb") as file:
            descriptor, end = file.fileno(), os.fstat(file.fileno()).st_size
            head = os.pread(descriptor, 4 * (shard.samples + 2), 0)
            offsets = struct.unpack(f"<{len(head) // 4}I", head[: len(head) // 4 * 4])
            if len(offsets) != shard.samples + 2 or offsets[0] != shard.samples or offsets[-1] != end:
                raise RequestError(f"{shard.path}: damaged: its table of samples is wrong: download it again")
            for number, (start, stop) in enumerate(pairwise(offsets[1:])):
                where = f"{shard.path}, sample {number}"
                if not len(head) <= start <= stop <= end:
                    raise RequestError(f"{where}: damaged: lies outside of its shard: download it again")
                varying = sum(size is None for _, _, size in shard.columns)
                sizes = iter(struct.unpack(f"<{varying}I", os.pread(descriptor, 4 * varying, start)))
                at, spans = start + 4 * varying, dict[str, tuple[int, int]]()
                for column, _, fixed in shard.columns:
                    size = next(sizes) if fixed is None else fixed
                    spans[column] = at, size
                    at += size
                if at != stop:
                    raise RequestError(f"{where}: damaged: its columns do not fill it: download it again")
                value = _value(os.pread(descriptor, min(spans[label][1], 4096), spans[label][0]), shard, label, where)
                stem = f"{shard.path.stem.replace('.', '_')}_{number:06d}"
                raw_name = os.pread(descriptor, min(spans[name][1], 4096), spans[name][0]) if name else b""
                text = raw_name.decode("utf-8", "surrogateescape")
                yield text or stem + _IMAGES[_encodings(shard)[image]], value, *spans[image]
    except struct.error:
        raise RequestError(f"{shard.path}: damaged or cut short: download it again") from None
    except OSError as error:
        raise RequestError(f"{shard.path}: cannot be read: {reason(error)}") from None


def _encodings(shard: _Shard) -> Mapping[str, str]:
    return {name: encoding for name, encoding, _ in shard.columns}


def _value(data: bytes, shard: _Shard, column: str, where: str) -> Label:
    encoding = _encodings(shard)[column]
    if encoding == "str":
        return data.decode("utf-8", "surrogateescape")
    code = f"<{_NUMBERS[encoding]}"
    if len(data) != struct.calcsize(code):
        raise RequestError(
            f"{where}: its {shown(column)} has {len(data)} bytes, {encoding} has {struct.calcsize(code)}"
        )
    value: Any = struct.unpack(code, data)[0]
    return int(value)


def _columns(shard: _Shard) -> tuple[str, str, str | None]:
    encodings = _encodings(shard)
    has = ", ".join(f"{shown(shortened(name))} ({shown(encoding)})" for name, encoding in encodings.items())
    images = [name for name, encoding in encodings.items() if encoding in _IMAGES]
    labels = [name for name in _LABELS if encodings.get(name) in (*_NUMBERS, "str")]
    if len(images) != 1:
        raise RequestError(
            f"{shard.path}: must have one column of images in files' form (jpeg, png, bytes), its columns are {has}"
        )
    if not labels:
        raise RequestError(f"{shard.path}: has no column of labels (called label or y), its columns are {has}")
    return images[0], labels[0], next((name for name in _NAMES if encodings.get(name) == "str"), None)
