"""Parquet files with images in them, as Hugging Face keeps data sets: a column of images and one of labels.

Images lie in compressed pages, so one of them costs a whole group of rows: such a source is read from one end to the
other (`gaeanet prepare`), never at random.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gaeanet.data.formats import Unreadable, suffix_of
from gaeanet.data.sources.entries import MOST_BYTES
from gaeanet.data.sources.samples import Label, Ranges, Samples
from gaeanet.data.sources.source import Contents, Source
from gaeanet.data.sources.split_files import by_split
from gaeanet.errors import RequestError, RunError, reason
from gaeanet.runtime.imports import needed
from gaeanet.runtime.names import shortened, shown

_IMAGES = ("image", "img", "images", "jpg")
_LABELS = ("label", "labels", "fine_label", "cls", "class", "target", "wnid", "synset")
_ROWS = 16
"""Images in memory at a time."""
_BUFFER = 4 << 20
"""Bytes read at a time: a group of rows may be larger than memory."""
_ROWS_OF_PART = 1024
"""Groups of rows that are smaller are read together."""


class Columns(NamedTuple):
    """Where images and labels are in a table.

    Attributes:
        image: Column of the images: binary, or a struct of `bytes` and `path`.
        has_path: Whether it is that struct.
        label: Column of the labels.
        class_names: What the numbers in it mean, or None.
    """

    image: str
    has_path: bool
    label: str
    class_names: tuple[str, ...] | None


class ParquetSource(Source):
    """Parquet files; a sample's name is the file name in its `path`, or made from its file's name and row.

    Raises:
        RequestError: A file is missing, cut short or damaged, has other columns, or its labels contradict each other.
    """

    sequential = True

    def __init__(self, root: Path, files: list[str], columns: Sequence[str] | None = None) -> None:
        self.location, self.notes = str(root), []
        self._units = by_split(files, root, "parquet files", lambda file: _labelled(root / file, columns))
        self._columns = _common_columns([path for paths in self._units.values() for path in paths], columns)
        samples = Samples(self._units, self._columns.class_names)
        self._total = 0
        self._groups: dict[str, list[NDArray[np.int64]]] = {split: [] for split in self._units}
        for split, paths in self._units.items():
            for number, path in enumerate(paths):
                self._index(samples, split, number, path)
        self.catalog, order = samples.catalog(self.location, self.notes)
        self._ranges = {split: Ranges.of(samples.rows[split], order[split]) for split in self._units}
        self._stream: _Stream | None = None

    def _index(self, samples: Samples, split: str, number: int, path: Path) -> None:
        image, has_path, label, _ = self._columns
        with _opened(path) as file:
            self._total += _bytes_of(file, image)
            self._groups[split].append(_group_ends(file))
            row, suffix = 0, _first_suffix(file, path, self._columns)
            wanted = [f"{image}.path", label] if has_path else [label]
            for batch in _batches(file, path, 65_536, wanted):
                labels = _values(batch, label, path)
                names = (
                    [entry and entry["path"] for entry in _values(batch, image, path)]
                    if has_path
                    else [None] * len(labels)
                )
                for name, value in zip(names, labels):
                    where = f"{path.stem.split('.')[0]}_{row:06d}"
                    samples.add(split, name or f"{where}{suffix}", label_in(path, row, label, value), number, row)
                    row += 1

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_stream": None}

    @property
    def total_bytes(self) -> int:
        return self._total

    def reading_order(self, split: str) -> NDArray[np.int64]:
        return self._ranges[split].reading_order()

    def reading_parts(self, split: str) -> list[NDArray[np.int64]]:
        order, parts = self.reading_order(split), list[NDArray[np.int64]]()
        units, rows, _ = self._ranges[split]
        for number, ends in enumerate(self._groups[split]):
            here = order[np.searchsorted(units[order], number) : np.searchsorted(units[order], number, side="right")]
            end_of_group = ends[np.searchsorted(ends, rows[here], side="right")]
            parts += np.split(here, np.flatnonzero(np.diff(end_of_group // _ROWS_OF_PART)) + 1)
        return parts

    def size(self, split: str, index: int) -> int:
        stream, row = self._stream_at(split, index)
        start, stop = stream.bounds(row)
        return stop - start

    def path(self, split: str, index: int) -> str:
        ranges = self._ranges[split]
        return f"{self._units[split][int(ranges.units[index])]}: row {int(ranges.offsets[index])}"

    def read(self, split: str, index: int) -> bytes:
        data = next(iter(self.fetch(split, [index])))
        if isinstance(data, Unreadable):
            raise RunError(f"{self.path(split, index)}: {data.reason}")
        assert isinstance(data, bytes)
        return data

    def _stream_at(self, split: str, index: int) -> tuple[_Stream, int]:
        """The stream that holds an image, and the image's row."""
        ranges = self._ranges[split]
        path, row = self._units[split][int(ranges.units[index])], int(ranges.offsets[index])
        if self._stream is None or not self._stream.leads_to(path, row):
            if self._stream:
                self._stream.close()
            self._stream = _Stream(path, row, self._columns)
        try:
            self._stream.go_to(row)
        except RequestError as error:
            raise RunError(str(error)) from None
        return self._stream, row

    def fetch(self, split: str, indices: Iterable[int]) -> Iterator[Contents]:
        for index in indices:
            stream, row = self._stream_at(split, index)
            data = stream.image(row)
            if not data:
                yield Unreadable("has no bytes: it names a file elsewhere")
            elif len(data) > MOST_BYTES:
                yield Unreadable(f"too large: {len(data):,} bytes, at most {MOST_BYTES:,} are read")
            else:
                yield data


class _Stream:
    """A file that is read row after row, some images at a time."""

    def __init__(self, path: Path, row: int, columns: Columns) -> None:
        self._path, self._columns = path, columns
        self._file = _opened(path)
        ends = _group_ends(self._file)
        first = int(np.searchsorted(ends, row, side="right"))
        begin, groups = int(ends[first - 1]) if first else 0, list(range(first, len(ends)))
        self._next, self._end = begin, begin
        self._bounds, self._values = np.zeros(1, np.int64), memoryview(b"")
        self._batches = _images(self._file, path, columns, groups)

    def leads_to(self, path: Path, row: int) -> bool:
        """Whether this row is still ahead, and nearer than a new start would be."""
        return path == self._path and self._next <= row < self._end + 4 * _ROWS

    def go_to(self, row: int) -> None:
        """Reads on to a row that is ahead; raises `RequestError` where the file ends before it, or is damaged."""
        while row >= self._end:
            images = next(self._batches, None)
            if images is None:
                raise RequestError(f"{self._path}: ends before row {row}: download it again")
            self._bounds, self._values = _bounds(images), memoryview(images.buffers()[2] or b"")
            self._next, self._end = self._end, self._end + len(images)

    def bounds(self, row: int) -> tuple[int, int]:
        """Where the bytes of the row that was gone to begin and end; nowhere if it has none."""
        start, stop = self._bounds[row - self._next : row - self._next + 2].tolist()
        return start, stop

    def image(self, row: int) -> bytes:
        """These bytes."""
        start, stop = self.bounds(row)
        return bytes(self._values[start:stop])

    def close(self) -> None:
        self._file.close()


def _opened(path: Path) -> Any:
    parquet = needed("pyarrow.parquet", "parquet")
    try:
        return parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True)
    except Exception as error:  # pyarrow meets damage with several kinds of exceptions
        raise _damaged(path, error) from None


def _group_ends(file: Any) -> NDArray[np.int64]:
    """The row behind each group of rows, (groups,)."""
    metadata = file.metadata
    return np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)], dtype=np.int64)


def _damaged(path: Path, error: Exception) -> RequestError:
    return RequestError(f"{path}: not a whole parquet file ({shortened(reason(error), 120)}): download it again")


def _batches(file: Any, path: Path, rows: int, columns: list[str], groups: list[int] | None = None) -> Iterator[Any]:
    try:
        yield from file.iter_batches(rows, columns=columns, row_groups=groups, use_threads=False)
    except Exception as error:
        raise _damaged(path, error) from None


def _images(file: Any, path: Path, columns: Columns, groups: list[int] | None = None) -> Iterator[Any]:
    """The images of a file, some at a time: arrays of binary values, which are not copied."""
    wanted = f"{columns.image}.bytes" if columns.has_path else columns.image
    for batch in _batches(file, path, _ROWS, [wanted], groups):
        column = batch.column(columns.image)
        yield column.flatten()[0] if columns.has_path else column


def _bounds(values: Any) -> NDArray[np.int64]:
    """Where each value of a binary array begins in its buffer, and where the last ends, (values + 1,)."""
    if not len(values):
        return np.zeros(1, np.int64)
    kind = np.int64 if str(values.type).startswith("large") else np.int32
    offsets = np.frombuffer(values.buffers()[1], kind)
    return offsets[values.offset : values.offset + len(values) + 1].astype(np.int64)


def _values(batch: Any, column: str, path: Path) -> list[Any]:
    try:
        return list(batch.column(column).to_pylist())
    except Exception as error:  # a name that is not UTF-8, as damage leaves it
        raise _damaged(path, error) from None


def _bytes_of(file: Any, column: str) -> int:
    """Bytes of a column's values, by the file's own account."""
    total, metadata = 0, file.metadata
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(number)
            if chunk.path_in_schema.split(".")[0] == column:
                total += chunk.total_uncompressed_size
    return total


def _first_suffix(file: Any, path: Path, columns: Columns) -> str:
    """The name of a file that has none of its own: by the first image's content."""
    wanted = f"{columns.image}.bytes" if columns.has_path else columns.image
    for batch in _batches(file, path, 1, [wanted]):
        entry = _values(batch, columns.image, path)[0]
        data = (entry and entry["bytes"]) if columns.has_path else entry
        return suffix_of(data or b"")
    return ".jpg"


def label_in(path: Path, row: int, column: str, value: Any) -> Label:
    """The label in a row's column; raises `RequestError` where it is neither a number nor text."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise RequestError(
            f"{path}: row {row}: {column} must be a class's number or name, is {shown(shortened(str(value)))}"
        )
    return value


def holds_images(path: Path, asked: Sequence[str] | None) -> bool:
    """Whether images are in a parquet file, and not only the names of files."""
    types = needed("pyarrow", "parquet").types
    with _opened(path) as file:
        fields = [field for field in file.schema_arrow if not asked or field.name == asked[0]]
    kinds = (types.is_struct, types.is_binary, types.is_large_binary)
    return any(kind(field.type) for field in fields for kind in kinds) or not any(
        types.is_string(field.type) or types.is_large_string(field.type) for field in fields
    )


def _labelled(path: Path, asked: Sequence[str] | None) -> bool:
    """Whether a file of a test split has labels: ImageNet's are all -1."""
    with _opened(path) as file:
        columns = find_columns(file.schema_arrow, path, asked)
        batch = next(_batches(file, path, 1, [columns.label]), None)
        return batch is not None and _values(batch, columns.label, path)[0] not in (None, -1)


def _common_columns(paths: list[Path], asked: Sequence[str] | None) -> Columns:
    first: Columns | None = None
    for path in paths:
        with _opened(path) as file:
            columns = find_columns(file.schema_arrow, path, asked)
        first = first or columns
        if columns != first:
            what = "class names" if columns[:3] == first[:3] else "columns of images and labels"
            raise RequestError(f"{path}: has other {what} than {paths[0]}: they are of different data sets")
    assert first is not None
    return first


def find_columns(schema: Any, path: Path, asked: Sequence[str] | None = None) -> Columns:
    """The columns of images and labels in a table's schema (`pyarrow.Schema`), by their names and types.

    Args:
        asked: Their names, None to find them.

    Raises:
        RequestError: There are none, or several that might be.
    """
    types = needed("pyarrow", "parquet").types
    has_path, is_label = {}, set[str]()
    try:
        columns = list(schema.names)
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: a column's name is not UTF-8 ({reason(error)}): download the file again") from None
    for field in schema:
        if types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            has_path[field.name] = field.type.get_field_index("path") >= 0
        elif types.is_binary(field.type) or types.is_large_binary(field.type):
            has_path[field.name] = False
        elif any(
            is_kind(field.type)
            for is_kind in (types.is_integer, types.is_string, types.is_large_string, types.is_dictionary)
        ):
            is_label.add(field.name)
    names = _class_names(schema, path)
    has = ", ".join(shown(name) for name in columns[:8]) + (", ..." if len(columns) > 8 else "")
    if asked and (unknown := [name for name in asked[:2] if name not in columns]):
        raise RequestError(f"{path}: has no column {shown(unknown[0])}, its columns are {has}")
    image = _chosen(list(has_path), asked[:1] if asked else _IMAGES, not asked)
    if image is None:
        raise RequestError(f"{path}: has no column of images (called image), its columns are {has}")
    label = None if asked else _chosen([name for name in names if name in is_label], _LABELS)
    label = label or _chosen(sorted(is_label), asked[1:2] if asked else _LABELS, False)
    if label is None:
        raise RequestError(f"{path}: has no column of labels (called label), its columns are {has}")
    struct = types.is_struct(schema.field(image).type)
    if struct and not has_path[image]:
        raise RequestError(f"{path}: its column {shown(image)} must have bytes and path, as Hugging Face writes them")
    return Columns(image, struct, label, names.get(label))


def _chosen(names: list[str], known: Iterable[str], alone: bool = True) -> str | None:
    """The one among `names` that is called as is usual, or that is the only one."""
    usual = next((name for name in known if name in names), None)
    return usual or (names[0] if alone and len(names) == 1 else None)


def _class_names(schema: Any, path: Path) -> dict[str, tuple[str, ...]]:
    """What the numbers in each column mean, by the schema's `huggingface` metadata."""
    text = (schema.metadata or {}).get(b"huggingface")
    if not text:
        return {}
    try:
        features = json.loads(text)["info"]["features"]
        return {
            name: tuple(map(str, feature["names"]))
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RequestError(
            f"{path}: its huggingface metadata are damaged ({reason(error)}): download it again"
        ) from None
