"""Fixtures: tiny folders of photographs, tiny experiments, and the command line in this process."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import settings
from services import gcs, gcs_server, s3, s3_server  # noqa: F401 (fixtures)
from tape import tape  # noqa: F401 (a fixture)
from tiny import NET, Result, TinyRun, make_folder

from gaeanet.cli.main import main

# Machines are shared: a test must not fail because it was slow once.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

torch.set_num_threads(1)  # tests run side by side; threads of tiny networks only get into each other's way

gc.disable()  # a third of the time that imports take is looking for garbage among a million objects that stay

DEAREST = (
    "test_slurm.py",
    "test_distributed.py",
    "test_determined_trial.py",
    "test_bucket.py",
    "test_benchmarks.py",
    "test_export.py",
    "test_recipes.py",
    "test_sources.py",
    "test_train.py",
    "test_mirror.py",
    "test_failures.py",
    "test_reference_networks.py",
    "test_prepare.py",
    "test_graphs.py",
)
"""The files that take longest (make test prints the slowest): they begin, so that the end is short."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Whole files: a file's fixtures are made once where its tests stay together.
    places = {name: place for place, name in enumerate(DEAREST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # all that is imported by now: no collection looks through it any more
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # Triton's objects must be freed when Python ends, or its binding complains


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run in this process draws no curve, half of a tiny run's time, unless its test is marked `drawn`.

    `tiny_run` and runs in processes of their own draw theirs.
    """
    if request.node.get_closest_marker("drawn") is None:
        monkeypatch.setattr("gaeanet.training.loop.draw_curves", lambda logs, path: path.write_bytes(b"not drawn"))


@pytest.fixture
def t3(tmp_path: Path) -> Path:
    """Three classes, 6 training and 3 validation images each."""
    return make_folder(tmp_path / "t3")


@pytest.fixture
def experiment_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tiny experiment; keywords go into hyperparameters, `data` into the data block."""

    def write(name: str = "tiny", data: dict[str, Any] | None = None, **hyperparameters: Any) -> Path:
        block = {"num_workers_train": 0, "num_workers_val": 0, **(data or {})}
        tree = {"name": name, "data": block, "hyperparameters": {**NET, **hyperparameters}}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    return write


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A run of three classes and eight epochs with EMA, a tower and squeeze-excite: to read, not to change."""
    root = tmp_path_factory.mktemp("tiny")
    data = make_folder(root / "data", train=8, val=7)
    values = {**NET, "auxiliary": True, "global_batch_size": 8, "epochs": 8, "learning_rate": 0.02}
    block = {"num_workers_train": 0, "num_workers_val": 0}
    config = root / "tiny.yaml"
    config.write_text(yaml.safe_dump({"name": "tiny", "data": block, "hyperparameters": values}))
    assert main(["train", str(config), "--data", str(data), "--run-dir", str(root / "run")]) == 0
    return TinyRun(root / "run", data)


@pytest.fixture
def gaeanet(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Runs `gaeanet ARGUMENTS` in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: Any) -> Result:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # --help and --version
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def evaluation_data() -> Path:
    """The directory of local evaluation data, or a skip that says so."""
    root = os.environ.get("GAEANET_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("GAEANET_DATA names no directory of local evaluation data")
    return Path(root)
