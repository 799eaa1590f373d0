"""Training: the job of a network of cells."""

from __future__ import annotations

from typing import Any

from gaeanet.artifacts.start import read_start
from gaeanet.config.experiment import Experiment
from gaeanet.data.loading.loader import Batch
from gaeanet.data.sources.source import Source
from gaeanet.models.network import CellNetwork
from gaeanet.optim.rates import Rates, Row
from gaeanet.runs.local import LocalContext
from gaeanet.runtime.processes import Processes
from gaeanet.training.banner import plan, summary
from gaeanet.training.job import Job
from gaeanet.training.learner import build_learner
from gaeanet.training.loop import run
from gaeanet.training.objective import Classification
from gaeanet.training.state import RunState


def train(experiment: Experiment, source: Source, context: LocalContext) -> None:
    """Trains the network of `experiment` on `source`; resumes, and fails, as `loop.run` does."""
    run(Training, experiment, source, context)


class Training(Job):
    """The training of an image classifier on a source."""

    def __init__(self, experiment: Experiment, source: Source, processes: Processes) -> None:
        super().__init__(experiment, source, processes)
        self.state = RunState(experiment, source, build_learner(experiment.hyperparameters, processes))
        self._objective = Classification(experiment.hyperparameters)

    def start(self) -> list[str]:
        start = read_start(self.hyperparameters, self.source.catalog.classes)
        if start is None:
            return []
        learner = self.state.learner
        assert isinstance(learner.network, CellNetwork)
        weights, messages = start.weights_for(learner.network)
        learner.start_from(weights)
        self.state.parent = start.parent
        return messages

    def plan(self, context: LocalContext) -> list[str]:
        return plan(self.experiment, self.source, context, self.state, self.steps)

    def step(self, batch: Batch, rates: Rates) -> list[str]:
        return self.advance(batch, self._objective, rates)

    def columns(self, row: Row) -> dict[str, Any]:
        return {"drop_path_rate": row.drop_path_rate}

    def summary(self, context: LocalContext) -> list[str]:
        return summary(self.state, context, self.source.minival)
