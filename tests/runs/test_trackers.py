"""Trackers beside the log: told what the log says, taken back on resume, and never the end of a run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from steps import interrupted_at
from tiny import Result, read_log

Run = Callable[..., Result]
Write = Callable[..., Path]


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_holds_the_log_also_after_a_restart(
    gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    config = experiment_file()
    with monkeypatch.context() as patch:
        patch.setattr("gaeanet.training.recorded.step", interrupted_at(6))
        assert gaeanet("train", config, "--data", t3, "--track", "tensorboard").code == 130
    assert gaeanet("train", config, "--data", t3, "--track", "tensorboard", "--resume").code == 0
    run = tmp_path / "runs" / "tiny"
    told = scalars(run)
    for kind, name in (("train", "loss"), ("train", "learning_rate"), ("validation", "ema_top1_accuracy")):
        logged = [(line["batches"], line[name]) for line in read_log(run, kind)]
        assert told[f"{kind}/{name}"] == [(k, pytest.approx(value, rel=1e-6)) for k, value in logged]


TOLD: list[Any] = []


class Tracker:
    """A tracker of somebody else's, which fails at its third line."""

    def begin(self, run_dir: Path, batches: int) -> None:
        TOLD.append((run_dir.name, batches))

    def line(self, line: dict[str, Any]) -> None:
        TOLD.append(line)
        if len(TOLD) == 4:
            raise ConnectionError("the server is away")

    def close(self) -> None:
        raise AssertionError("it was left out before")


def test_another_tracker_is_told_and_its_failure_is_not_the_runs(
    gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path
) -> None:
    TOLD.clear()
    sys.modules["their_tracker"] = sys.modules[__name__]
    result = gaeanet("train", experiment_file(epochs=1), "--data", t3, "--track", "their_tracker:Tracker")
    assert result.code == 0
    assert "their_tracker:Tracker is dropped: the server is away" in result.out
    assert [("tiny", 0), *read_log(tmp_path / "runs" / "tiny")[:3]] == TOLD


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorbord", "tensorbord is neither tensorboard nor of the form module:callable"),
        ("no_such_module:x", "no_such_module:x cannot be imported"),
        ("json:nothing", "json:nothing cannot be imported"),
    ],
)
def test_a_tracker_that_is_not_there_is_refused(
    gaeanet: Run, experiment_file: Write, t3: Path, name: str, message: str
) -> None:
    result = gaeanet("train", experiment_file(), "--data", t3, "--track", name)
    assert result.code == 2
    assert message in result.err


def test_without_tensorboard_the_install_line_is_said(
    gaeanet: Run, experiment_file: Write, t3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = gaeanet("train", experiment_file(), "--data", t3, "--track", "tensorboard")
    assert (result.code, "pip install 'gaeanet[tensorboard]'" in result.err) == (2, True)
