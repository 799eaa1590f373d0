"""The index of foreign tars: made once from their headers, kept in the cache directory, mapped by all processes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from gaeanet.data.sources.catalog import check_names
from gaeanet.data.sources.index import catalog_arrays, catalog_from, read_index, write_index
from gaeanet.data.sources.ranges import RangeSource
from gaeanet.data.sources.samples import Ranges
from gaeanet.data.storage.bucket_index import BucketIndexes, cache_directory
from gaeanet.errors import RequestError, reason

_KIND = "ranges.safetensors"
_VERSION = 1
"""Of the index's content: raised when the same files would give another catalog."""


class IndexedRanges(RangeSource):
    """Images at offsets that an index file holds; a worker process maps the file instead of getting a copy.

    Raises:
        RequestError: The index cannot be read.
    """

    def __init__(self, location: str, units: dict[str, list[Path]], index: Path) -> None:
        self.location, self._units, self._index = location, units, index
        self._load()
        check_names(self.catalog, str(index))

    def _load(self) -> None:
        self._files = {}
        arrays, facts = read_index(self._index)
        try:
            self.notes = list(facts["notes"])
            self.catalog = catalog_from(arrays, facts["classes"])
            self._ranges = {
                split: Ranges(*(arrays[f"{split}.{field}"] for field in Ranges._fields)) for split in self._units
            }
        except (KeyError, TypeError, ValueError):
            raise RequestError(f"{self._index}: not an index of image files: remove it") from None

    def __getstate__(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in ("location", "_units", "_index")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._load()


def indexed(
    root: Path, units: dict[str, list[Path]], beside: Sequence[Path], read: Callable[[], RangeSource]
) -> RangeSource:
    """The source that `read` makes, from an index of an earlier call where no file has changed since.

    Args:
        root: The directory of all files.
        units: The files of each split.
        beside: Other files that `read` looks at.

    Raises:
        RequestError: `read` refuses the files.
    """
    location = str(root)
    indexes = BucketIndexes(str(root.resolve()), cache_directory(), _KIND)
    path = indexes.path(_fingerprint(units, beside))
    with ExitStack() as stack:
        try:
            stack.enter_context(indexes.lock())
        except RequestError:
            return _unkept(read(), path)
        if path.exists():
            try:
                source = IndexedRanges(location, units, path)
                indexes.use(path)
                return source
            except RequestError:  # damaged since it was written: made again
                path.unlink()
        made = read()
        try:
            _write(made, path)
        except OSError:
            return _unkept(made, path)
        del made  # a million samples would be in memory twice
    return IndexedRanges(location, units, path)


def _unkept(source: RangeSource, path: Path) -> RangeSource:
    source.notes.append(f"{path.parent}: cannot be written: each process makes its own index of {source.location}")
    return source


def _write(source: RangeSource, path: Path) -> None:
    arrays = catalog_arrays(source.catalog)
    for split, ranges in source.ranges.items():
        arrays |= {f"{split}.{field}": array for field, array in ranges._asdict().items()}
    write_index(path, arrays, {"classes": list(source.catalog.classes), "notes": source.notes})


def _fingerprint(units: dict[str, list[Path]], beside: Sequence[Path]) -> str:
    """Changes with any file's name, size or time of change."""
    facts: list[object] = [_VERSION]
    for path in [*(path for paths in units.values() for path in paths), *beside]:
        try:
            status = path.stat()
        except OSError as error:
            raise RequestError(f"{path}: cannot be read: {reason(error)}") from None
        facts.append((str(path), status.st_size, status.st_mtime_ns))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
