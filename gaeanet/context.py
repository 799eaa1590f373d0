"""Where a run lives: the processes that share its work, and the directory that holds what it leaves behind."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gaeanet import checkpoint
from gaeanet.config import Experiment
from gaeanet.run_directory import CHECKPOINTS, CONFIG, METRICS, read_log

KEEP_LATEST = 2
"""Checkpoints kept beside the best one."""


class LocalContext:
    """A run on this machine, in a directory.

    Attributes:
        run_dir: Its directory; see DESIGN in docs for what it holds.
        device: Where this process computes.
        rank, world_size: This process among those that share the run.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.rank, self.world_size = 0, 1
        self.device = _device()

    @property
    def metrics_path(self) -> Path:
        return self.run_dir / METRICS

    @property
    def checkpoints(self) -> Path:
        return self.run_dir / CHECKPOINTS

    def begin(self, experiment: Experiment, batches: int) -> None:
        """Writes the resolved experiment file, and cuts the log back to what had happened after `batches` steps."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        (self.run_dir / CONFIG).write_text(experiment.to_yaml(), encoding="utf-8")
        kept = [line for line in read_log(self.metrics_path) if line["batches"] <= batches]
        draft = self.run_dir / f".{METRICS}.{os.getpid()}"
        draft.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        draft.replace(self.metrics_path)

    def report(self, line: dict[str, Any]) -> None:
        """Appends one line to the log of record."""
        with open(self.metrics_path, "a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")

    def save(self, step: int, tensors: dict[str, dict[str, Tensor]], state: checkpoint.State, best: bool) -> None:
        """Saves a checkpoint; `best` marks it as the best so far."""
        path = checkpoint.save(self.checkpoints, step, tensors, state)
        checkpoint.point(self.checkpoints, "latest", path)
        if best:
            checkpoint.point(self.checkpoints, "best", path)
        checkpoint.prune(self.checkpoints, KEEP_LATEST)

    def latest(self) -> Path | None:
        """The checkpoint to continue from."""
        found = checkpoint.checkpoints(self.checkpoints)
        return found[-1] if found else None


def _device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")
