"""Writes shards: tar files in webdataset's layout, and the index that `gaeanet.data.sources.shards` reads.

Where each image belongs is known beforehand, so it is written there directly, in whatever order the source is read
fastest: every byte is read, hashed and written once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gaeanet.data.prepare.journal import Journal
from gaeanet.data.prepare.pipeline import read_images, worked_on
from gaeanet.data.prepare.shard_layout import Layout
from gaeanet.data.sources.index import Arrays, catalog_arrays, write_index
from gaeanet.data.sources.layout import INDEX
from gaeanet.data.sources.shards import DIGEST_BYTES, INDEX_FORMAT, digest_of_image
from gaeanet.data.sources.source import Source
from gaeanet.errors import RunError

SHARD_BYTES = 128 << 20
"""A shard is closed when its images have this many bytes: ImageNet becomes about 1,100 shards."""

_AT_ONCE = 1 << 20
"""Bytes that are gathered before they are written."""
_MOST_PARTS = 900
"""Pieces of memory that they may be: the system takes 1,024."""

_OPENED = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


def write_shards(
    source: Source, root: Path, journals: Path, shard_bytes: int, done: Callable[[int, bool], None]
) -> None:
    """Writes all shards of `source` and their index into `root`, but for images that an earlier attempt has written.

    Args:
        journals: Directory of what says which those are.
        done: Called with the bytes of images dealt with since the last call, and whether they were there already.

    Raises:
        RunError: An image cannot be read, or is not what it was when its shard was laid out.
        OSError: A shard cannot be written.
    """
    arrays: Arrays = dict(catalog_arrays(source.catalog))
    shards: dict[str, list[tuple[str, int]]] = {}
    for split in ("train", "val"):
        layout = Layout(
            source.catalog.split(split), _sizes(source, split, journals), shard_bytes, spread=split == "train"
        )
        paths = [root / f"{split}-{number:06d}.tar" for number in range(len(layout.lengths))]
        with Journal(journals / f"{split}.digests", len(layout.sizes), DIGEST_BYTES) as journal:
            writer = _Writer(source, split, layout, paths, journal)
            missing = writer.missing(done)
            parts = source.reading_parts(split) if source.sequential else layout.parts()
            for size in worked_on(source, [part[missing[part]] for part in parts], writer.write):
                done(size, False)
            list(worked_on(source, paths, _flush))
            arrays[f"{split}.digest"] = journal.records()
        arrays |= {f"{split}.shard": layout.shard, f"{split}.offset": layout.offset, f"{split}.size": layout.sizes}
        shards[split] = [(path.name, int(length)) for path, length in zip(paths, layout.lengths)]
    facts: dict[str, Any] = {
        "format": INDEX_FORMAT,
        "classes": list(source.catalog.classes),
        "class_names": list(source.catalog.class_names),
        "fingerprint": source.catalog.fingerprint,
        "shards": shards,
    }
    write_index(root / INDEX, arrays, facts)


class _Writer:
    """Writes images into the shards of a split, each with headers and label, and notes their digests."""

    def __init__(self, source: Source, split: str, layout: Layout, paths: list[Path], journal: Journal) -> None:
        self._source, self._split = source, split
        self._layout, self._paths, self._journal = layout, paths, journal
        for path, length in zip(paths, layout.lengths.tolist()):
            _allocate(path, length, source.sequential)

    def missing(self, done: Callable[[int, bool], None]) -> NDArray[np.bool_]:
        """Which images are still to be written, (samples,): those that are there are read and compared."""
        records = self._journal.records()
        missing: NDArray[np.bool_] = records.max(axis=1) == 0
        there = self._layout.sequence[~missing[self._layout.sequence]].tolist()
        for number, indices in groupby(there, lambda index: int(self._layout.shard[index])):
            file = os.open(self._paths[number], _OPENED)
            try:
                for index in indices:
                    missing[index] = not self._is_written(file, index, records[index].tobytes())
                    if not missing[index]:
                        done(int(self._layout.sizes[index]), True)
            finally:
                os.close(file)
        return missing

    def _is_written(self, file: int, index: int, digest: bytes) -> bool:
        head, tail = self._layout.around(index)
        size, offset = int(self._layout.sizes[index]), int(self._layout.offset[index])
        found = os.pread(file, len(head) + size + len(tail), offset - len(head))
        data = found[len(head) : len(head) + size]
        return found == b"".join((head, data, tail)) and digest_of_image(data) == digest

    def write(self, part: NDArray[np.int64]) -> int:
        """Writes images, and waits for the disk where they are those of a shard; returns their bytes."""
        total = 0
        images = read_images(self._source, self._split, part)
        for number, group in groupby(images, lambda image: int(self._layout.shard[image[0]])):
            path = self._paths[number]
            file = os.open(path, _OPENED)
            try:
                total += self._write(file, path, group)
                if not self._source.sequential:
                    os.fsync(file)
            except OSError as error:
                error.filename = str(path)
                raise
            finally:
                os.close(file)
        return total

    def _write(self, file: int, path: Path, images: Iterator[tuple[int, bytes]]) -> int:
        """Writes images into a shard: neighbours, which have no gap between them, in one call."""
        total = begin = end = 0
        parts, digests = list[bytes](), list[tuple[int, bytes]]()

        def write() -> None:
            if parts:
                _write_at(file, parts, begin)
            for index, digest in digests:
                self._journal.note(index, digest)
            parts.clear()
            digests.clear()

        for index, data in images:
            if len(data) != self._layout.sizes[index]:
                raise RunError(
                    f"{path}: an image changed while it was written: remove {path.parent} and run prepare again"
                )
            head, tail = self._layout.around(index)
            start = int(self._layout.offset[index]) - len(head)
            if start != end or end - begin > _AT_ONCE or len(parts) > _MOST_PARTS:
                write()
                begin = end = start
            parts += head, data, tail
            digests.append((index, digest_of_image(data)))
            end += len(head) + len(data) + len(tail)
            total += len(data)
        write()
        return total


def _sizes(source: Source, split: str, journals: Path) -> NDArray[np.int64]:
    """Bytes of each image; where they cost the reading of all of them, they are kept for another attempt."""
    if not source.sequential:
        return source.sizes(split)
    path = journals / f"{split}.layout"
    if path.exists():
        return np.frombuffer(path.read_bytes(), np.int64)
    parts = source.reading_parts(split)
    sizes = np.empty(len(source.catalog.split(split)), np.int64)

    def sizes_of(part: NDArray[np.int64]) -> list[int]:
        return [source.size(split, index) for index in part.tolist()]

    for part, found in zip(parts, worked_on(source, parts, sizes_of)):
        sizes[part] = found
    draft = path.with_suffix(".draft")
    draft.write_bytes(sizes.tobytes())
    draft.replace(path)
    return sizes


def _allocate(path: Path, length: int, scattered: bool) -> None:
    """Gives a shard its length; where its images come in any order, allocates it, in one piece if the disk can."""
    file = os.open(path, _OPENED, 0o666)
    try:
        if os.fstat(file).st_size != length:
            os.ftruncate(file, 0)
            if scattered and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file, 0, length)
            else:
                os.ftruncate(file, length)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(file)


def _write_at(file: int, parts: list[bytes], offset: int) -> None:
    written = os.pwritev(file, parts, offset)
    if written < sum(map(len, parts)):  # nearly always a disk that is full, which the next call reports
        rest = memoryview(b"".join(parts))
        while written < len(rest):
            written += os.pwrite(file, rest[written:], offset + written)


def _flush(path: Path) -> None:
    """Waits until a file is on the disk, and reports what went wrong on the way."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
