"""A table of image files and their labels: CSV, TSV, JSON lines or parquet, one for each split or with a split column.

The files lie below the table's directory. Training reads them where they are, as it reads class folders.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from gaeanet.data.formats import IMAGE_SUFFIXES
from gaeanet.data.sources.folder import Files
from gaeanet.data.sources.samples import Samples
from gaeanet.data.sources.split_files import split_of
from gaeanet.errors import RequestError, did_you_mean, reason
from gaeanet.runtime.imports import needed
from gaeanet.runtime.names import inside, shortened, shown

_TEXT = {".csv": ",;\t", ".tsv": "\t"}
_JSON_LINES = (".jsonl", ".ndjson")
_SPLITS = ("split", "set", "subset", "partition")
_IMAGES = (
    ("path", "file", "file_name", "filename", "file_path", "filepath", "image", "image_path")
    + ("image_id", "imageid", "img", "id", "name")
)  # fmt: skip
_LABELS = ("label", "labels", "class", "class_name", "target", "category", "wnid", "synset", "label_id", "class_id")
_FOLDERS = ("", "images", "img", "data")
_MOST_LINE = 1 << 20


class _Row(NamedTuple):
    line: int
    cells: Mapping[str, Any]


def is_table(file: str) -> bool:
    """Whether a file is a table by its name; parquet is one only where it holds no images."""
    return os.path.splitext(file)[1].lower() in (*_TEXT, *_JSON_LINES)


class TableSource(Files):
    """Image files with the labels that a table gives them.

    Args:
        location: As it was given.
        tables: The table of each split, or one with a split column under both.
        columns: Names of the columns of images, labels and, as a third, splits; None to find them by their names.

    Raises:
        RequestError: A table cannot be read, lacks a column or a label, or names a file that is not there.
    """

    def __init__(self, location: str, tables: Mapping[str, Path], columns: Sequence[str] | None = None) -> None:
        self.location, self.notes = location, []
        self._root = tables["train"].parent
        samples = Samples({split: [path] for split, path in tables.items()})
        for path in dict.fromkeys(tables.values()):
            splits = [split for split in tables if tables[split] == path]
            self._read(path, samples, None if len(splits) == 2 else splits[0], columns)
        self.catalog, self._order = samples.catalog(location, self.notes)
        self._rows = samples.rows

    def _read(self, path: Path, samples: Samples, split: str | None, columns: Sequence[str] | None) -> None:
        rows = _rows(path)
        first = next(rows, None)
        if first is None:
            raise RequestError(f"{path}: holds no rows")
        image, label, split_column = _columns(path, list(first.cells), columns, split is None)
        resolve = _Resolver(self._root, path.parent, split)
        missing, first_missing = 0, ""
        for row in chain([first], rows):
            where = f"{path}, line {row.line}"
            into = split
            if split_column is not None:
                cell = str(row.cells.get(split_column, "")).strip()
                into = split_of(cell)
                if into is None:
                    raise RequestError(f"{where}: {split_column} must be train, val or test, is {_text(cell)}")
            if into not in ("train", "val"):
                continue
            name, value = row.cells.get(image), row.cells.get(label)
            if name is None or not str(name).strip():
                raise RequestError(f"{where}: {image} is empty")
            value = value.strip() if isinstance(value, str) else value
            if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
                raise RequestError(f"{where}: {label} must be a class's number or name, is {_text(value)}")
            try:
                path_in_root = resolve(str(name).strip())
            except RequestError as error:
                raise RequestError(f"{where}: {error}") from None
            if path_in_root is None:
                missing += 1
                first_missing = first_missing or f"{where}: there is no {shown(str(name))}"
                continue
            samples.add(into, path_in_root, value, 0)
        if missing:
            raise RequestError(
                f"{first_missing} in {resolve.looked_in()} ({missing:,} such lines): put the images there, or name "
                "the right column with --columns"
            )

    def path(self, split: str, index: int) -> str:
        return os.path.join(self._root, self._rows[split].name(int(self._order[split][index])))


def _text(value: object) -> str:
    return repr(shown(shortened(str(value))))


class _Resolver:
    """Finds the files that a table names: with or without suffix, beside it or in `images/` and the split's folder."""

    def __init__(self, root: Path, beside: Path, split: str | None) -> None:
        self._root, self._beside = root, beside
        names = ("train", "val", "validation") if split is None else (split, *(("validation",) * (split == "val")))
        self._folders = [*_FOLDERS, *names, *(f"{name}_images" for name in names)]
        self._suffixes = ["", *sorted(IMAGE_SUFFIXES), *sorted(map(str.upper, IMAGE_SUFFIXES))]

    def __call__(self, name: str) -> str | None:
        """A file's path relative to the root, None where there is none."""
        if os.path.isabs(name):
            name = os.path.relpath(name, self._beside)
        name = name.removeprefix("./")
        inside(self._beside, name)
        has_suffix = os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
        for folder in self._folders:
            for suffix in [""] if has_suffix else self._suffixes:
                path = os.path.join(self._beside, folder, name + suffix)
                if os.path.isfile(path):
                    self._prefer(folder, suffix)
                    return os.path.relpath(path, self._root)
        return None

    def _prefer(self, folder: str, suffix: str) -> None:
        """Looks there first the next time: all files of a table are usually called alike."""
        if self._folders[0] != folder:
            self._folders.remove(folder)
            self._folders.insert(0, folder)
        if suffix and self._suffixes[0] != suffix:
            self._suffixes.remove(suffix)
            self._suffixes.insert(0, suffix)

    def looked_in(self) -> str:
        """The directories, for a message."""
        return f"{self._beside} or its {', '.join(sorted(folder for folder in self._folders if folder))}"


def _columns(
    path: Path, names: list[str], asked: Sequence[str] | None, needs_split: bool
) -> tuple[str, str, str | None]:
    """The columns of images, labels and splits."""
    has = ", ".join(shown(shortened(name, 30)) for name in names[:8]) + (", ..." if len(names) > 8 else "")
    if asked:
        if unknown := [name for name in asked if name not in names]:
            raise RequestError(f"{path}: has no column {shown(unknown[0])}: {did_you_mean(unknown[0], names)}")
        if needs_split and len(asked) < 3:
            raise RequestError(f"{path}: --columns must name the column of splits as a third; its columns are {has}")
        return asked[0], asked[1], asked[2] if needs_split else None
    lower = {name.lower().replace(" ", "_"): name for name in reversed(names)}
    split = next((lower[name] for name in _SPLITS if name in lower), None)
    if needs_split and split is None:
        raise RequestError(
            f"{path}: it does not split rows into training and validation: add a column split with "
            f"train and val in it, or give two tables, train.csv and val.csv; its columns are {has}"
        )
    image = next((lower[name] for name in _IMAGES if name in lower), None)
    label = next((lower[name] for name in _LABELS if name in lower), None)
    rest = [name for name in names if name not in (image, split)]
    if image is not None and label is None and len(rest) == 1:
        label = rest[0]
    if image is None or label is None:
        what = "images (called path, file or id)" if image is None else "labels (called label or class)"
        raise RequestError(f"{path}: has no column of {what}: --columns IMAGE,LABEL names them; its columns are {has}")
    return image, label, split if needs_split else None


def _rows(path: Path) -> Iterator[_Row]:
    """The rows of a table and the lines they are on."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet_rows(path)
    return _json_rows(path) if suffix in _JSON_LINES else _csv_rows(path, _TEXT[suffix])


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(_MOST_LINE + 1):
                number += 1
                if len(line) > _MOST_LINE:
                    raise RequestError(f"{path}, line {number}: longer than {_MOST_LINE:,} bytes")
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    raise RequestError(f"{path}, line {number}: not UTF-8: save it in UTF-8") from None
                yield number, text
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {reason(error)}") from None


def _csv_rows(path: Path, delimiters: str) -> Iterator[_Row]:
    lines = _lines(path)
    _, header = next(lines, (0, ""))
    if not header.strip():
        raise RequestError(f"{path}, line 1: must name the columns, is empty")
    delimiter = max(delimiters, key=header.count)
    reader = csv.reader(chain([header], (line for _, line in lines)), delimiter=delimiter, strict=True)
    names: list[str] = []
    try:
        for cells in reader:
            if not names:
                names = [cell.strip() for cell in cells]
                if len(set(names)) < len(names):
                    raise RequestError(f"{path}, line 1: two columns have one name")
            elif cells and any(cell.strip() for cell in cells):
                if len(cells) != len(names):
                    raise RequestError(
                        f"{path}, line {reader.line_num}: has {len(cells)} cells, the first line has {len(names)}"
                    )
                yield _Row(reader.line_num, dict(zip(names, cells)))
    except csv.Error as error:
        raise RequestError(f"{path}, line {reader.line_num}: not CSV: {reason(error)}") from None


def _json_rows(path: Path) -> Iterator[_Row]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{path}, line {number}: not JSON: {reason(error)}") from None
        if not isinstance(cells, dict):
            raise RequestError(f"{path}, line {number}: must be an object, is {shown(shortened(line.strip()))}")
        yield _Row(number, cells)


def _parquet_rows(path: Path) -> Iterator[_Row]:
    parquet = needed("pyarrow.parquet", "parquet")
    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for cells in batch.to_pylist():
                    number += 1
                    yield _Row(number, cells)
    except RequestError:
        raise
    except Exception as error:  # pyarrow meets damage with several kinds of exceptions
        raise RequestError(f"{path}: not a whole parquet file ({shortened(reason(error), 120)})") from None


def open_tables(location: str, files: Sequence[Path], columns: Sequence[str] | None = None) -> TableSource:
    """The images that these tables name: one for each split, or a single one with a column for it.

    Raises:
        RequestError: It is not clear which tables are meant, or they cannot be read (see `TableSource`).
    """
    if len(files) == 1:
        return TableSource(location, {"train": files[0], "val": files[0]}, columns)
    of_split = {split: [file for file in files if split_of(file.stem) == split] for split in ("train", "val")}
    if all(len(tables) == 1 for tables in of_split.values()):
        return TableSource(location, {split: tables[0] for split, tables in of_split.items()}, columns)
    some = ", ".join(shown(file.name) for file in files[:4]) + (", ..." if len(files) > 4 else "")
    raise RequestError(
        f"{location}: holds {len(files)} tables ({some}): name one of them, or have one called train and one called val"
    )
