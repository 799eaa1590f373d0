"""What gaeanet wrote into a file about it: a checkpoint's state, or an export's block. Needs no torch."""

from __future__ import annotations

import importlib
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

from gaeanet.artifacts.find import EXPORT_CONFIG, find
from gaeanet.artifacts.manifest import MOST_BYTES
from gaeanet.errors import RequestError, reason
from gaeanet.runtime.files import is_directory, is_file, read_json

METADATA = "gaeanet"
"""Under this name an ONNX file's metadata and a torch.export program's extra files hold gaeanet's metadata."""


def read_metadata(path: Path) -> dict[str, Any] | None:
    """What gaeanet wrote into a file or directory about it: a checkpoint's state, or an export's block.

    None where it is nothing of gaeanet's.

    Raises:
        RequestError: It should be there and cannot be read.
    """
    if is_file(path) and path.suffix == ".onnx":
        return _onnx_metadata(path)
    if is_file(path) and path.suffix == ".pt2":
        return _pt2_metadata(path)
    if is_directory(path):
        for name in ("model.onnx", "model.pt2"):
            if is_file(path / name):
                return read_metadata(path / name)
    trained = find(path)
    if is_file(trained.path / EXPORT_CONFIG):
        return dict(read_json(trained.path / EXPORT_CONFIG, MOST_BYTES)[METADATA])
    weights = {kind: digest for kind, (_, digest) in trained.digests.items()}
    return {"format": "checkpoint", "path": str(trained.path), "state": trained.state, "digests": weights}


def _onnx_metadata(path: Path) -> dict[str, Any] | None:
    """The metadata of an ONNX file; weights that it keeps in files of their own are not opened."""
    try:
        onnx, protobuf = importlib.import_module("onnx"), importlib.import_module("google.protobuf.message")
    except ImportError as error:
        raise RequestError(
            f"{path}: an ONNX file is read with the package {error.name}: pip install 'gaeanet[export]'"
        ) from None
    try:
        entries = onnx.ModelProto.FromString(path.read_bytes()).metadata_props
        text = next((entry.value for entry in entries if entry.key == METADATA), None)
        return None if text is None else dict(json.loads(text))
    except (OSError, ValueError, TypeError, RecursionError, protobuf.DecodeError) as error:
        raise RequestError(f"{path}: not an ONNX file, or damaged: {reason(error)}") from None


def _pt2_metadata(path: Path) -> dict[str, Any] | None:
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.rsplit("/", 1)[-1] == METADATA:
                    with archive.open(name) as file:
                        return dict(json.loads(file.read(MOST_BYTES)))
    except (OSError, ValueError, TypeError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise RequestError(f"{path}: not a torch.export program, or damaged: {reason(error)}") from None
    return None
