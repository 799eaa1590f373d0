"""Trials: trainings that a comparison needs, each a run of its own, several at a time in processes of their own.

A trial is what `gaeanet train --resume` makes of one experiment file with a few changes, so that a finished one is not
trained again and an interrupted one continues. Each has as many threads as cores are there for one of the trials at a
time, whether so many run or not: sums of floats, and so results to the last digits, depend on the number of threads.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gaeanet.artifacts.directory import METRICS, read_log
from gaeanet.errors import RequestError, RunError, Stopped, counted, reason
from gaeanet.runtime.files import is_file, read_text, replace_text
from gaeanet.runtime.host import usable_cores
from gaeanet.runtime.processes import StopRequest
from gaeanet.runtime.progress import WorkProgress

PLAN = "plan.json"
"""What the trials of a directory are for."""
_POLL = 0.1
"""Seconds between looks at the processes."""


@dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        name: Of its run directory; what it prints goes into `<name>.txt` beside that.
        changes: `KEY=VALUE` each, as of `--set`.
        epochs: Of its schedule.
    """

    name: str
    changes: tuple[str, ...]
    epochs: int

    def accuracy(self, directory: Path) -> float | None:
        """Top-1 of its last epoch in percent, of raw or averaged weights, whichever is higher; None before its end."""
        line = last_validation(directory / self.name, self.epochs)
        return max(float(line[key]) for key in ("top1_accuracy", "ema_top1_accuracy") if key in line) if line else None


def last_validation(run: Path, epochs: int) -> dict[str, Any] | None:
    """The validation line of a run's last epoch; None before the end of its `epochs`."""
    lines = (line for line in reversed(read_log(run / METRICS)) if line["kind"] == "validation")
    return next((line for line in lines if line["epoch"] >= epochs), None)


def settings(hyperparameters: Mapping[str, Any]) -> tuple[str, ...]:
    """Changed hyperparameters as the `changes` of a trial."""
    return tuple(f"hyperparameters.{key}={json.dumps(value)}" for key, value in hyperparameters.items())


def settle_on(plan: dict[str, Any], directory: Path) -> None:
    """Writes down what the trials in a directory are for, or finds it there.

    Raises:
        RequestError: The directory holds trials for something else, or cannot be written.
    """
    file, text = directory / PLAN, json.dumps(plan, indent=1) + "\n"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not is_file(file):
            replace_text(file, text)
        elif read_text(file) != text:
            raise RequestError(
                f"{directory}: holds trainings for another request ({file}): repeat that one to continue it, or name "
                "another directory"
            )
    except (OSError, ValueError) as error:
        raise RequestError(f"{file}: {reason(error)}") from None


def train_all(
    config: Path,
    data: Sequence[str],
    trials: Sequence[Trial],
    directory: Path,
    jobs: int,
    gpus: int,
    admit: Callable[[Trial], bool] = lambda _: True,
    *,
    before: int = 0,
    after: int = 0,
) -> Iterator[tuple[Trial, float]]:
    """Trains what has not been trained yet; yields each trial with its accuracy, those that are finished first.

    Args:
        config: The experiment file.
        data: Further arguments of `gaeanet train` that all have in common.
        directory: Holds the runs.
        jobs: Most trials at a time. They share the cores, and take turns in the choice of a GPU.
        gpus: How many GPUs there are.
        admit: Called when a trial would start; one for which it is false is left out.
        before, after: Epochs of trials that came before these, and will come after them, for the progress.

    Raises:
        RunError: A training failed; the others were stopped, with their state saved.
        Stopped: A signal stopped all of them, with their state saved.
    """
    known = {trial: trial.accuracy(directory) for trial in trials}
    yield from ((trial, accuracy) for trial, accuracy in known.items() if accuracy is not None)
    left = [trial for trial, accuracy in known.items() if accuracy is None]
    total = before + sum(trial.epochs for trial in trials) + after
    threads = str(max(1, usable_cores() // jobs))
    running: dict[subprocess.Popen[bytes], tuple[Trial, int]] = {}
    with WorkProgress(total, "epochs", 1) as progress, StopRequest() as stop:
        progress.add(total - after - sum(trial.epochs for trial in left), earlier=True)
        try:
            while left or running:
                while left and len(running) < jobs:
                    trial = left.pop(0)
                    if not admit(trial):
                        continue
                    slot = min(set(range(jobs)) - {taken for _, taken in running.values()})
                    environment = {"OMP_NUM_THREADS": threads, **os.environ}
                    if gpus > 1:
                        environment["CUDA_VISIBLE_DEVICES"] = _visible(slot % gpus)
                    running[_start(config, data, trial, directory, environment)] = trial, slot
                time.sleep(_POLL)
                for process in [process for process in running if process.poll() is not None]:
                    trial, _ = running.pop(process)
                    if stop.received is None:
                        yield trial, _result(process.returncode, trial, directory)
                        progress.add(trial.epochs)
                if stop.received is not None:
                    unfinished = counted(len(running) + len(left), "training")
                    raise Stopped(f"stopped by {stop.received}: the same command continues with {unfinished}")
        finally:
            _end(list(running))


def _start(
    config: Path, data: Sequence[str], trial: Trial, directory: Path, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    changes = [word for change in trial.changes for word in ("--set", change)]
    command = [sys.executable, "-m", "gaeanet.cli", "train", str(config), *data, *changes]
    command += ["--run-dir", str(directory / trial.name), "--resume"]
    printed = directory / f"{trial.name}.txt"
    printed.parent.mkdir(parents=True, exist_ok=True)
    with open(printed, "ab") as output:
        # A session of its own: a Ctrl-C on the terminal reaches this process alone, which then stops them.
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def _result(code: int, trial: Trial, directory: Path) -> float:
    accuracy = trial.accuracy(directory) if code == 0 else None
    if accuracy is None:
        output = directory / f"{trial.name}.txt"
        text = output.read_text(errors="replace").strip().splitlines()
        last = text[-1].removeprefix("gaeanet: ") if text else f"exit code {code}"
        raise RunError(f"{trial.name}: {last} (its output is in {output}); the same command continues")
    return accuracy


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Stops trainings, which save their state, and waits for them."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    for process in processes:
        process.wait()


def _visible(gpu: int) -> str:
    """The name of a GPU among those that this process sees."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return named[gpu] if len(named) > gpu and named[gpu] else str(gpu)
