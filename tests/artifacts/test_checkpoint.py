"""Checkpoints: whole or not there, checked when read, plain."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny import Result

from gaeanet.artifacts import checkpoint
from gaeanet.cells.read import from_dict
from gaeanet.cells.zoo import ZOO
from gaeanet.errors import RequestError, RunError

TENSORS = {"model": {"a": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)}, "ema": {"a": torch.ones(2)}}


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    state = {"other": {"top1_accuracy": 1 / 3}, "classes": ["ä", "b\udcfc"], "nothing": None}
    path = checkpoint.save(tmp_path, 12, TENSORS, state)
    assert path.name == "step-000000012"
    tensors, again = checkpoint.load(path)
    assert again == state
    for group, values in TENSORS.items():
        for name, value in values.items():
            assert torch.equal(tensors[group][name], value)
            assert tensors[group][name].dtype == value.dtype


def test_links_and_pruning_keep_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in range(1, 6):
        path = checkpoint.save(tmp_path, step, TENSORS, {})
        checkpoint.point(tmp_path, "latest", path)
        if step == 2:
            checkpoint.point(tmp_path, "best", path)
    (tmp_path / ".step-000000009.1").mkdir()
    checkpoint.prune(tmp_path, 2, keep={2})
    assert [path.name[-1] for path in checkpoint.checkpoints(tmp_path)] == ["2", "4", "5"]
    assert (tmp_path / "latest").resolve().name == "step-000000005"
    assert not list(tmp_path.glob(".step-*"))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, TENSORS, {})
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "model.safetensors").write_bytes(data)
    with pytest.raises(RequestError, match=r"model.safetensors: damaged \(wrong checksum\)"):
        checkpoint.load(path)
    (path / "model.safetensors").unlink()
    with pytest.raises(RequestError, match="model.safetensors: missing"):
        checkpoint.load(path)
    (path / "manifest.json").write_text("{")
    with pytest.raises(RequestError, match="not a gaeanet checkpoint"):
        checkpoint.load(path)
    (path / "manifest.json").write_text(json.dumps({"format": 99, "files": {}, "state": {}}))
    with pytest.raises(RequestError, match="checkpoint format 99"):
        checkpoint.load(path)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot save .*: (file exists|not a directory); earlier ones are intact"):
        checkpoint.save(tmp_path / "file", 1, TENSORS, {})


def test_field_report_50_a_run_leaves_tensors_and_plain_values_only(
    gaeanet: Callable[..., Result], experiment_file: Callable[..., Path], t3: Path, tmp_path: Path
) -> None:
    """Nothing in a checkpoint could be code, and nothing in it depends on a version of torch or numpy."""
    assert gaeanet("train", experiment_file(epochs=1), "--data", t3).code == 0
    path = tmp_path / "runs" / "tiny" / "checkpoints" / "latest"
    files = {file.name for file in path.iterdir()}
    assert files == {"manifest.json"} | {f"{g}.safetensors" for g in ("model", "ema", "optimizer", "meter")}
    for file in files - {"manifest.json"}:
        with safe_open(path / file, "pt") as opened:
            assert all(isinstance(opened.get_tensor(name), torch.Tensor) for name in opened.keys())  # noqa: SIM118 (a file, not a mapping)
    hyperparameters = json.loads((path / "manifest.json").read_text())["state"]["hyperparameters"]
    assert from_dict(hyperparameters["genotype"]) == ZOO["gaea-imagenet"].genotype
