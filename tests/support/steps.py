"""Single training steps without a run around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tiny
import torch
from torch import Tensor

from gaeanet.config.experiment import Experiment, Hyperparameters
from gaeanet.data.sources.source import Source
from gaeanet.data.sources.synthetic import SyntheticSource
from gaeanet.optim.ema import decay_at
from gaeanet.optim.groups import Group
from gaeanet.optim.rates import Rates, Row
from gaeanet.runtime.processes import Processes
from gaeanet.search.architecture import Architecture
from gaeanet.search.job import build_supernet
from gaeanet.search.objective import SearchObjective
from gaeanet.training.learner import Learner, assemble, build_learner
from gaeanet.training.objective import Classification
from gaeanet.training.state import RunState
from gaeanet.training.step import step


class Trainee:
    """A network of an experiment and its objective."""

    def __init__(
        self,
        experiment: Experiment,
        source: Source | None = None,
        processes: Any = None,
        *,
        flat: bool | None = None,
    ) -> None:
        hp = self._hp = experiment.hyperparameters
        self.learner = build_learner(hp, processes or Processes(), flat=flat)
        self.state = RunState(experiment, source or SyntheticSource(3, 10, 32, 0), self.learner)
        self.objective = Classification(hp)
        self.network = self.learner.network

    def step(self, images: Tensor, labels: Tensor, rate: float, drop_path_rate: float = 0.0) -> None:
        weight = 1.0 - decay_at(int(self.learner.updates), self._hp.ema_decay)
        rates = Rates.constant(Row(rate, drop_path_rate, weight), self.learner.device)
        shard = self.objective.prepare(self.learner, images, labels)
        step(self.learner, shard, self.objective, rates.at(self.learner.updates))


def searching(search: dict[str, Any]) -> tuple[Learner, SearchObjective]:
    """The learner of a supernet and its objective, with these settings of a search."""
    hp = Hyperparameters(**{**tiny.NET, "ema_decay": 0.0, "search": {"channel_divisor": 2, **search}})
    processes = Processes()
    supernet = build_supernet(hp).to(memory_format=torch.channels_last)
    learner = assemble(supernet, [Group(list(supernet.named_parameters()))], hp, processes, "fp32", flat=True)
    assert hp.search is not None
    return learner, SearchObjective(Architecture(hp.search, processes.device), 0.1)


def interrupted_at(batches: int, original: Callable[..., None] = step) -> Callable[..., None]:
    """A step that is interrupted, as by Ctrl-C, when so many batches are done."""

    def interrupted(learner: Any, *arguments: Any, **options: Any) -> None:
        if learner.batches == batches:
            raise KeyboardInterrupt
        original(learner, *arguments, **options)

    return interrupted
