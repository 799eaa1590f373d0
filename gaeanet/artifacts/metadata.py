"""What gaeanet wrote into a file about it: a checkpoint's state, or an export's block. Needs no torch."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gaeanet.artifacts.find import EXPORT_CONFIG, find
from gaeanet.errors import RequestError, reason

METADATA = "gaeanet"
"""Under this name an ONNX file's metadata and a torch.export program's extra files hold what gaeanet says of them."""


def read_metadata(path: Path) -> dict[str, Any] | None:
    """What gaeanet wrote into a file or directory about it: a checkpoint's state, or an export's block.

    None where it is nothing of gaeanet's.

    Raises:
        RequestError: It should be there and cannot be read.
    """
    if path.is_file() and path.suffix == ".onnx":
        return _onnx_metadata(path)
    if path.is_file() and path.suffix == ".pt2":
        return _pt2_metadata(path)
    if path.is_dir():
        for name in ("model.onnx", "model.pt2"):
            if (path / name).is_file():
                return read_metadata(path / name)
    trained = find(path)
    if (trained.path / EXPORT_CONFIG).is_file():
        return dict(json.loads((trained.path / EXPORT_CONFIG).read_text(encoding="utf-8"))[METADATA])
    weights = {kind: digest for kind, (_, digest) in trained.digests.items()}
    return {"format": "checkpoint", "path": str(trained.path), "state": trained.state, "digests": weights}


def _onnx_metadata(path: Path) -> dict[str, Any] | None:
    """The metadata of an ONNX file, read from its protocol buffer: no package is needed for that."""
    try:
        content = path.read_bytes()
        for field, value in _fields(content):
            if field == 14:  # ModelProto.metadata_props
                entry = dict(_fields(value))
                if entry.get(1) == METADATA.encode():
                    return dict(json.loads(entry[2]))
    except (OSError, ValueError, IndexError, struct.error) as error:
        raise RequestError(f"{path}: not an ONNX file, or damaged: {reason(error)}") from None
    return None


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a protocol buffer message: number and content."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while place < len(data):
        key = varint()
        kind = key & 7
        if kind == 0:
            varint()
        elif kind in (1, 5):
            place += 8 if kind == 1 else 4
        elif kind == 2:
            length = varint()
            if place + length > len(data):
                raise ValueError("it ends too early")
            yield key >> 3, data[place : place + length]
            place += length
        else:
            raise ValueError("unknown content")


def _pt2_metadata(path: Path) -> dict[str, Any] | None:
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.rsplit("/", 1)[-1] == METADATA:
                    return dict(json.loads(archive.read(name)))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise RequestError(f"{path}: not a torch.export program, or damaged: {reason(error)}") from None
    return None
