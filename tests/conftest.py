"""Fixtures: tiny folders of photographs, tiny experiments, and the command line in this process."""

from __future__ import annotations

import gc
import io
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from hypothesis import settings
from PIL import Image
from services import gcs, gcs_server, s3, s3_server  # noqa: F401 (fixtures)

from gaeanet.checkpoint import load
from gaeanet.cli import main

# Machines are shared: a test must not fail because it was slow once.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

torch.set_num_threads(1)  # tests run side by side; threads of tiny networks only get into each other's way

gc.disable()  # a third of the time that imports take is looking for garbage among a million objects that stay

DEAREST = (
    "test_distributed.py",
    "test_trial.py",
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
"""The files that take longest (make test tells which tests do): they begin, and what is left for the end is short."""


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


COLOURS = [(200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40), (40, 200, 200), (200, 40, 200)]


def jpeg(colour: tuple[int, int, int], size: tuple[int, int], noise: int = 0) -> bytes:
    """A JPEG of one colour, told from others of that colour by a little noise."""
    rng = np.random.default_rng(noise)
    pixels = np.clip(np.array(colour) + rng.integers(-12, 12, (size[1], size[0], 3)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def broken_exif() -> bytes:
    """A good JPEG whose EXIF block ends within a tag; it asks for a rotation too."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0" + struct.pack("<HHLL", 0x0112, 3, 1, 6) + b"\x0f\x01\x02\0\xff\xff\0\0"
    data = jpeg((200, 40, 40), (60, 40))
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


def make_folder(root: Path, classes: int = 3, train: int = 6, val: int = 3) -> Path:
    """Class folders with `train` and `val` images each, one flat colour a class, 40 to 80 pixels."""
    for split, count in (("train", train), ("val", val)):
        for label in range(classes):
            folder = root / split / f"n{label:08d}"
            folder.mkdir(parents=True)
            for k in range(count):
                colour = COLOURS[label % len(COLOURS)]
                image = jpeg(colour, (40 + 8 * k % 41, 80 - 5 * k % 41), noise=label * 100 + k)
                (folder / f"{split}_{k}.JPEG").write_bytes(image)
    return root


@pytest.fixture
def t3(tmp_path: Path) -> Path:
    """Three classes, 6 training and 3 validation images each."""
    return make_folder(tmp_path / "t3")


NET: dict[str, Any] = {
    "num_classes": 3,
    "init_channels": 4,
    "layers": 3,
    "image_size": 32,
    "global_batch_size": 4,
    "epochs": 2,
    "warmup_epochs": 0,
    "learning_rate": 0.05,
    "color_jitter": False,
    "ema_decay": 0.9,
}


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


class TinyRun(NamedTuple):
    """A finished run and the images it was trained with."""

    run: Path
    data: Path


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


class Result:
    """What a command line did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


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
        return Result(code, captured.out, captured.err)

    return run


def read_log(run_dir: Path, kind: str | None = None) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if kind is None or line["kind"] == kind]


def same_but_for_speed(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    """Whether two logs differ in nothing but the time that things took."""

    def strip(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]

    return strip(a) == strip(b)


def same_checkpoints(a: Path, b: Path) -> None:
    """Asserts that two runs' newest checkpoints are equal bit for bit."""
    tensors, state = load(a / "checkpoints" / "latest")
    others, other_state = load(b / "checkpoints" / "latest")
    assert tensors.keys() == others.keys()
    for group, values in tensors.items():
        assert values.keys() == others[group].keys()
        for name, value in values.items():
            assert torch.equal(value, others[group][name]), (group, name)
    assert state == other_state


@pytest.fixture
def evaluation_data() -> Path:
    """The directory of local evaluation data, or a skip that says so."""
    root = os.environ.get("GAEANET_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("GAEANET_DATA names no directory of local evaluation data")
    return Path(root)
