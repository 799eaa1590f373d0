"""Training: the job of a network of cells."""

from __future__ import annotations

from typing import Any

from gaeanet.artifacts.start import read_start
from gaeanet.config.experiment import Experiment
from gaeanet.data.loading.loader import Batch
from gaeanet.data.sources.source import Source
from gaeanet.optim import schedules
from gaeanet.runs.local import LocalContext
from gaeanet.runtime.processes import Processes
from gaeanet.training.banner import closing_words, plan
from gaeanet.training.learner import TrainingState
from gaeanet.training.loop import Job, run


def train(experiment: Experiment, source: Source, context: LocalContext) -> None:
    """Trains the network of `experiment` on `source`; goes on, and fails, as `loop.run` does."""
    run(Training, experiment, source, context)


class Training(Job):
    """A network that learns to tell the classes of a source apart."""

    def __init__(self, experiment: Experiment, source: Source, processes: Processes) -> None:
        super().__init__(experiment, source, processes)
        self.state: TrainingState = TrainingState(experiment, source, processes)
        self._drop_path_rate = 0.0

    def start(self) -> list[str]:
        start = read_start(self.hyperparameters, self.source.catalog.classes)
        return self.state.start_from(start) if start else []

    def plan(self, context: LocalContext) -> list[str]:
        return plan(self.experiment, self.source, context, self.state, self.steps)

    def step(self, batch: Batch, learning_rate: float) -> None:
        hp = self.hyperparameters
        self._drop_path_rate = schedules.drop_path_rate(self.progress, final=hp.drop_path_prob, epochs=hp.epochs)
        self.state.step(batch.images, batch.labels, learning_rate, self._drop_path_rate)

    def columns(self) -> dict[str, Any]:
        return {"drop_path_rate": self._drop_path_rate}

    def closing_words(self, context: LocalContext) -> list[str]:
        return closing_words(self.state, context, self.source.minival)
