"""TFRecords with an image in each, as Google's scripts and TensorFlow Datasets write ImageNet, without TensorFlow.

A record is its length, a checksum of that, a message of named features (`tf.train.Example`), and a checksum of that.
Only headers and small features are read beforehand; an image is one read at its record, which must agree with its
checksum.
"""

from __future__ import annotations

import mmap
import os
import re
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gaeanet.data.formats import suffix_of
from gaeanet.data.sources.catalog import WNID
from gaeanet.data.sources.ranges import RangeSource
from gaeanet.data.sources.samples import Label, Samples
from gaeanet.data.sources.split_files import by_split, split_of
from gaeanet.errors import RequestError, RunError, reason
from gaeanet.runtime.files import exists, read_json, read_text
from gaeanet.runtime.imports import needed
from gaeanet.runtime.names import shortened, shown

_NAMED = re.compile(r".*\.tfrec(ord)?s?($|[-.]).*|(.*/)?(train|validation|val|test)-\d{5}-of-\d{5}", re.IGNORECASE)
_INFO = "dataset_info.json"
_MOST_INFO = 1 << 28
_HEADER, _FOOTER = 12, 4
_IMAGES = (b"image/encoded", b"image")
_LABELS = (b"image/class/label", b"label")
_NAMES = (b"image/filename", b"file_name", b"filename")
_SYNSET = b"image/class/synset"
_WANTED = {*_IMAGES, *_LABELS, *_NAMES, _SYNSET}

Span = tuple[int, int]
"""Where something starts and ends in a file."""


def is_tfrecord(file: str) -> bool:
    """Whether a file holds TFRecords, by its name."""
    return bool(_NAMED.fullmatch(file.rsplit("/", 1)[-1]))


def open_tfrecords(root: Path, files: list[str]) -> RangeSource:
    """The TFRecords `files` below `root`.

    Raises:
        RequestError: One is missing, cut short or damaged, or its examples have no image or label, or contradict each
            other.
    """
    return TFRecordSource(str(root), by_split(files, root, "TFRecords"))


class TFRecordSource(RangeSource):
    """TFRecords; the class names of TensorFlow Datasets are beside them (`label.labels.txt`).

    Raises:
        RequestError: See `open_tfrecords`.
    """

    def __init__(self, location: str, units: dict[str, list[Path]]) -> None:
        folder = units["train"][0].parent
        samples = Samples(units, _class_names(folder))
        expected = _expected(folder)
        self._crc = needed("google_crc32c", "tfrecord").value
        starts = {}
        for split, paths in units.items():
            starts[split] = array("q")
            for number, path in enumerate(paths):
                for start, name, label, wnid, (begin, end) in _examples(path, self._masked):
                    samples.add(split, name, label, number, begin, end - begin, wnid)
                    starts[split].append(start)
            if (count := len(starts[split])) != expected.get(split, count):
                raise RequestError(
                    f"{folder}: {count:,} {split} examples, {_INFO} says {expected[split]:,}: download it again"
                )
        super().__init__(location, units, samples, [])
        self._starts = {split: np.array(starts[split], np.int64)[self._order[split]] for split in units}

    def _masked(self, data: bytes) -> int:
        crc = self._crc(data)
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

    def read(self, split: str, index: int) -> bytes:
        """The image in an example; raises `RunError` where the example does not agree with its checksum."""
        units, offsets, sizes = self._ranges[split]
        start, unit = int(self._starts[split][index]), int(units[index])
        length = int.from_bytes(self._pread(split, index, unit, start, 8), "little")
        image, size = int(offsets[index]) - start, int(sizes[index])
        if image + size > _HEADER + length:
            raise RunError(f"{self.path(split, index)}: the file has changed since it was opened")
        record = self._pread(split, index, unit, start, _HEADER + length + _FOOTER)
        if self._masked(record[_HEADER:-_FOOTER]) != int.from_bytes(record[-_FOOTER:], "little"):
            raise RunError(f"{self.path(split, index)}: does not agree with its checksum: download the file again")
        return record[image : image + size]


def _examples(path: Path, masked: object) -> Iterator[tuple[int, str, Label | None, str | None, Span]]:
    """Start of the record, name, label, WordNet id and span of the image of each example in a file."""
    assert callable(masked)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not size:
                raise RequestError(f"{path}: empty: download it again")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                at = number = 0
                while at < size:
                    where = f"{path}, record {number}"
                    length = int.from_bytes(data[at : at + 8], "little")
                    if at + _HEADER <= size and masked(data[at : at + 8]) != int.from_bytes(
                        data[at + 8 : at + 12], "little"
                    ):
                        packed = " (compressed: decompress it with gunzip)" if data[:2] == b"\x1f\x8b" else ""
                        raise RequestError(f"{where}: not a TFRecord, or damaged{packed}: download it again")
                    end = at + _HEADER + length
                    if end + _FOOTER > size:
                        raise RequestError(f"{where}: cut short: download it again")
                    try:
                        features = _example(data, at + _HEADER, end)
                    except (ValueError, IndexError):
                        raise RequestError(f"{where}: not a tf.train.Example, or damaged: download it again") from None
                    yield (at, *_facts(where, f"{path.name.split('.')[0]}_{number:06d}", data, features))
                    at, number = end + _FOOTER, number + 1
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {reason(error)}") from None


def _facts(
    where: str, default: str, data: mmap.mmap, features: dict[bytes, Span | int | None]
) -> tuple[str, Label | None, str | None, Span]:
    def first(keys: tuple[bytes, ...]) -> Span | int | None:
        return next((features[key] for key in keys if features.get(key) is not None), None)

    def text(value: Span | int | None) -> str | None:
        if isinstance(value, tuple):
            return data[value[0] : min(value[1], value[0] + 4096)].decode("utf-8", "surrogateescape")
        return None

    image = first(_IMAGES)
    if not isinstance(image, tuple):
        raise RequestError(f"{where}: has no image (image/encoded or image)")
    value = first(_LABELS)
    label = text(value) if isinstance(value, tuple) else value
    synset = text(features.get(_SYNSET))
    if label is None and synset is None:
        raise RequestError(f"{where}: has no label (image/class/label, image/class/synset or label)")
    if synset is not None and not WNID.fullmatch(synset):
        raise RequestError(f"{where}: its synset must be a WordNet id, is {shown(shortened(synset))!r}")
    name = text(first(_NAMES)) or default + suffix_of(data[image[0] : image[0] + 8])
    return name, synset if label is None else label, synset, image


def _example(data: mmap.mmap, start: int, end: int) -> dict[bytes, Span | int | None]:
    """The first value of each wanted feature of an example: a number, or where its bytes are."""
    values = dict[bytes, Span | int | None]()
    for number, features in _fields(data, start, end):
        if number != 1 or not isinstance(features, tuple):
            continue
        for _, entry in _fields(data, *features):
            parts = dict(_fields(data, *_span(entry)))
            key = _span(parts[1]) if 1 in parts else (0, 0)
            name = data[key[0] : min(key[1], key[0] + 64)]
            if name in _WANTED and 2 in parts:
                values[name] = _value(data, *_span(parts[2]))
    return values


def _value(data: mmap.mmap, start: int, end: int) -> Span | int | None:
    for kind, values in _fields(data, start, end):
        if kind == 1:
            return next((_span(value) for number, value in _fields(data, *_span(values)) if number == 1), None)
        if kind == 3:
            for number, value in _fields(data, *_span(values)):
                if number == 1:  # packed, or one by one as old writers have it
                    number = value if isinstance(value, int) else _varint(data, *value)[0]
                    return number - (1 << 64) if number >> 63 else number
    return None


def _span(value: Span | int) -> Span:
    if isinstance(value, int):
        raise ValueError("a number where bytes belong")
    return value


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, Span | int]]:
    """Number and value of each field of a protobuf message; raises `ValueError` where it is none."""
    while start < end:
        tag, start = _varint(data, start, end)
        kind = tag & 7
        if kind == 0:
            value, start = _varint(data, start, end)
            yield tag >> 3, value
        elif kind == 2:
            length, start = _varint(data, start, end)
            if start + length > end:
                raise ValueError("a field leads out of its message")
            yield tag >> 3, (start, start + length)
            start += length
        elif kind in (1, 5):
            start += 8 if kind == 1 else 4
            if start > end:
                raise ValueError("a field leads out of its message")
        else:
            raise ValueError("no such kind of field")


def _varint(data: mmap.mmap, start: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while start < end and shift < 70:
        byte = data[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, start
        shift += 7
    raise ValueError("a number does not end")


def _class_names(folder: Path) -> tuple[str, ...] | None:
    path = folder / "label.labels.txt"
    try:
        return tuple(read_text(path, _MOST_INFO).splitlines()) if exists(path) else None
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: cannot be read: {reason(error)}") from None


def _expected(folder: Path) -> dict[str, int]:
    """Examples of each split, as TensorFlow Datasets has counted them."""
    path = folder / _INFO
    if not exists(path):
        return {}
    try:
        splits = read_json(path, _MOST_INFO)["splits"]
        counts = {split_of(str(split["name"])): sum(map(int, split["shardLengths"])) for split in splits}
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:  # the last of Infinity
        raise RequestError(f"{path}: not the table of TensorFlow Datasets ({reason(error)}): remove it") from None
    return {split: count for split, count in counts.items() if split}
