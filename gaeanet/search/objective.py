"""The objective of a search, for the training step (`training/step.py`): supernet weights and architecture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

from gaeanet.data.images.transforms import normalize
from gaeanet.evaluation.meter import Meter
from gaeanet.runtime.transfer import to_device
from gaeanet.search.architecture import Architecture, Mixture
from gaeanet.training.examples import Shard, Timer, micro_batches, micro_slices
from gaeanet.training.learner import Learner
from gaeanet.training.step import JointObjective

Examples = tuple[Tensor, Tensor]
"""Images, uint8 (N, 3, H, W), and labels, int64 (N,)."""


class SearchObjective(JointObjective):
    """The loss of a supernet; also updates the architecture, except during its warm-up.

    A step with a gradient that is not finite, of either, leaves everything as it was.

    Attributes:
        others: Examples for the architecture's step (first order: the weights stay as they are, Liu et al. 2019,
            section 2.3); None for a search on one level, where one pass has both gradients.
        moves: Whether the architecture is updated.
        rate_scale: Factor on the architecture's learning rate.
    """

    def __init__(self, architecture: Architecture, label_smoothing: float) -> None:
        self.architecture = architecture
        self.others: Examples | None = None
        self.moves = True
        self.rate_scale = 1.0
        self._smoothing = label_smoothing
        self._mixture: Mixture = ()
        self._graph: Mixture = ()
        self._before: list[Tensor] = []

    @property
    def fixed(self) -> tuple[bool, float]:
        """Whether the architecture moves, and how fast."""
        return self.moves, self.rate_scale

    def prepare(self, learner: Learner, images: Tensor, labels: Tensor, timer: Timer = nullcontext) -> Shard:
        """Images and labels, and those for the architecture's step."""
        others: list[Examples] = []
        if self.moves and self.others is not None:
            pixels, targets = (to_device(part, learner.device) for part in self.others)
            others = [(pixels[micro], targets[micro]) for micro in micro_slices(len(targets), learner.micro_batch)]
        return Shard(micro_batches(learner, images, labels, timer=timer), others)

    def begin(self, learner: Learner, others: Sequence[Examples]) -> tuple[Tensor | None, tuple[Mixture]]:
        """The architecture's step on the other examples, and the mixture under which the weights learn."""
        finite = None
        if others:
            gradients = self._gradients(learner, others)
            finite = all_finite(gradients)
            _lower_scale(learner, finite)
            self._before = self.architecture.step(gradients, self.rate_scale)
        mixture = self.architecture.mixture()
        if others or not self.moves:
            return finite, ([part.detach() for part in mixture],)
        # The graph from parameters to mixture is used once, but each micro-batch frees its own graph.
        self._graph = mixture
        self._mixture = [part.detach().requires_grad_(part.requires_grad) for part in mixture]
        return finite, (self._mixture,)

    def loss(self, outputs: Tensor, targets: tuple[Tensor, ...], sums: Tensor) -> Tensor:
        """The sum of losses of the supernet."""
        logits, (labels,) = outputs.float(), targets
        loss = F.cross_entropy(logits, labels, label_smoothing=self._smoothing, reduction="sum")
        sums += Meter.sums_of(logits.detach(), labels, loss.detach()).to(sums)
        return loss

    def snapshot(self) -> Callable[[], None]:
        """Copies the architecture; returns a function that restores it."""
        before = self.architecture.snapshot()
        never = torch.zeros((), dtype=torch.bool)
        return lambda: self.architecture.restore_unless(never, before)

    def end(self, learner: Learner, finite: Tensor) -> Tensor:
        """Updates the architecture where one pass gave both gradients; undoes its update where the step is skipped."""
        if not self.moves:
            return finite
        if self.others is None:
            moving = [part for part in self._graph if part.requires_grad]
            upstream = [part.grad for part in self._mixture if part.requires_grad]
            local = torch.autograd.grad(moving, self.architecture.parameters, upstream)
            gradients = self._mean(learner, local)
            finite = finite & all_finite(gradients)
            self._before = self.architecture.step(gradients, self.rate_scale)
        self.architecture.restore_unless(finite, self._before)
        return finite

    def _gradients(self, learner: Learner, examples: Sequence[Examples]) -> list[Tensor]:
        """Gradients of the loss on micro-batches with respect to the architecture alone."""
        supernet = learner.network
        supernet.requires_grad_(False)  # the backward pass then skips the weights' gradients
        unused = torch.zeros_like(learner.meter.sums)
        total: list[Tensor] = []
        try:
            for images, labels in examples:
                with learner.autocast():
                    logits = supernet(normalize(images), self.architecture.mixture())
                loss = self.loss(logits, (labels,), unused)
                scaled = learner.scaler.scale(loss * learner.loss_scale)
                gradients = torch.autograd.grad(scaled, self.architecture.parameters)
                total = [a + b for a, b in zip(total, gradients)] if total else list(gradients)
        finally:
            supernet.requires_grad_(True)
        return self._mean(learner, total)

    @staticmethod
    def _mean(learner: Learner, gradients: Sequence[Tensor]) -> list[Tensor]:
        """The mean over the processes, unscaled."""
        scale = learner.scaler.scale(torch.ones((), device=learner.device))
        factor = 1 / (learner.processes.world_size * scale)
        means = []
        for gradient in gradients:
            total = gradient.clone()
            if learner.processes.world_size > 1:
                torch.distributed.all_reduce(total)
            means.append(total * factor)
        return means


def all_finite(gradients: Sequence[Tensor]) -> Tensor:
    """Whether every value is a number (0-d bool)."""
    finite: Tensor = torch.stack([(gradient.abs() < torch.inf).all() for gradient in gradients]).all()
    return finite


def _lower_scale(learner: Learner, finite: Tensor) -> None:
    """Halves fp16's loss scale where the architecture's gradient was not finite: PyTorch looks at the weights' only."""
    if learner.scaler.is_enabled():
        scale = learner.scaler.scale(torch.ones((), device=learner.device))
        learner.scaler.update(torch.where(finite, scale, scale / 2))
