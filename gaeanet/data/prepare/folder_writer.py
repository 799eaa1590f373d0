"""Writes class folders: each image under its own name at once, and a journal of those that are whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gaeanet.data.prepare.journal import Journal
from gaeanet.data.prepare.pipeline import Image, read_images, write_concurrently
from gaeanet.data.sources.source import Source
from gaeanet.runtime.names import inside

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
"""A file that nothing else is called, so that no link is ever followed."""


def write_folders(source: Source, root: Path, journals: Path, done: Callable[[int, bool], None]) -> None:
    """Writes all images of `source` below `root`, but for those that an earlier attempt has written.

    Args:
        journals: Directory of what says which those are.
        done: Called with the bytes of images dealt with since the last call, and whether they were there already.

    Raises:
        RunError: An image cannot be read.
        OSError: One cannot be written.
    """
    for split in ("train", "val"):
        samples = source.catalog.split(split)
        with Journal(journals / f"{split}.sizes", len(samples), 8) as journal:
            kept = np.zeros(len(samples), bool)
            for index in np.flatnonzero(journal.written).tolist():
                size = _size(journal, index)
                kept[index] = _has_size(inside(root / split, samples.name(index)), size)
                if kept[index]:
                    done(size, True)

            def write(batch: list[Image], split: str = split, journal: Journal = journal) -> None:
                names = source.catalog.split(split)
                for index, data in batch:
                    _write_new(inside(root / split, names.name(index)), data)
                    journal.note(index, (len(data) + 1).to_bytes(8, "little"))

            order = source.reading_order(split)
            write_concurrently(
                read_images(source, split, order[~kept[order]]), write, lambda written: done(written, False)
            )


def link_folders(source: Source, root: Path) -> None:
    """Makes a symbolic link below `root` to each image of `source`, whose images are files."""
    for split in ("train", "val"):
        names = source.catalog.split(split)
        for index in range(len(names)):
            path, target = inside(root / split, names.name(index)), os.path.abspath(source.path(split, index))
            if path.is_symlink() and os.readlink(path) == target:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.symlink_to(target)


def _size(journal: Journal, index: int) -> int:
    """Of a file that was written: one less than its record, since an empty file is one too."""
    return int.from_bytes(journal.records[index].tobytes(), "little") - 1


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.lstat().st_size == size and not path.is_symlink()
    except FileNotFoundError:
        return False


def _write_new(path: Path, data: bytes) -> None:
    """Writes a file that is not there; what a stopped attempt left of it is removed."""
    while True:
        try:
            file = os.open(path, _NEW, 0o666)
            break
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            path.unlink(missing_ok=True)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(file, rest) :]
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(file)
