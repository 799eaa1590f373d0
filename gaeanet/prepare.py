"""`gaeanet prepare`: from archives, folders or a bucket to class folders or shards; killed anywhere, it continues.

Every file is written under another name and renamed when it is whole. Until the end a marker lies beside them, so that
nobody trains on half of the images.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gaeanet.data.catalog import check_imagenet_is_whole
from gaeanet.data.folder import FolderSource, read_table, table_of
from gaeanet.data.labels import validation_classes
from gaeanet.data.layout import (
    ARCHIVES,
    IMAGE_SUFFIXES,
    INDEX,
    SPLIT_FOLDERS,
    TABLE,
    UNFINISHED,
    flat_folder,
    images_root,
)
from gaeanet.data.shard_writer import SHARD_BYTES, Sizes, write_shards
from gaeanet.data.source import Source
from gaeanet.data.sources import open_location
from gaeanet.errors import RequestError, RunError, reason

_PARTIAL = ".partial"
_CHUNK = 256
_NAMED = 20
"""Images that a report names; the rest are counted."""


def prepare(location: str, destination: Path, *, shards: bool, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes the images at `location` into `destination`, as class folders or as shards.

    Raises:
        RequestError: `location` cannot be read or is not whole, or `destination` holds something else.
        RunError: An image cannot be read or written; run again, it continues.
    """
    source = open_material(location)
    check_imagenet_is_whole(source.catalog, location)
    facts = {"fingerprint": source.catalog.fingerprint, "shards": shards, "shard_bytes": shard_bytes if shards else 0}
    if _is_done(destination, facts):
        print(f"{destination}: already holds all of {location}")
        return
    sizes = _sizes(source)
    total = int(sum(array.sum() for array in sizes.values()))
    catalog = source.catalog
    counts = (
        f"{len(catalog.classes)} classes, {len(catalog.train):,} training and {len(catalog.val):,} validation images"
    )
    print(f"{location}: {counts}, {total / 1e9:.3g} GB (fingerprint {catalog.fingerprint})")
    for note in source.notes:
        print(note)
    _begin(destination, facts, total)
    partial = destination / _PARTIAL
    progress = _Progress(total)
    try:
        if shards:
            write_shards(source, sizes, destination, partial, shard_bytes, progress.add)
        else:
            _write_folders(source, sizes, destination, partial, progress)
        draft = partial / TABLE
        draft.write_text(json.dumps(table_of(catalog), indent=1), encoding="utf-8")
        draft.replace(destination / TABLE)
        shutil.rmtree(partial)
        (destination / UNFINISHED).unlink()
    except OSError as error:
        raise RunError(
            f"{error.filename or destination}: cannot be written: {reason(error)}; run again, it continues"
        ) from None
    found = open_location(str(destination)).catalog
    if found.fingerprint != catalog.fingerprint:
        (destination / TABLE).unlink()
        raise RunError(f"{destination}: holds other images too: move them away, or name an empty directory")
    print(f"wrote {destination}: {counts}")


def open_material(location: str) -> Source:
    """The images at `location`, a flat validation folder included if its classes can be known."""
    root = Path(location).expanduser()
    if (
        "://" in location
        or not root.is_dir()
        or any((root / name).exists() for name in (INDEX, *ARCHIVES.values(), UNFINISHED))
    ):
        return open_location(location)
    images = images_root(root)
    val = next((images / name for name in SPLIT_FOLDERS["val"] if (images / name).is_dir()), None)
    if val is None or not (images / "train").is_dir():
        return FolderSource(location)
    classes = sorted(path.name for path in (images / "train").iterdir() if path.is_dir())
    flat = flat_folder(val)
    files = sorted(path.name for path in flat.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files or flat.name in classes:
        return FolderSource(location)
    return FolderSource(location, validation_classes(images if images != root else root, files, classes))


def _sizes(source: Source) -> Sizes:
    return {
        split: np.fromiter((source.size(split, k) for k in range(len(source.catalog.split(split)))), np.int64)
        for split in ("train", "val")
    }


def _is_done(destination: Path, facts: dict[str, Any]) -> bool:
    """Whether the same images are there already, in the same form; raises `RequestError` where others are."""
    if (destination / UNFINISHED).exists() or not (destination / TABLE).exists():
        return False
    if read_table(destination / TABLE)["fingerprint"] != facts["fingerprint"]:
        raise RequestError(f"{destination}: already holds other images: name another directory")
    if (destination / INDEX).exists() != facts["shards"]:
        raise RequestError(f"{destination}: already holds these images in the other form: name another directory")
    return True


def _begin(destination: Path, facts: dict[str, Any], total: int) -> None:
    marker = destination / UNFINISHED
    try:
        if marker.exists():
            if json.loads(marker.read_text(encoding="utf-8")) != facts:
                raise RequestError(
                    f"{destination}: prepare was stopped here while it wrote other images, or another form: "
                    "remove this directory, or name another"
                )
        elif destination.exists() and any(destination.iterdir()):
            raise RequestError(
                f"{destination}: is not empty: name a directory that gaeanet prepare can have for itself"
            )
        else:
            destination.mkdir(parents=True, exist_ok=True)
            if total > (free := shutil.disk_usage(destination).free):
                raise RequestError(
                    f"{destination}: {total / 1e9:.3g} GB are to be written, {free / 1e9:.3g} GB are free"
                )
            draft = destination / f".{UNFINISHED}"
            draft.write_text(json.dumps(facts), encoding="utf-8")
            draft.replace(marker)
        shutil.rmtree(destination / _PARTIAL, ignore_errors=True)
        (destination / _PARTIAL).mkdir()
    except OSError as error:
        raise RequestError(f"{destination}: cannot be written: {reason(error)}") from None
    except ValueError:
        raise RequestError(f"{marker}: damaged: remove {destination} and run again") from None


def _write_folders(source: Source, sizes: Sizes, destination: Path, partial: Path, progress: _Progress) -> None:
    draft = partial / str(os.getpid())
    for split in ("train", "val"):
        names, count = source.catalog.split(split), len(sizes[split])
        for start in range(0, count, _CHUNK):
            missing = []
            for index in range(start, min(start + _CHUNK, count)):
                path = destination / split / names.name(index)
                if path.exists() and path.stat().st_size == sizes[split][index]:
                    progress.add(int(sizes[split][index]))  # renamed into place, hence whole
                else:
                    missing.append(index)
            for index, data in zip(missing, source.fetch(split, missing)):
                assert isinstance(data, bytes)
                path = destination / split / names.name(index)
                path.parent.mkdir(parents=True, exist_ok=True)
                draft.write_bytes(data)
                draft.replace(path)
                progress.add(len(data))


class _Progress:
    """A line now and then: how much is done, how fast, how long still."""

    def __init__(self, total: int, unit: str = "GB", scale: float = 1e9) -> None:
        self._total, self._unit, self._scale, self._done = total, unit, scale, 0
        self._start = self._said = time.monotonic()

    def add(self, amount: int) -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._said >= 10:
            self._said = now
            left = (now - self._start) * (self._total / max(1, self._done) - 1)
            share = f"{self._done / self._scale:.4g} of {self._total / self._scale:.4g} {self._unit}"
            print(f"{share} ({100 * self._done / self._total:.0f} %), {left / 60:.0f} min left", flush=True)


_source: Source | None = None
"""What a checking process reads from."""


def _take_source(source: Source) -> None:
    global _source
    _source = source


def _look(part: tuple[str, int, int]) -> list[tuple[str, list[str], str | None]]:
    """(path, oddities, why it does not decode) of the images start..stop of a split that are odd at all."""
    from gaeanet.data.images import ImageError, oddities, to_pixels

    assert _source is not None
    split, start, stop = part
    found: list[tuple[str, list[str], str | None]] = []
    for index, data in zip(range(start, stop), _source.fetch(split, range(start, stop))):
        try:
            to_pixels(data)
        except ImageError as error:
            found.append((_source.path(split, index), [], str(error)))
        else:
            assert isinstance(data, bytes)
            if odd := oddities(data):
                found.append((_source.path(split, index), odd, None))
    return found


def verify(location: str) -> None:
    """Decodes every image at `location` and prints what is odd about them.

    Raises:
        RequestError: The images cannot be read.
        RunError: Some do not decode; they have been named.
    """
    source = open_material(location)
    check_imagenet_is_whole(source.catalog, location)
    total = sum(len(source.catalog.split(split)) for split in ("train", "val"))
    progress = _Progress(total, "images", 1)
    odd: Counter[str] = Counter()
    bad = []
    for looked, found in _looked_at(source):
        for path, kinds, fault in found:
            odd.update(kinds)
            if fault:
                bad.append(f"{path}: {fault}")
        progress.add(looked)
    print(f"{location}: {total - len(bad):,} of {total:,} images decode")
    for kind, count in sorted(odd.items()):
        print(f"  {count:,} {kind}")
    for line in bad[:_NAMED]:
        print(f"  {line}")
    if bad:
        more = f" ({len(bad) - _NAMED} more are not named)" if len(bad) > _NAMED else ""
        raise RunError(
            f"{location}: {len(bad)} images do not decode, the first is {bad[0]}{more}: replace or remove them"
        )


def _looked_at(source: Source) -> Iterator[tuple[int, list[tuple[str, list[str], str | None]]]]:
    parts = [
        (split, start, min(start + _CHUNK, len(source.catalog.split(split))))
        for split in ("train", "val")
        for start in range(0, len(source.catalog.split(split)), _CHUNK)
    ]
    with _pool(source) as pool:
        for part, found in zip(parts, pool.map(_look, parts)):
            yield part[2] - part[1], found


@contextmanager
def _pool(source: Source) -> Iterator[ProcessPoolExecutor]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(cores, context, initializer=_take_source, initargs=(source,)) as pool:
        yield pool
