"""Everything that changes while a cell is searched for: the supernet's weights, and the architecture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gaeanet.artifacts import checkpoint
from gaeanet.cells.genotype import Genotype
from gaeanet.cells.read import from_dict
from gaeanet.config.experiment import Experiment, Hyperparameters
from gaeanet.data.sources.source import Source
from gaeanet.evaluation.meter import Meter
from gaeanet.optim.groups import Group
from gaeanet.runtime import devices
from gaeanet.runtime.processes import Processes
from gaeanet.search.architecture import Architecture, Mixture
from gaeanet.search.discretize import changed_edges
from gaeanet.search.supernet import Supernet
from gaeanet.training.state import RunState, are_finite

Examples = tuple[Tensor, Tensor]
"""Images, uint8 (N, 3, H, W), and labels, int64 (N,)."""


def build_supernet(hp: Hyperparameters) -> Supernet:
    """The supernet that the hyperparameters describe, with the initial weights of their seed."""
    assert hp.search is not None
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(hp.seed)
        return Supernet(
            hp.num_classes, hp.init_channels, hp.layers, hp.search.divisor, stem=hp.stem, activation=hp.activation
        )


class SearchState(RunState):
    """A supernet in training, the architecture that mixes it, and how far the search is.

    Attributes:
        architecture: The weights of operations and edges, and what moves them.
        genotype: What they stood for at the end of the last epoch; None in the first.
        settled: Epochs since it last changed.
    """

    WEIGHTS = "supernet"
    COUNTERS = (*RunState.COUNTERS, "settled")

    def __init__(self, experiment: Experiment, source: Source, processes: Processes) -> None:
        super().__init__(experiment, source, processes)
        search = self._hp.search
        assert search is not None
        self.architecture = Architecture(search, self._device)
        self._supernet = build_supernet(self._hp).to(self._device).to(memory_format=torch.channels_last)
        self._take(self._supernet, [Group(list(self._supernet.named_parameters()))])
        self._mixture: Mixture = ()
        self.genotype: Genotype | None = None
        self.settled = 0

    @property
    def network(self) -> Supernet:
        return self._supernet

    def step(self, examples: Examples, learning_rate: float, *, others: Examples | None, moves: bool) -> None:
        """One step on this process's share of a global batch: the architecture, if it moves, and then the weights.

        A step with a gradient that is not finite leaves everything as it was.

        Args:
            examples: For the weights.
            others: For the architecture (first order: the weights stay as they are, Liu et al. 2019, section 2.3); None
                for a search on one level, where one pass over `examples` has both gradients.
            moves: Whether the architecture does.
        """
        self._supernet.train()
        sums = self._begin_step(learning_rate)
        if not moves:
            self._weigh(self.architecture.mixture(), examples, sums)
            self._update(sums)
        elif others is None:
            self._together(examples, sums)
        else:
            self._in_turn(examples, others, sums)

    def _together(self, examples: Examples, sums: Tensor) -> None:
        """One step of both, from the gradients of one pass."""
        mixture = self.architecture.mixture()
        # The way from the parameters to the mixture is one graph, but each part of a share is let go of by itself.
        self._mixture = [part.detach().requires_grad_(part.requires_grad) for part in mixture]
        self._learn(*examples, sums)
        moving = [part for part in mixture if part.requires_grad]
        reached = [part.grad for part in self._mixture if part.requires_grad]
        gradients = self._agreed(torch.autograd.grad(moving, self.architecture.parameters, reached))
        if self._update(sums, gradients):
            self.architecture.step(gradients, self.rate_scale)

    def _in_turn(self, examples: Examples, others: Examples, sums: Tensor) -> None:
        """The architecture's step, then the weights', which takes the architecture's back where it fails."""
        gradients = self._gradients(others)
        if not are_finite(gradients):
            self._end_step(False, sums)
            if self._scaler.is_enabled():
                self._scaler.update(self._scaler.get_scale() / 2)
            return
        before = self.architecture.saved()
        self.architecture.step(gradients, self.rate_scale)
        self._weigh(self.architecture.mixture(), examples, sums)
        if not self._update(sums):
            self.architecture.load(before)

    def _weigh(self, mixture: Mixture, examples: Examples, sums: Tensor) -> None:
        """The gradients of the weights alone."""
        self._mixture = [part.detach() for part in mixture]
        self._learn(*examples, sums)

    def _gradients(self, examples: Examples) -> list[Tensor]:
        """Of the loss on `examples` with regard to the architecture alone."""
        self._supernet.requires_grad_(False)  # spares the pass what only the weights' gradients would take
        unused = torch.zeros_like(self.meter.sums)
        total: list[Tensor] = []
        try:
            for part in self._parts(len(examples[1])):
                learnt = self._examples(*examples, part)
                loss = self._loss_of(self._supernet, self.architecture.mixture(), *learnt, unused)
                found = torch.autograd.grad(self._scaler.scale(loss), self.architecture.parameters)
                total = [a + b for a, b in zip(total, found)] if total else list(found)
        finally:
            self._supernet.requires_grad_(True)
        return self._agreed(total)

    def _agreed(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """The mean over the processes, unscaled."""
        factor = 1 / (self._processes.world_size * self._scaler.get_scale())
        return [self._processes.sum(gradient.clone()) * factor for gradient in gradients]

    def _loss(self, images: Tensor, labels: Tensor, sums: Tensor) -> Tensor:
        return self._loss_of(self._shared, self._mixture, images, labels, sums)

    def _loss_of(self, network: nn.Module, mixture: Mixture, images: Tensor, labels: Tensor, sums: Tensor) -> Tensor:
        """A part's contribution to the mean loss over the global batch; counts into `sums`."""
        dtype = devices.DTYPES[self.precision]
        with torch.autocast(self._device.type, dtype, enabled=dtype is not torch.float32):
            logits = network(images, mixture).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self._hp.label_smoothing_rate, reduction="sum")
        sums += Meter.count(logits.detach(), labels, loss.detach()).to(sums)
        return self._mean_over_global_batch(loss)

    def note_epoch(self, genotype: Genotype) -> int:
        """Remembers what an epoch ended with; returns how many edges have changed since the last one."""
        changed = changed_edges(self.genotype, genotype)
        self.settled = 0 if changed else self.settled + 1
        self.genotype = genotype
        return changed

    def saved(self) -> tuple[dict[str, dict[str, Tensor]], checkpoint.State]:
        tensors, state = super().saved()
        tensors["architecture"] = self.architecture.saved()
        return tensors, {**state, "genotype": self.genotype.to_dict() if self.genotype else None}

    def load(self, path: Path, tensors: dict[str, dict[str, Tensor]], state: checkpoint.State) -> list[str]:
        notes = super().load(path, tensors, state)
        self.genotype = from_dict(state["genotype"]) if state["genotype"] else None
        return notes

    def _load_tensors(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        super()._load_tensors(tensors)
        self.architecture.load(tensors["architecture"])
