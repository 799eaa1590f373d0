"""A quick start leaves garbage collection as it was, and a command that went well leaves standard error empty."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from tiny import NET, TinyRun

from gaeanet.artifacts.export import ONNX_FROM
from gaeanet.runtime.imports import importing, uncollected


@pytest.fixture(autouse=True)
def collecting() -> Iterator[None]:
    yield
    gc.enable()


@pytest.mark.parametrize("enabled", [True, False])
def test_collection_pauses_while_modules_are_imported(enabled: bool) -> None:
    if not enabled:
        gc.disable()
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled() == enabled
    with pytest.raises(KeyError), uncollected():
        raise KeyError
    assert gc.isenabled() == enabled


def test_only_what_is_there_before_triton_is_set_apart() -> None:
    code = (
        "import gc, sys\nfrom gaeanet.runtime.imports import importing\n"
        "with importing(torch=True):\n    frozen = gc.get_freeze_count()\n    import timm\n"
        "assert frozen > 100_000\nassert gc.get_freeze_count() <= frozen\n"
        "frozen = gc.get_freeze_count()\nwith importing(torch=True):\n    pass\n"
        "assert gc.get_freeze_count() == frozen\nassert gc.isenabled()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_command_line_is_read_before_numpy_is_needed() -> None:
    code = "import sys, gaeanet.cli.main\nassert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


COMMANDS = (
    "--version",
    "train tiny.yaml --data {data}",
    "search search.yaml --data {data}",
    "bench tiny.yaml --data {data} --seconds 1",
    "plot {run} -o curve.png",
    "describe gaea-imagenet",
    "describe {run} --draw cell.svg",
    "evaluate {run} --data {data}",
    "predict {run} {data}/val",
    "export {run} net",
    "export {run} net.pt2 --format torch-export",
    "export {run} net.onnx --format onnx",
    "report {run} -o report.html",
    "import {weights} imported",
    "prepare {data} shards --shards",
    "prepare {data} --verify",
)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_field_report_96_a_command_that_went_well_leaves_standard_error_empty(
    command: str, tiny_run: TinyRun, tmp_path: Path
) -> None:
    """In a process of its own, with whatever versions of everything are installed."""
    if "onnx" in command and torch.__version__ < ONNX_FROM:
        pytest.skip(f"ONNX export needs PyTorch {ONNX_FROM}")
    values = {**NET, "epochs": 1, "genotype": "gaea-imagenet"}
    searched = {key: value for key, value in values.items() if key not in ("genotype", "ema_decay")}
    searched |= {"init_channels": 8, "search": {}}
    for name, hyperparameters in (("tiny", values), ("search", searched)):
        tree = {
            "name": name,
            "data": {"num_workers_train": 1, "num_workers_val": 1},
            "hyperparameters": hyperparameters,
        }
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    weights = tiny_run.run / "checkpoints" / "latest" / "model.safetensors"
    words = command.format(data=tiny_run.data, run=tiny_run.run, weights=weights).split()
    if words[0] == "import":  # beside a manifest the file would be taken for the checkpoint that it is a part of
        (tmp_path / "model.safetensors").write_bytes(weights.read_bytes())
        words[1] = "model.safetensors"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("GAEANET", "PYTHONWARN"))}
    done = subprocess.run(
        [sys.executable, "-m", "gaeanet.cli", *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
