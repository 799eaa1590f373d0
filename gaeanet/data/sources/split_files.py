"""Which files of a directory belong to which split, by their names, and whether one of a numbered set is missing."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from gaeanet.data.sources.entries import identity, is_hidden, leads_to_directory
from gaeanet.errors import RequestError, reason
from gaeanet.runtime.names import shown

_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "eval", "dev"),
    "test": ("test", "testing"),
}
_OF = re.compile(r"(.*?)(\d+)-of-(\d+)(?!\d)(.*)", re.DOTALL)
_NUMBER = re.compile(r"(.*?)(\d+)(\D*)", re.DOTALL)
_DEPTH = 3
"""Levels of directories that are looked into: `data/train/x.parquet`, `default/1.0.0/...`."""
_FOLDERS = ("data", "default", "shards")
_VERSION = re.compile(r"\d+\.\d+\.\d+$")
_MOST = 100_000
"""Files beyond which a directory is one of images, not one of shards."""


def files_of_splits(root: Path) -> list[str]:
    """Paths, relative to `root`, of the files in it and in folders that formats have: `data/`, `train/`, `1.0.0/`."""
    return files_below(root, lambda name: name in _FOLDERS or split_of(name) is not None or bool(_VERSION.match(name)))


def files_below(root: Path, enters: Callable[[str], bool] = bool) -> list[str]:
    """Paths, relative to `root`, of files in it and in three levels of directories below, sorted; at most 100,000.

    Args:
        enters: Whether a directory of this name is looked into.

    Raises:
        RequestError: A directory cannot be listed.
    """
    paths, waiting, entered = list[str](), [("", 0)], set[tuple[int, int]]()
    while waiting and len(paths) < _MOST:
        below, level = waiting.pop()
        path = root / below
        try:
            if (here := identity(path)) in entered:
                continue
            entered.add(here)
            with os.scandir(path) as entries:
                for entry in entries:
                    if is_hidden(entry.name):
                        continue
                    if not leads_to_directory(entry):
                        paths.append(below + entry.name)
                    elif level < _DEPTH and enters(entry.name):
                        waiting.append((f"{below}{entry.name}/", level + 1))
        except OSError as error:
            raise RequestError(f"{path}: cannot be listed: {reason(error)}") from None
    return sorted(paths)


def split_of(path: str) -> str | None:
    """The split that a file belongs to by its name, or by that of the nearest directory that has one: also `test`."""
    for part in reversed(path.split("/")):
        tokens = re.split(r"[^a-z]+", part.lower())
        for split, names in _NAMES.items():
            if any(token in names for token in tokens):
                return split
    return None


def by_split(
    files: Sequence[str], root: Path, what: str, has_labels: Callable[[str], bool] | None = None
) -> dict[str, list[Path]]:
    """The paths of the files of each split.

    Args:
        files: Their paths, relative to `root`.
        what: What these files are, for messages: "parquet files".
        has_labels: Whether a file of a test split has labels, so that it may stand in for a missing validation split.

    Raises:
        RequestError: A split has no files, or one of a numbered set is missing.
    """
    of_split = defaultdict[str | None, list[str]](list)
    for file in files:
        of_split[split_of(file)].append(file)
    if not of_split["val"] and of_split["test"] and has_labels and has_labels(of_split["test"][0]):
        of_split["val"] = of_split["test"]
    splits = {}
    for split in ("train", "val"):
        if not of_split[split]:
            some = ", ".join(map(shown, files[:3])) + (", ..." if len(files) > 3 else "")
            raise RequestError(
                f"{root}: none of its {len(files)} {what} ({some}) is of the {split} split: names must have "
                f"{'train' if split == 'train' else 'val or validation'} in them, or lie in such a folder"
            )
        check_numbering(of_split[split], root)
        splits[split] = [root / file for file in of_split[split]]
    return splits


def check_numbering(files: Iterable[str], root: Path) -> None:
    """Raises `RequestError` where one of a numbered set (`-00003-of-00294`, `-0003`) is missing or comes twice."""
    sets = defaultdict[tuple[str, ...], list[str]](list)
    for file in files:
        folder, _, name = file.rpartition("/")
        if match := _OF.fullmatch(name):
            sets[folder, match[1], match[3]].append(match[2])
        elif match := _NUMBER.fullmatch(name):
            sets[folder, match[1], "", match[3]].append(match[2])
    for (folder, begin, total, *_), texts in sets.items():
        numbers = sorted(map(int, texts))
        where = root / folder
        if total:
            first, last, width = 0, int(total) - 1, len(total)
            if last >= _MOST:
                raise RequestError(f"{where}/{shown(begin)}{texts[0]}-of-{total}: more files than can be: rename them")
        else:
            first, last, width = numbers[0], numbers[-1], len(texts[0])
            first = min(first, 1) if first <= 1 else first
        if len(set(numbers)) < len(numbers):
            twice = next(a for a, b in pairwise(numbers) if a == b)
            raise RequestError(f"{where}: {shown(begin)}{twice:0{width}d} is there twice: remove one")
        if last - first + 1 != len(numbers):
            missing = next(number for number in range(first, last + 1) if number not in set(numbers))
            raise RequestError(
                f"{where}: {shown(begin)}{missing:0{width}d} is missing, one of {shown(begin)}{first:0{width}d} to "
                f"{last:0{width}d} ({len(numbers)} are there): download it again"
            )
