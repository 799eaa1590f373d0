"""Writes class folders: each image directly under its own name, and a journal of those that are whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gaeanet.data.prepare.journal import Journal
from gaeanet.data.prepare.pipeline import read_images, worked_on
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
            sizes = journal.records().view("<i8")[:, 0] - 1  # an empty file is one too
            for index in np.flatnonzero(sizes >= 0).tolist():
                kept[index] = _has_size(inside(root / split, samples.name(index)), int(sizes[index]))
                if kept[index]:
                    done(int(sizes[index]), True)

            def write(part: NDArray[np.int64], split: str = split, journal: Journal = journal) -> int:
                names, total = source.catalog.split(split), 0
                for index, data in read_images(source, split, part):
                    _write_new(inside(root / split, names.name(index)), data)
                    journal.note(index, (len(data) + 1).to_bytes(8, "little"))
                    total += len(data)
                return total

            parts = [part[~kept[part]] for part in source.reading_parts(split)]
            for written in worked_on(source, parts, write):
                done(written, False)


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
