"""Arrow files, as `datasets` writes them with `save_to_disk` and in its cache: images lie in one piece each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gaeanet.data.formats import suffix_of
from gaeanet.data.sources.parquet import Columns, find_columns, label_in
from gaeanet.data.sources.ranges import RangeSource
from gaeanet.data.sources.samples import Label, Samples
from gaeanet.data.sources.split_files import by_split
from gaeanet.errors import RequestError, reason
from gaeanet.runtime.imports import needed
from gaeanet.runtime.names import shortened

_END = b"\xff\xff\xff\xff\0\0\0\0"


def open_arrow(root: Path, files: list[str]) -> RangeSource:
    """The Arrow files `files` below `root`.

    Raises:
        RequestError: One is missing, cut short or damaged, or there is no column of images or labels, or the labels
            contradict each other.
    """
    units = by_split(files, root, "Arrow files")
    paths = [path for split_paths in units.values() for path in split_paths]
    columns = {path: _columns(path) for path in paths}
    if other := next((path for path in paths if columns[path] != columns[paths[0]]), None):
        raise RequestError(f"{other}: has other columns or class names than {paths[0]}: two data sets")
    samples = Samples(units, columns[paths[0]].class_names)
    for split, split_paths in units.items():
        for number, path in enumerate(split_paths):
            for name, label, offset, size in _samples(path, columns[path]):
                samples.add(split, name, label, number, offset, size)
    return RangeSource(str(root), units, samples, [])


def _damaged(path: Path, error: Exception) -> RequestError:
    return RequestError(f"{path}: not a whole Arrow file ({shortened(reason(error), 120)}): download it again")


def _columns(path: Path) -> Columns:
    pyarrow = needed("pyarrow", "parquet")
    try:
        with pyarrow.memory_map(str(path)) as file, pyarrow.ipc.open_stream(file) as reader:
            schema = reader.schema
    except Exception as error:  # pyarrow meets damage with several kinds of exceptions
        raise _damaged(path, error) from None
    return find_columns(schema, path)


def _samples(path: Path, columns: Columns) -> Iterator[tuple[str, Label, int, int]]:
    """Name, label, offset and size of the image in each row."""
    row = 0
    for batch, file in _batches(path):
        images, labels = batch.column(columns.image), batch.column(columns.label).to_pylist()
        names = images.field("path").to_pylist() if columns.has_path else [None] * len(labels)
        data = images.field("bytes") if columns.has_path else images
        _, offsets, values = data.buffers()
        begin = values.address - file.address if values else 0
        if not 0 <= begin <= begin + (values.size if values else 0) <= file.size:
            raise RequestError(f"{path}: its columns are compressed: save it again without compression")
        kind = np.int64 if str(data.type).startswith("large") else np.int32
        bounds = np.frombuffer(offsets, kind)[data.offset : data.offset + len(data) + 1].tolist() if len(data) else [0]
        for name, label, start, stop in zip(names, labels, bounds, bounds[1:]):
            label_in(path, row, columns.label, label)
            if start == stop:
                raise RequestError(f"{path}: row {row}: its image has no bytes: it names a file elsewhere")
            stem = f"{path.stem}_{row:06d}"
            yield name or stem + suffix_of(values[start : start + 8].to_pybytes()), label, begin + start, stop - start
            row += 1


def _batches(path: Path) -> Iterator[tuple[Any, Any]]:
    """The batches of rows of a file, and the file as a buffer: both mapped, not read."""
    pyarrow = needed("pyarrow", "parquet")
    try:
        with pyarrow.memory_map(str(path)) as mapped:
            file = mapped.read_buffer()
            if file.slice(max(0, file.size - len(_END))).to_pybytes() != _END:
                raise ValueError("its end mark is missing")
            for batch in pyarrow.ipc.open_stream(pyarrow.BufferReader(file)):
                batch.validate(full=True)
                yield batch, file
    except RequestError:
        raise
    except Exception as error:
        raise _damaged(path, error) from None
