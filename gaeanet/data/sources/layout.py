"""What a location with images looks like: the names by which shards, archives and class folders are recognised."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from gaeanet.data.formats import IMAGE_SUFFIXES
from gaeanet.data.sources.entries import is_hidden
from gaeanet.data.sources.split_files import files_below
from gaeanet.errors import RequestError
from gaeanet.runtime.files import entries_of, is_directory

INDEX = "index.safetensors"
"""The index of shards, beside them."""

ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}

SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "validation")}

TABLE = "dataset.json"
UNFINISHED = "unfinished.json"
"""What `gaeanet prepare` leaves beside the images: the class table when it is done, a marker until then."""

KAGGLE = Path("ILSVRC/Data/CLS-LOC")

_LOOKED_INTO = 200
"""Directories that are looked into, at most, to find the one that was meant."""


def split_folder(names: Collection[str], split: str, where: str) -> str:
    """The folder of a split among the `names` in a directory or prefix `where`.

    Raises:
        RequestError: There is none, or more than one.
    """
    present = [name for name in SPLIT_FOLDERS[split] if name in names]
    if len(present) == 1:
        return present[0]
    asked = " or ".join(f"{name}/" for name in SPLIT_FOLDERS[split])
    raise RequestError(
        f"{where}: has both {' and '.join(f'{name}/' for name in present)}: remove or rename one"
        if present
        else f"{where}: has no {asked} folder in it"
    )


def holds_images(names: Collection[str]) -> bool:
    """Whether a directory or bucket prefix with these entries is one that images can be read from."""
    has_splits = all(any(name in names for name in folders) for folders in SPLIT_FOLDERS.values())
    return has_splits or INDEX in names or ARCHIVES["train"] in names


def images_root(root: Path) -> Path:
    """Where train/ and val/ are: `root` itself, or below it in Kaggle's layout."""
    for below in (KAGGLE, Path(*KAGGLE.parts[1:])):
        if is_directory(root / below / "train"):
            return root / below
    return root


def flat_folder(val: Path) -> Path:
    """The folder that directly holds the validation images: `val` itself or the only folder in it."""
    inside = [path for path in entries_of(val) if not is_hidden(path.name)]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else val


def meant_instead(root: Path) -> Path | None:
    """The directory just above or below `root` that holds images: the usual slip is one level too high or too low."""
    for above in list(Path(os.path.abspath(root)).parents)[:2]:
        if holds_images(_names(above)):
            return above
    below = [root / name for name in sorted(_names(root))][:_LOOKED_INTO]
    below += [path / name for path in below for name in sorted(_names(path))]
    return next((path for path in below[:_LOOKED_INTO] if holds_images(_names(images_root(path)))), None)


def _names(path: Path) -> set[str]:
    try:
        return {entry.name for entry in path.iterdir() if not is_hidden(entry.name)}
    except OSError:
        return set()


def what_is_there(root: Path) -> str:
    """A sentence on the files in a directory, for a refusal: how many of each kind."""
    files = files_below(root)
    if not files:
        return "no files are in it"
    kinds = Counter(_kind(file) for file in files)
    most = sorted(((kind, kinds[kind]) for kind in kinds if kind), key=lambda entry: (-entry[1], entry[0]))[:4]
    rest = sum(kinds.values()) - sum(count for _, count in most)
    parts = [f"{count:,} {kind} {'file' if count == 1 else 'files'}" for kind, count in most]
    return f"it holds {', '.join(parts)}" + (f" and {rest:,} other{'s' * (rest > 1)}" if rest else "")


def _kind(file: str) -> str:
    stem, suffix = os.path.splitext(file.rsplit("/", 1)[-1].lower())
    if suffix in (".gz", ".bz2", ".xz", ".zst") and "." in stem:
        suffix = os.path.splitext(stem)[1] + suffix
    if suffix in IMAGE_SUFFIXES:
        return "image"
    return suffix if re.fullmatch(r"\.[a-z][a-z0-9.]{0,11}", suffix) else ""
