"""The job of a run, an interface: `train.py` trains a network, `search/job.py` a supernet and its architecture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from torch import nn

from gaeanet.config.experiment import Experiment, Hyperparameters
from gaeanet.data.images.transforms import TrainingTransform
from gaeanet.data.loading.loader import Batch, Batches, training_batches
from gaeanet.data.loading.read_errors import ReadErrors
from gaeanet.data.loading.workers import usable_workers
from gaeanet.data.sources.order import steps_per_epoch
from gaeanet.data.sources.source import Source
from gaeanet.optim import schedules
from gaeanet.optim.ema import decay_at
from gaeanet.optim.rates import Rates, Row
from gaeanet.runs.local import LocalContext
from gaeanet.runtime.processes import Processes
from gaeanet.training.recorded import Stepper
from gaeanet.training.state import RunState
from gaeanet.training.step import Objective


class Job(ABC):
    """What the loop runs: a source, a state, a step, and the messages about them.

    Attributes:
        source: The images that the weights learn from, and those that they are validated on.
        state: What changes over the run.
        steps: Steps of an epoch.
    """

    state: RunState

    def __init__(self, experiment: Experiment, source: Source, processes: Processes) -> None:
        self.experiment, self.source, self.processes = experiment, source, processes
        self.steps = steps_per_epoch(len(source.catalog.train), experiment.hyperparameters.global_batch_size)
        self._stepper: Stepper | None = None

    @property
    def hyperparameters(self) -> Hyperparameters:
        return self.experiment.hyperparameters

    def row(self, update: int) -> Row:
        """The schedule's values at an update, counted from 0; a skipped step is not an update."""
        hp, epoch = self.hyperparameters, update / self.steps
        rate = schedules.learning_rate(
            epoch,
            scheduler=hp.lr_scheduler,
            base=hp.learning_rate,
            epochs=hp.epochs,
            warmup_epochs=hp.warmup_epochs,
            gamma=hp.lr_gamma,
            decay_every=hp.lr_decay_every,
        )
        drop_path_rate = schedules.drop_path_rate(epoch, final=hp.drop_path_prob, epochs=hp.epochs)
        return Row(self.state.rate_scale * rate, drop_path_rate, 1.0 - decay_at(update, hp.ema_decay))

    @abstractmethod
    def plan(self, context: LocalContext) -> list[str]:
        """Messages before the first step."""

    @abstractmethod
    def step(self, batch: Batch, rates: Rates) -> list[str]:
        """One step on this process's shard of a global batch; returns messages about it."""

    def advance(self, batch: Batch, objective: Objective, rates: Rates) -> list[str]:
        """A step of the learner; returns messages about it."""
        self._stepper = self._stepper or Stepper(self.state.learner, objective, rates)
        return self._stepper.step(batch.images, batch.labels)

    def rewound(self) -> None:
        """After a checkpoint was loaded: recorded steps would work on what was there before."""
        self._stepper = None

    def end(self) -> None:
        """Releases memory and workers: a recorded step refers to the job, which would keep both alive."""
        self._stepper = None

    def start(self) -> list[str]:
        """Initialises the weights of a run that has no checkpoint; returns messages about it."""
        return []

    def batches(self, errors: ReadErrors) -> Iterator[Batch]:
        """Training batches from the state's position to the end of the run."""
        return errors.watch(self.stream(self.source, self.hyperparameters.seed, self.state.batches))

    def stream(
        self, source: Source, seed: int, done: int, *, epochs: int | None = None, workers: int | None = None
    ) -> Batches:
        """This process's shard of a source's training batches, after `done` of them."""
        hp = self.hyperparameters
        steps = steps_per_epoch(len(source.catalog.train), hp.global_batch_size)
        return training_batches(
            source,
            TrainingTransform(hp),
            global_batch=hp.global_batch_size,
            epochs=epochs or hp.epochs,
            seed=seed,
            start=divmod(done, steps),
            rank=self.processes.rank,
            world_size=self.processes.world_size,
            workers=usable_workers(self.experiment.data.num_workers_train) if workers is None else workers,
            pin_memory=self.processes.device.type == "cuda",
            max_bad=self.experiment.data.max_bad,
            repeats=hp.repeated_augmentation,
        )

    def columns(self, row: Row) -> dict[str, Any]:
        """Further columns of a training line, beside those of all runs; `row` is that of the last update."""
        return {}

    def end_epoch(self, context: LocalContext) -> list[str]:
        """A hook after an epoch's last step, before its training line; returns messages."""
        return []

    def is_last(self, epochs: int) -> bool:
        """Whether the run ends after this many epochs."""
        return epochs == self.hyperparameters.epochs

    def networks(self) -> dict[str, nn.Module]:
        """What a validation evaluates, by the prefix of its columns in the log."""
        return self.state.learner.networks

    def summary(self, context: LocalContext) -> list[str]:
        """Messages after the last step: the result, and where it is."""
        return [context.describe_outputs()]
