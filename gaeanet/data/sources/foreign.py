"""Formats that others write ImageNet in, told apart by looking at the files: webdataset shards, parquet files."""

from __future__ import annotations

import re
from pathlib import Path

from gaeanet.data.sources.layout import SPLIT_FOLDERS
from gaeanet.data.sources.parquet import ParquetSource
from gaeanet.data.sources.source import Source
from gaeanet.data.sources.split_files import files_of_splits
from gaeanet.data.sources.webdataset import open_webdataset
from gaeanet.errors import RequestError

_CLASS_ARCHIVE = re.compile(r"(?:.*/)?n\d{8}\.tar")
"""The archive of one class, as ILSVRC2012_img_train.tar holds a thousand of: no shard."""


def open_foreign(root: Path) -> Source | None:
    """The images in a directory that holds one of these formats, None where it holds none.

    Raises:
        RequestError: It holds one that is damaged or incomplete, or two of them.
    """
    if _has_class_folders(root):
        return None
    files = files_of_splits(root)
    parquet = [file for file in files if file.endswith(".parquet")]
    tars = [file for file in files if file.endswith(".tar") and not _CLASS_ARCHIVE.fullmatch(file)]
    if parquet and tars:
        raise RequestError(
            f"{root}: holds {len(parquet)} parquet files and {len(tars)} tar files: name a directory with one kind"
        )
    if parquet:
        return ParquetSource(root, parquet)
    if tars:
        return open_webdataset(root, tars)
    return None


def _has_class_folders(root: Path) -> bool:
    """Whether both splits are there as directories of directories."""
    splits = [next((root / name for name in names if (root / name).is_dir()), None) for names in SPLIT_FOLDERS.values()]
    return all(split is not None and any(path.is_dir() for path in split.iterdir()) for split in splits)
