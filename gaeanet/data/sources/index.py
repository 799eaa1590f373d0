"""Named arrays in one file that every process maps instead of reading: a million samples cost memory once a machine.

The file is a safetensors file (header of JSON, then the arrays), so that any tool can read it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gaeanet.data.sources.catalog import Catalog, Split
from gaeanet.errors import RequestError, reason
from gaeanet.runtime.names import is_whole

FORMAT = 1
_READ = (1, 2)
_DTYPES = {"U8": np.uint8, "I32": np.int32, "I64": np.int64}
_NAMES = {np.dtype(kind): name for name, kind in _DTYPES.items()}

Arrays = dict[str, NDArray[Any]]


def write_index(path: Path, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
    """Writes `arrays` and `facts` (anything JSON holds) to `path`, whole or not at all, without copying the arrays."""
    header: dict[str, Any] = {"__metadata__": {"gaeanet": json.dumps({"format": FORMAT, **facts})}}
    names, end = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name)), 0
    for name in names:
        begin, end = end, end + arrays[name].nbytes
        kind = _NAMES[arrays[name].dtype]
        header[name] = {"dtype": kind, "shape": arrays[name].shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with open(draft, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(np.ascontiguousarray(arrays[name]).data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def read_index(path: Path, name: str | None = None) -> tuple[Arrays, dict[str, Any]]:
    """Arrays (mapped, read-only) and facts of an index file.

    Args:
        name: What to call the file in messages, where it is the copy of another.

    Raises:
        RequestError: It is not such a file, or cut short, or of a later format.
    """
    name = name or str(path)
    try:
        block = np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.empty(0, np.uint8)
        length = int(block[:8].view("<u8")[0])
        header = json.loads(block[8 : 8 + length].tobytes())
        facts = json.loads(header.pop("__metadata__")["gaeanet"])
        if not isinstance(facts, dict):
            raise TypeError("no facts")
        arrays: Arrays = {}
        for key, entry in header.items():
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            if not 8 + length <= start <= end <= len(block):
                raise ValueError("cut short")
            arrays[key] = block[start:end].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    except OSError as error:
        raise RequestError(f"{name}: cannot be read: {reason(error)}") from None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise RequestError(f"{name}: not an index that gaeanet wrote, or cut short: make it again") from None
    if facts.get("format") not in _READ:
        raise RequestError(f"{name}: index format {facts.get('format')}; this version of gaeanet reads 1 and 2")
    return arrays, facts


def catalog_arrays(catalog: Catalog) -> Arrays:
    """The samples of a catalog as arrays for an index; `catalog_from` turns them back."""
    return {
        f"{name}.{field}": getattr(catalog.split(name), field)
        for name in ("train", "val")
        for field in ("names", "ends", "labels")
    }


def catalog_from(arrays: Arrays, classes: list[str]) -> Catalog:
    """The catalog that an index holds; raises KeyError, TypeError or ValueError where it holds none."""
    if not isinstance(classes, list) or not all(isinstance(name, str) and is_whole(name) for name in classes):
        raise TypeError("classes that have no names")
    return Catalog(tuple(classes), *(_split(arrays, name, len(classes)) for name in ("train", "val")))


def _split(arrays: Arrays, name: str, classes: int) -> Split:
    names = of_type(arrays[f"{name}.names"], np.uint8)
    ends, labels = of_type(arrays[f"{name}.ends"], np.int64), of_type(arrays[f"{name}.labels"], np.int32)
    if not len(ends) or len(ends) != len(labels) or ends[-1] != len(names):
        raise ValueError("names without samples")
    if not within(ends, len(names) + 1) or (np.diff(ends, prepend=0) < 0).any():
        raise ValueError("names that overlap")
    if not within(labels, classes):
        raise ValueError("labels of no class")
    return Split(names, ends, labels)


def of_type(array: NDArray[Any], kind: type[np.generic], *shape: int) -> NDArray[Any]:
    """An array of an index, whose entries have this shape; raises ValueError where it is another."""
    if array.dtype != kind or array.shape[1:] != shape or array.ndim != 1 + len(shape):
        raise ValueError(f"{array.dtype} {array.shape}")
    return array


def within(numbers: NDArray[Any], bound: int) -> bool:
    """Whether all numbers of an index are among 0..bound-1."""
    return bool((numbers >= 0).all() and (numbers < bound).all())
