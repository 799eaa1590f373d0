"""`gaeanet prepare`: from archives, folders or a bucket to class folders or shards; killed anywhere, it continues.

Every file is written under another name and renamed when it is whole. Until the end a marker lies beside them, so that
nobody trains on half of the images.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from gaeanet.data.prepare.shard_writer import SHARD_BYTES, Sizes, readable, write_shards
from gaeanet.data.sources.catalog import check_imagenet_is_whole, check_names
from gaeanet.data.sources.entries import is_hidden, is_image
from gaeanet.data.sources.folder import FolderSource, read_table, table_of
from gaeanet.data.sources.labels import validation_classes
from gaeanet.data.sources.layout import ARCHIVES, INDEX, SPLIT_FOLDERS, TABLE, UNFINISHED, flat_folder, images_root
from gaeanet.data.sources.open import open_location
from gaeanet.data.sources.source import Source
from gaeanet.errors import RequestError, RunError, counted, reason
from gaeanet.runtime.files import entries_of, exists, is_directory
from gaeanet.runtime.names import inside, shown
from gaeanet.runtime.progress import WorkProgress

_PARTIAL = ".partial"
_CHUNK = 256


def prepare(location: str, destination: Path, *, shards: bool, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes the images at `location` into `destination`, as class folders or as shards.

    Raises:
        RequestError: `location` cannot be read or is not whole, or `destination` holds something else.
        RunError: An image cannot be read or written; run again, it continues.
    """
    if re.match(r"[a-z0-9]+:/", str(destination)):
        raise RequestError(
            f"{destination}: prepare writes to a directory; upload that with gcloud storage cp, aws s3 cp or azcopy"
        )
    source = open_material(location)
    check_names(source.catalog, location)
    check_imagenet_is_whole(source.catalog, location)
    facts = {"fingerprint": source.catalog.fingerprint, "shards": shards, "shard_bytes": shard_bytes if shards else 0}
    if _is_done(destination, facts):
        print(shown(f"{destination}: already holds all of {location}"))
        return
    sizes = _sizes(source)
    total = int(sum(array.sum() for array in sizes.values()))
    catalog = source.catalog
    counts = f"{counted(len(catalog.classes), 'class')}, {len(catalog.train):,} training and "
    counts += counted(len(catalog.val), "validation image")
    print(shown(f"{location}: {counts}, {total / 1e9:.3g} GB (fingerprint {catalog.fingerprint})"))
    for note in source.notes:
        print(shown(note))
    _begin(destination, facts, total)
    partial = destination / _PARTIAL
    try:
        with WorkProgress(total) as progress:
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
    print(shown(f"wrote {destination}: {counts}"))


def open_material(location: str) -> Source:
    """The images at `location`, a flat validation folder included if its classes can be known."""
    root = Path(location).expanduser()
    if (
        "://" in location
        or not is_directory(root)
        or any(exists(root / name) for name in (INDEX, *ARCHIVES.values(), UNFINISHED))
    ):
        return open_location(location)
    images = images_root(root)
    val = next((images / name for name in SPLIT_FOLDERS["val"] if is_directory(images / name)), None)
    if val is None or not is_directory(images / "train"):
        return FolderSource(location)
    try:
        classes = sorted(p.name for p in entries_of(images / "train") if is_directory(p) and not is_hidden(p.name))
        flat = flat_folder(val)
        files = sorted(path.name for path in entries_of(flat) if is_image(path.name) and not is_directory(path))
    except OSError as error:
        raise RequestError(f"{error.filename}: cannot be listed: {reason(error)}") from None
    if not files or flat.name in classes:
        return FolderSource(location)
    return FolderSource(location, validation_classes(images, files, classes))


def _sizes(source: Source) -> Sizes:
    return {
        split: np.fromiter((source.size(split, k) for k in range(len(source.catalog.split(split)))), np.int64)
        for split in ("train", "val")
    }


def _is_done(destination: Path, facts: dict[str, Any]) -> bool:
    """Whether the same images are there already, in the same form; raises `RequestError` where others are."""
    if exists(destination / UNFINISHED) or not exists(destination / TABLE):
        return False
    if read_table(destination / TABLE)["fingerprint"] != facts["fingerprint"]:
        raise RequestError(f"{destination}: already holds other images: name another directory")
    if exists(destination / INDEX) != facts["shards"]:
        raise RequestError(f"{destination}: already holds these images in the other form: name another directory")
    return True


def _begin(destination: Path, facts: dict[str, Any], total: int) -> None:
    marker = destination / UNFINISHED
    try:
        if exists(marker):
            if json.loads(marker.read_text(encoding="utf-8")) != facts:
                raise RequestError(
                    f"{destination}: prepare was stopped here while it wrote other images, or another form: "
                    "remove this directory, or name another"
                )
        elif exists(destination) and entries_of(destination):
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


def _write_folders(source: Source, sizes: Sizes, destination: Path, partial: Path, progress: WorkProgress) -> None:
    draft = partial / str(os.getpid())
    for split in ("train", "val"):
        names, count = source.catalog.split(split), len(sizes[split])
        for start in range(0, count, _CHUNK):
            missing = []
            for index in range(start, min(start + _CHUNK, count)):
                path = inside(destination / split, names.name(index))
                if exists(path) and path.stat().st_size == sizes[split][index]:
                    progress.add(int(sizes[split][index]), earlier=True)  # renamed into place, hence whole
                else:
                    missing.append(index)
            for index, data in zip(missing, source.fetch(split, missing)):
                data = readable(data, source.path(split, index))
                path = inside(destination / split, names.name(index))
                path.parent.mkdir(parents=True, exist_ok=True)
                draft.write_bytes(data)
                draft.replace(path)
                progress.add(len(data))
