"""Runs the cases of the GPU kernels: in Triton's interpreter and, where there is one, on a GPU.

In a process of its own: Triton reads its variable when it is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from gaeanet.kernels.gpu.availability import obstacle

HERE = Path(__file__).parent
CASES = sorted(path.name for path in HERE.glob("cases_*.py"))

pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed"),
    pytest.mark.skipif(
        find_spec("triton") is not None and version("triton").startswith("3.2."),
        reason="Triton 3.2 does not compile the kernels: a run's trial refuses them",
    ),
]


def run(cases: str, selection: str, **variables: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", selection]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    result = subprocess.run(
        [*command, str(HERE / cases)],
        env=environment | {"OMP_NUM_THREADS": "1"} | variables,
        cwd=HERE.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("cases", CASES)
def test_in_the_interpreter(cases: str) -> None:
    run(cases, "not slow", TRITON_INTERPRET="1")


@pytest.mark.slow
@pytest.mark.parametrize("reduction", [False, True])
def test_the_published_cell_in_the_interpreter(reduction: bool) -> None:
    """Those of the whole zoo take ten minutes: TRITON_INTERPRET=1 pytest -m slow tests/kernels/gpu/cases_cell.py."""
    run(f"cases_cell.py::test_published_cells[gaea-imagenet-{reduction}]", "slow", TRITON_INTERPRET="1")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("cases", CASES)
def test_on_the_gpu(cases: str) -> None:
    run(cases, "not slow")


def test_obstacles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert obstacle(torch.device("cpu"), torch.float32) == "not on an NVIDIA GPU"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert obstacle(torch.device("cpu"), torch.float32) is None
    assert obstacle(torch.device("cpu"), torch.float16) == "fp16"
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert obstacle(torch.device("cuda"), torch.bfloat16) == "the GPU is older than sm_80"
    assert obstacle(torch.device("cuda"), torch.float16) == "fp16"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert obstacle(torch.device("cuda"), torch.bfloat16) is None
