"""`gaeanet prepare`: from archives, folders or a bucket to class folders or shards; killed anywhere, it continues.

Until the end a marker lies beside the images, so that nobody trains on half of them, and a journal says which of them
are complete.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gaeanet.data.prepare.folder_writer import link_folders, write_folders
from gaeanet.data.prepare.hub_copy import hub_copy
from gaeanet.data.prepare.shard_writer import SHARD_BYTES, write_shards
from gaeanet.data.sources.catalog import check_imagenet_is_whole, check_names
from gaeanet.data.sources.entries import is_hidden, is_image
from gaeanet.data.sources.folder import Files, FolderSource, read_table, table_of
from gaeanet.data.sources.foreign import open_foreign
from gaeanet.data.sources.labels import validation_classes
from gaeanet.data.sources.layout import (
    ARCHIVES,
    INDEX,
    SPLIT_FOLDERS,
    TABLE,
    UNFINISHED,
    flat_folder,
    images_root,
    what_is_there,
)
from gaeanet.data.sources.open import open_location
from gaeanet.data.sources.source import Source
from gaeanet.errors import RequestError, RunError, counted, reason
from gaeanet.runtime.files import entries_of, exists, expanded, is_directory
from gaeanet.runtime.names import shown
from gaeanet.runtime.progress import WorkProgress

_PARTIAL = ".partial"
"""Directory of what says which images are whole, and of what is not."""


def prepare(
    location: str,
    destination: Path,
    *,
    shards: bool,
    shard_bytes: int = SHARD_BYTES,
    columns: Sequence[str] | None = None,
    link: bool = False,
) -> None:
    """Writes the images at `location` into `destination`, as class folders or as shards.

    Args:
        columns: Names of a table's columns of images, labels and splits; None to find them.
        link: Makes symbolic links to image files instead of copies.

    Raises:
        RequestError: `location` cannot be read or is incomplete, or `destination` holds something else.
        RunError: An image cannot be read or written; run again, it continues.
    """
    if re.match(r"[a-z0-9]+:/", str(destination)):
        raise RequestError(
            f"{destination}: prepare writes to a directory; upload that with gcloud storage cp, aws s3 cp or azcopy"
        )
    source = open_material(location, columns)
    if link and (shards or not isinstance(source, Files)):
        what = "shards hold copies" if shards else f"{location} holds no image files"
        raise RequestError(f"--link: {what}: leave it out")
    if isinstance(source, FolderSource) and (split := source.split_around(destination)):
        raise RequestError(f"{destination}: lies in {split}, whose classes it would be one of: name another directory")
    check_names(source.catalog, location)
    check_imagenet_is_whole(source.catalog, location)
    facts = {"fingerprint": source.catalog.fingerprint, "shards": shards, "shard_bytes": shard_bytes if shards else 0}
    if _is_done(destination, facts):
        print(shown(f"{destination}: already holds all of {location}"))
        return
    total = 0 if link else source.total_bytes
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
                if source.sequential:
                    print("the sizes of all images are read first, then the images")
                write_shards(source, destination, partial, shard_bytes, progress.add)
            elif link:
                link_folders(source, destination)
            else:
                write_folders(source, destination, partial, progress.add)
                os.sync()  # a file that has its size may still not have its bytes if the machine stops
        draft = partial / TABLE
        draft.write_text(json.dumps(table_of(catalog), indent=1), encoding="utf-8")
        draft.replace(destination / TABLE)
        (destination / UNFINISHED).unlink()
        shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise RunError(
            f"{error.filename or destination}: cannot be written: {reason(error)}; run again, it continues"
        ) from None
    written = open_location(str(destination)).catalog
    if written.fingerprint != catalog.fingerprint:
        (destination / TABLE).unlink()
        raise RunError(f"{destination}: holds other images too: move them away, or name an empty directory")
    print(shown(f"wrote {destination}: {counts}"))


def open_material(location: str, columns: Sequence[str] | None = None) -> Source:
    """The images at `location`, a flat validation folder included if its classes can be known.

    Args:
        columns: Names of a table's columns of images, labels and splits; None to find them.

    Raises:
        RequestError: They cannot be read, or `columns` is given and there is no table.
    """
    if location.startswith("hf://"):
        root = hub_copy(location)
        source = open_foreign(str(root), columns)
        if source is None:
            raise RequestError(f"{location}: {what_is_there(root)}, none of which is read")
        return source
    root = expanded(location)
    known = "://" in location or any(exists(root / name) for name in (INDEX, *ARCHIVES.values(), UNFINISHED))
    if not known and (source := open_foreign(location, columns)):
        return source
    if columns:
        raise RequestError(f"{location}: holds no table: --columns names a table's columns")
    if known or not is_directory(root):
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
        (destination / _PARTIAL).mkdir(exist_ok=True)
    except OSError as error:
        raise RequestError(f"{destination}: cannot be written: {reason(error)}") from None
    except ValueError:
        raise RequestError(f"{marker}: damaged: remove {destination} and run again") from None
