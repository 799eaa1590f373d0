"""Trials: several trainings at a time, each continued where it was, whatever ends this process or one of them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import read_log, same_but_for_speed

from gaeanet.errors import RequestError, RunError, Stopped
from gaeanet.runs.trials import Trial, settle_on, train_all

Write = Callable[..., Path]


def trials(*seeds: int, epochs: int) -> list[Trial]:
    return [Trial(f"seed-{seed}", (f"hyperparameters.seed={seed}",), epochs) for seed in seeds]


def test_a_plan_is_written_once(tmp_path: Path) -> None:
    settle_on({"a": 1}, tmp_path / "out")
    settle_on({"a": 1}, tmp_path / "out")
    with pytest.raises(RequestError, match="holds trainings for another request"):
        settle_on({"a": 2}, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="file"):
        settle_on({}, tmp_path / "file")


def test_a_training_that_fails_is_named_with_its_reason(experiment_file: Write, t3: Path, tmp_path: Path) -> None:
    wrong = Trial("wrong", ("hyperparameters.num_classes=4",), 1)
    with pytest.raises(RunError, match=r"^wrong: .*num_classes.*wrong\.txt"):
        list(train_all(experiment_file(), ["--data", str(t3)], [wrong], tmp_path, 2, 0))


@pytest.mark.slow
def test_stopped_trials_continue_to_the_same_end(experiment_file: Write, t3: Path, tmp_path: Path) -> None:
    """The stop of one process stops both trainings; the next call ends them as if nothing had been."""
    file, data = experiment_file(epochs=40, validate_every=40), ["--data", str(t3)]
    wanted = trials(1, 2, epochs=40)

    def interrupt() -> None:
        while not all((tmp_path / "out" / trial.name / "metrics.jsonl").is_file() for trial in wanted):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    (tmp_path / "out").mkdir()
    stopper = threading.Thread(target=interrupt)
    stopper.start()
    with pytest.raises(Stopped, match="stopped by SIGTERM: the same command continues with 2 trainings"):
        list(train_all(file, data, wanted, tmp_path / "out", 2, 0))
    stopper.join()
    found = dict(train_all(file, data, wanted, tmp_path / "out", 2, 0))
    undisturbed = dict(train_all(file, data, wanted[:1], tmp_path / "alone", 2, 0))
    assert found[wanted[0]] == undisturbed[wanted[0]]
    logs = [read_log(tmp_path / name / "seed-1") for name in ("out", "alone")]
    assert same_but_for_speed(logs[0], logs[1])
    assert dict(train_all(file, data, wanted, tmp_path / "out", 2, 0)) == found
