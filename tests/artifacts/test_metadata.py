"""What a file says of itself: an ONNX file's block is read by the package onnx, and one line says what is wrong."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import Result

from gaeanet.artifacts.metadata import METADATA, read_metadata
from gaeanet.errors import RequestError


def onnx_file(path: Path, text: str | None) -> Path:
    onnx: Any = pytest.importorskip("onnx")
    model = onnx.ModelProto()
    if text is not None:
        entry = model.metadata_props.add()
        entry.key, entry.value = METADATA, text
    path.write_bytes(model.SerializeToString())
    return path


def test_an_onnx_files_own_block_is_read(tmp_path: Path) -> None:
    facts = {"format": "onnx", "state": {}}
    assert read_metadata(onnx_file(tmp_path / "net.onnx", json.dumps(facts))) == facts
    assert read_metadata(onnx_file(tmp_path / "other.onnx", None)) is None


@pytest.mark.parametrize("text", ["[", "[1]", "3", "null"])
def test_a_block_that_is_not_a_mapping_is_damage(tmp_path: Path, text: str) -> None:
    with pytest.raises(RequestError, match=r"net\.onnx: not an ONNX file, or damaged: "):
        read_metadata(onnx_file(tmp_path / "net.onnx", text))


@pytest.mark.parametrize("content", [b"hello", b"\xff" * 100, b"\x72\xff\xff\xff\xff\x0f"])
def test_what_is_no_onnx_file_is_one_line(gaeanet: Callable[..., Result], tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("onnx")
    (tmp_path / "net.onnx").write_bytes(content)
    result = gaeanet("describe", "net.onnx")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "net.onnx: not an ONNX file, or damaged: " in result.err


def test_without_the_package_one_line_says_what_to_install(
    gaeanet: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.onnx").write_bytes(b"")

    def missing(name: str) -> Any:
        raise ImportError(name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(RequestError, match=r"read with the package onnx: pip install 'gaeanet\[export\]'"):
        read_metadata(tmp_path / "net.onnx")
