"""What `gaeanet bench` says, against what is known to be so: sleeps, measured peaks, a real run's time."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import NET, Result, make_folder

from gaeanet.artifacts import checkpoint
from gaeanet.bench import measure, memory
from gaeanet.bench import step as bench_step
from gaeanet.bench.memory import StepMemory
from gaeanet.bench.report import to_text
from gaeanet.bench.step import Steps
from gaeanet.config.experiment import experiment_from
from gaeanet.data.images.transforms import TrainingTransform
from gaeanet.data.sources import folder
from gaeanet.data.sources.synthetic import SyntheticSource
from gaeanet.runtime.processes import Processes
from gaeanet.training.learner import build_learner

Run = Callable[..., Result]
Write = Callable[..., Path]

CPU = torch.device("cpu")


def bench(gaeanet: Run, *arguments: Any, seconds: float = 2) -> dict[str, Any]:
    result = gaeanet("bench", *arguments, "--json", "--seconds", seconds)
    assert result.code == 0, result.err
    return dict(json.loads(result.out))


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Far more training images than validation images, so that validations take no time beside the training."""
    return make_folder(tmp_path / "many", train=40, val=1)


def left(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_a_slow_read_has_the_rate_of_its_sleep_and_is_named(
    gaeanet: Run, experiment_file: Write, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = folder.read_or_not
    monkeypatch.setattr(folder, "read_or_not", lambda path: (time.sleep(0.15), read(path))[1])
    found = bench(gaeanet, experiment_file(), "--data", many)
    assert 0.4 / 0.15 < found["stages"]["reading"]["images_per_second"] < 1 / 0.15  # a busy machine only adds to it
    assert found["stages"]["input"]["images_per_second"] < 1 / 0.15
    assert found["bottleneck"]["stage"] == "reading"
    assert "data.num_workers_train" in found["bottleneck"]["remedy"]
    assert not found["generated"]


def test_a_slow_transform_has_the_rate_of_its_sleep_and_is_named(
    gaeanet: Run, experiment_file: Write, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = TrainingTransform._finish
    monkeypatch.setattr(
        TrainingTransform, "_finish", lambda *given, **named: (time.sleep(0.15), finish(*given, **named))[1]
    )
    found = bench(gaeanet, experiment_file(), "--data", many)
    assert 0.4 / 0.15 < found["stages"]["augmenting"]["images_per_second"] < 1 / 0.15
    assert found["bottleneck"]["stage"] == "augmenting"


def test_workers_share_a_slow_read(
    gaeanet: Run, experiment_file: Write, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = folder.read_or_not
    monkeypatch.setattr(folder, "read_or_not", lambda path: (time.sleep(0.15), read(path))[1])
    monkeypatch.setattr("gaeanet.bench.measure.usable_workers", lambda asked: min(asked, 2))
    found = bench(gaeanet, experiment_file(data={"num_workers_train": 2}), "--data", many, seconds=4)
    assert 0.7 / 0.15 < found["stages"]["input"]["images_per_second"] < 4 / 0.15
    assert found["stages"]["end to end"]["images_per_second"] <= 1.5 * found["stages"]["input"]["images_per_second"]


def test_a_slow_part_of_the_step_is_named(
    gaeanet: Run, experiment_file: Write, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also: what the optimizer takes is that of a whole batch, whatever the number of images in it."""
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *given: (time.sleep(0.2), clip(*given))[1])
    found = bench(gaeanet, experiment_file(), "--data", many)
    assert found["bottleneck"]["stage"] == "optimizer"
    stages = found["stages"]
    assert 1 <= stages["optimizer"]["seconds_per_image"] / (0.2 / NET["global_batch_size"]) < 3
    parts = sum(stages[stage]["seconds_per_image"] for stage in bench_step.STEP)
    assert stages["step"]["seconds_per_image"] == pytest.approx(parts, rel=0.6)


def test_the_time_of_a_run_is_predicted_to_a_factor_of_five(
    gaeanet: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawing the curve and the page apart. And the table says what the JSON says, and nothing is left on the disk."""
    data = make_folder(tmp_path / "data", train=80, val=20)
    config = tmp_path / "run.yaml"
    hp = {**NET, "init_channels": 8, "global_batch_size": 20, "epochs": 2, "image_size": 48}
    workers = {"num_workers_train": 1, "num_workers_val": 0}
    config.write_text(yaml.safe_dump({"name": "run", "data": workers, "hyperparameters": hp}))
    before = left(tmp_path)
    found = bench(gaeanet, config, "--data", data, seconds=4)
    assert left(tmp_path) == before

    for name in ("_draw", "_write_report"):
        monkeypatch.setattr(f"gaeanet.training.loop.{name}", lambda *_: None)
    began = time.monotonic()
    assert gaeanet("train", config, "--data", data).code == 0
    took = time.monotonic() - began
    assert took / 5 < found["run"]["seconds"] < took * 5

    table = to_text(found)
    for stage, numbers in found["stages"].items():
        name = {"input": "= pipeline", "step": "= step"}.get(stage, stage)
        row = re.search(rf"^{name} +([\d.,]+) (ms|s) +([\d.,]+) +(\d+) %$", table, re.MULTILINE)
        assert row, table
        seconds, unit, rate, share = row.groups()
        assert float(seconds.replace(",", "")) * (1e-3 if unit == "ms" else 1) == pytest.approx(
            numbers["seconds_per_image"], abs=1e-3 if unit == "s" else 1e-6
        )
        assert float(rate.replace(",", "")) == pytest.approx(numbers["images_per_second"], rel=0.01)
        assert int(share) == round(100 * numbers["fraction"])
    assert f"bottleneck: {found['bottleneck']['stage']}: " in table
    assert "whole run: 2 epochs in " in table


def test_other_ways_of_a_step_are_measured_beside_the_one_that_is_taken(
    gaeanet: Run, experiment_file: Write, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU has several; one that cannot be had is left out."""
    monkeypatch.setitem(measure.WAYS, "cpu", ("auto", "graphs", False))
    found = bench(gaeanet, experiment_file(), "--data", many)
    assert found["ways"].keys() == {"false"}
    assert 0.1 < found["ways"]["false"] / found["stages"]["step"]["images_per_second"] < 10
    assert re.search(r"a step with another hyperparameters.compile: false [\d.,]+ images/s", to_text(found))


def test_a_batch_too_large_for_the_budget_is_worked_out(gaeanet: Run, experiment_file: Write) -> None:
    """However fast the machine: a step on the whole batch alone would take longer than the budget."""
    batch, budget = 4096, 3
    large = {"init_channels": 24, "layers": 8, "image_size": 96, "global_batch_size": batch}
    config = experiment_file(data={"generated_per_class": 1400}, **large)
    began = time.monotonic()
    found = bench(gaeanet, config, seconds=budget)
    assert time.monotonic() - began < 30
    step = found["stages"]["step"]
    assert step["images_measured"] * step["seconds_per_image"] < budget < batch * step["seconds_per_image"]
    assert found["generated"]
    words = to_text(found)
    assert words.startswith("[generated images] tiny: CPU")
    assert "reading (generated) " in words
    assert f"images and extrapolated to {batch:,}" in words


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of a part")
def test_the_memory_of_a_large_batch_is_predicted_from_two_small_ones() -> None:
    hp = {**NET, "init_channels": 16, "image_size": 224, "global_batch_size": 36}
    experiment = experiment_from({"hyperparameters": hp})
    learner = build_learner(experiment.hyperparameters, Processes())
    images = [torch.randint(256, (3, 224, 224), dtype=torch.uint8)]
    steps = Steps(learner, experiment.hyperparameters, images, SyntheticSource(3, 10, 32, 0).catalog.train.labels)
    small = steps.grow(12, 224, 0, 1e6)
    assert small is not None
    assert set(small.measured) == {2, 12}
    predicted = StepMemory.of(small.measured, 0, 36, 0, small.available)
    measured = memory.peak_of(steps._full_step(36), CPU)
    assert measured is not None
    others = measured - 36 * predicted.per_image  # the interpreter and its libraries would hide an error
    assert predicted.peak - others == pytest.approx(measured - others, rel=0.6)
    assert predicted.fits > 36


def test_what_fits() -> None:
    found = StepMemory.of({2: 300, 4: 400}, 0, 10, 50, 1000)
    assert (found.per_image, found.peak, found.fits) == (50, 700, 4 + (900 - 50 - 400) // 50)
    assert StepMemory.of({10: 600}, 100, 10, 0, 1000).per_image == 50
    assert StepMemory.of({2: 300, 4: 400}, 0, 10, 0, 280).fits == 0


def test_room_ends_where_a_container_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (memory.PROC / "meminfo").exists():
        pytest.skip("no /proc here")
    whole = memory.available(CPU)
    for name, text in (("max", "1000000"), ("current", "700000"), ("stat", "anon 5\ninactive_file 1000\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "_own_group", lambda: "job")
    assert memory.available(CPU) == pytest.approx(301_000 + memory.allocated(CPU), abs=20e6)
    assert memory.available(CPU) < whole


@pytest.mark.parametrize(
    ("environment", "arguments", "message"),
    [
        ({}, ["none.yaml"], "none.yaml: cannot read the experiment file"),
        ({}, ["tiny.yaml", "--seconds", "0"], "--seconds 0: must be 1 or more"),
        ({}, ["tiny.yaml", "--seconds", "nan"], "--seconds nan: must be 1 or more"),
        ({}, ["tiny.yaml", "--data", "nowhere"], "data.location: nowhere does not exist"),
        ({"WORLD_SIZE": "1"}, ["tiny.yaml"], "bench: measures one process; start it directly"),
        ({"DET_TASK_TYPE": "TRIAL"}, ["tiny.yaml"], "bench: measures one process; start it directly"),
    ],
)
def test_refusals_come_at_once(
    experiment_file: Write, tmp_path: Path, environment: dict[str, str], arguments: list[str], message: str
) -> None:
    experiment_file()
    code = (
        "import sys, gaeanet.cli.main as cli\ncode = cli.main(sys.argv[1:])\nsys.exit('torch' in sys.modules or code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "bench", *arguments],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_interrupted_it_leaves_nothing(
    gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, save = experiment_file(), checkpoint.save

    def interrupted(*arguments: Any) -> None:
        save(*arguments)
        assert list(tmp_path.glob(".gaeanet-bench-*/step-*"))
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", interrupted)
    before = left(tmp_path)
    result = gaeanet("bench", config, "--data", t3, "--seconds", 1)
    assert (result.code, result.err.count("\n"), result.out) == (130, 1, "")
    assert left(tmp_path) == before
