"""Formats that others write ImageNet in, recognised by their files: tars, parquet, Arrow, TFRecords, MDS, tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from gaeanet.data.sources.arrow import open_arrow
from gaeanet.data.sources.layout import SPLIT_FOLDERS, images_root
from gaeanet.data.sources.mds import is_mds, open_mds
from gaeanet.data.sources.parquet import ParquetSource, holds_images
from gaeanet.data.sources.source import Source
from gaeanet.data.sources.split_files import files_of_splits, split_of
from gaeanet.data.sources.table import is_table, open_tables
from gaeanet.data.sources.tfrecord import is_tfrecord, open_tfrecords
from gaeanet.data.sources.webdataset import open_webdataset
from gaeanet.errors import RequestError, reason
from gaeanet.runtime.files import expanded, is_directory, is_file
from gaeanet.runtime.names import shown

_CLASS_ARCHIVE = re.compile(r"(?:.*/)?n\d{8}\.tar")
"""The archive of one class, as ILSVRC2012_img_train.tar holds a thousand of: no shard."""


_CACHE = re.compile(r"(?:.*/)?(?:cache|tmp)[-_a-z0-9]*\.arrow")
"""What `datasets` keeps of its computations beside its data."""


def open_foreign(location: str, columns: Sequence[str] | None = None) -> Source | None:
    """The images of a directory or table in one of these formats, None where it is none.

    Args:
        columns: Names of a table's columns of images, labels and, as a third, splits; None to find them.

    Raises:
        RequestError: It is one that is damaged or incomplete, or there are two of them.
    """
    root = expanded(location)
    if is_file(root):
        return open_tables(location, [root], columns) if is_table(root.name) or root.suffix == ".parquet" else None
    if not is_directory(root) or _has_class_folders(images_root(root)):
        return None
    files = files_of_splits(root)
    parquet = [file for file in files if file.endswith(".parquet")]
    tars = [file for file in files if file.endswith(".tar") and not _CLASS_ARCHIVE.fullmatch(file)]
    if parquet and tars:
        raise RequestError(
            f"{root}: holds {len(parquet)} parquet files and {len(tars)} tar files: name a directory with one kind"
        )
    if parquet:
        if holds_images(root / parquet[0], columns):
            return ParquetSource(root, parquet, columns)
        return open_tables(location, [root / file for file in parquet], columns)
    if tars:
        return open_webdataset(root, tars)
    if arrow := [file for file in files if file.endswith(".arrow") and not _CACHE.fullmatch(file)]:
        return open_arrow(root, arrow)
    packed = [file for file in files if file.endswith((".tar.gz", ".tgz")) and split_of(file) and "devkit" not in file]
    if packed:
        raise RequestError(
            f"{root}: {packed[0]} is compressed, so that no image can be read alone: gunzip its {len(packed)} such "
            f"files first ({', '.join(map(shown, packed[:3]))}{', ...' * (len(packed) > 3)})"
        )
    if records := [file for file in files if is_tfrecord(file)]:
        return open_tfrecords(root, records)
    if indexes := [file for file in files if file.rsplit("/", 1)[-1] == "index.json" and is_mds(root / file)]:
        return open_mds(root, indexes)
    tables = [root / file for file in files if is_table(file) and "/" not in file]
    return open_tables(location, tables, columns) if tables else None


def _has_class_folders(root: Path) -> bool:
    """Whether training is there as a directory of directories, and validation as a directory."""
    train, val = (
        next((root / name for name in names if (root / name).is_dir()), None) for names in SPLIT_FOLDERS.values()
    )
    try:
        return train is not None and val is not None and any(path.is_dir() for path in train.iterdir())
    except OSError as error:
        raise RequestError(f"{train}: cannot be listed: {reason(error)}") from None
