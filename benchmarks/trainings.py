"""The trainings of a board: where each is kept, what it reached, how long it took, and which ones there is time for."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gaeanet.runs.trials import Trial, last_validation, settings, train_all
from gaeanet.runtime.files import read_text, replace_text
from gaeanet.runtime.host import usable_cores

HELD_OUT, VALIDATION = "held-out", "validation"
"""Directories of the trainings that choose, and of those that prove."""
MORE_IMAGES = 1.2
"""A training that proves takes so many times as long: it sees the held-out images too, and validates on more."""

Scores = dict[str, dict[int, float]]


def held_out_trial(name: str, changes: Mapping[str, Any], seed: int, epochs: int, fraction: float) -> Trial:
    """A training of a recipe that is validated on a fraction of the training images."""
    return _trial(f"{HELD_OUT}/{name}/seed-{seed}", changes, seed, epochs, fraction)


def proof_trial(changes: Mapping[str, Any], seed: int, epochs: int) -> Trial:
    """A training of a recipe that is validated on the validation split."""
    return _trial(f"{VALIDATION}/seed-{seed}", changes, seed, epochs, None)


def _trial(path: str, changes: Mapping[str, Any], seed: int, epochs: int, minival: float | None) -> Trial:
    return Trial(path, (*settings({**changes, "seed": seed}), f"data.minival={json.dumps(minival)}"), epochs)


def result_of(run: Path, epochs: int) -> tuple[float, float] | None:
    """Top-1 of a finished training: the score, and that of the raw weights; None before its end.

    The score is that of the averaged weights where there are any. It is never the better of the two, which would be
    a choice on the images that it is measured on.
    """
    line = last_validation(run, epochs)
    if line is None:
        return None
    raw = float(line["top1_accuracy"])
    return float(line.get("ema_top1_accuracy", raw)), raw


def results_in(directory: Path, epochs: int) -> dict[int, tuple[float, float]]:
    """The results of the finished trainings in a directory by seed."""
    runs = {int(run.name.removeprefix("seed-")): result_of(run, epochs) for run in directory.glob("seed-*/")}
    return {seed: result for seed, result in sorted(runs.items()) if result is not None}


def held_out_scores(out: Path, names: Iterable[str], epochs: int) -> tuple[Scores, Scores]:
    """The score and the raw weights' top-1 of each recipe by seed, on held-out training images."""
    results = {name: results_in(out / HELD_OUT / name, epochs) for name in names}
    score, raw = (
        {name: {seed: pair[k] for seed, pair in pairs.items()} for name, pairs in results.items()} for k in (0, 1)
    )
    return score, raw


def facts_in(directory: Path) -> list[dict[str, Any]]:
    """Seconds and machine of the trainings in a directory that ran without an interruption."""
    return [json.loads(read_text(file)) for file in sorted(directory.glob("seed-*.json"))]


@dataclass
class Clock:
    """Decides which trainings are started: those that end in time if they take as long as the longest of the last ones.

    The first ones start without a measurement, and on a new kind of GPU they take longer: its step is tried out first.
    A training that was resumed is none.

    Attributes:
        end: When time is up, by the monotonic clock.
        reserved: Time to keep for later, in trainings.
    """

    end: float = math.inf
    reserved: float = 0.0
    _last: deque[float] = field(default_factory=lambda: deque(maxlen=8), init=False)

    def has_time(self, factor: float = 1.0) -> bool:
        """Whether a training would end in time that takes `factor` times as long as those."""
        return max(self._last, default=0.0) * (factor + self.reserved) < self.left

    @property
    def left(self) -> float:
        """Seconds until time is up."""
        return self.end - time.monotonic()

    def took(self, seconds: float) -> None:
        """Notes how long a training took."""
        self._last.append(seconds)


@dataclass(frozen=True)
class Trainer:
    """What the trainings of a board have in common.

    Attributes:
        config: The experiment file.
        arguments: Further ones of `gaeanet train`.
        jobs, gpus: As of `train_all`.
    """

    config: Path
    arguments: Sequence[str]
    out: Path
    jobs: int
    gpus: int
    clock: Clock

    def train(self, trials: Sequence[Trial], factor: float = 1.0) -> Iterator[tuple[Trial, float | None]]:
        """Trains what there is time for; yields each training that has ended, and its seconds if it ran now.

        Those of a training without an interruption are kept in a file beside its directory.

        Args:
            factor: How many times as long one takes as those before.
        """
        started: dict[Trial, float] = {}
        whole = set()

        def admit(trial: Trial) -> bool:
            if not self.clock.has_time(factor):
                return False
            started[trial] = time.monotonic()
            if not (self.out / trial.name).exists():
                whole.add(trial)
            return True

        for trial, _ in train_all(self.config, self.arguments, trials, self.out, self.jobs, self.gpus, admit):
            if trial in whole:
                seconds = time.monotonic() - started[trial]
                self.clock.took(seconds / factor)
                facts = {"seconds": round(seconds, 1), "machine": machine(), "side_by_side": self.jobs}
                replace_text(self.out / f"{trial.name}.json", json.dumps(facts) + "\n")
            if trial in started and trial.name.startswith(HELD_OUT):
                # Its result is in the log; checkpoints of a hundred trainings would not travel.
                shutil.rmtree(self.out / trial.name / "checkpoints", ignore_errors=True)
            yield trial, time.monotonic() - started[trial] if trial in started else None


def machine() -> str:
    """The processor that trains: its GPU, or cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = read_text("/proc/cpuinfo", regular=False).splitlines()
    except (OSError, ValueError):
        lines = []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), os.uname().machine)
    return f"{usable_cores()} cores of {model}"
