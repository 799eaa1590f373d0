"""The objective of a search, for the training step (`training/step.py`): supernet weights and architecture."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gaeanet.evaluation.meter import Meter
from gaeanet.runtime.transfer import to_device
from gaeanet.search.architecture import Architecture, Mixture
from gaeanet.training.learner import Learner
from gaeanet.training.objective import on_device
from gaeanet.training.step import micro_batches

Examples = tuple[Tensor, Tensor]
"""Images, uint8 (N, 3, H, W), and labels, int64 (N,)."""


class SearchObjective:
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

    def draw(self, learner: Learner, images: Tensor) -> Examples | tuple[()]:
        """The examples for the architecture's step, on the device."""
        if not self.moves or self.others is None:
            return ()
        others, labels = self.others
        return to_device(others, learner.device), to_device(labels, learner.device)

    def begin(self, learner: Learner, drawn: tuple[Tensor, ...]) -> Tensor | None:
        """The architecture's step on what was drawn, and the mixture under which the weights learn."""
        mixture, finite = self.architecture.mixture(), None
        if self.moves and not drawn:
            # The graph from parameters to mixture is used once, but each micro-batch frees its own graph.
            self._graph = mixture
            self._mixture = [part.detach().requires_grad_(part.requires_grad) for part in mixture]
            return None
        if drawn:
            others, labels = drawn
            gradients = self._gradients(learner, (others, labels))
            finite = all_finite(gradients)
            _lower_scale(learner, finite)
            self._before = self.architecture.snapshot()
            self.architecture.step(gradients, self.rate_scale)
            mixture = self.architecture.mixture()
        self._mixture = [part.detach() for part in mixture]
        return finite

    def examples(self, learner: Learner, images: Tensor, labels: Tensor, micro: slice) -> Examples:
        """Images and labels of a micro-batch on the device."""
        return on_device(learner, images[micro], labels[micro])

    def loss(self, learner: Learner, examples: tuple[Tensor, ...], sums: Tensor) -> Tensor:
        """The sum of losses of the supernet under the mixture."""
        images, labels = examples
        return self._loss(learner, learner.forward, self._mixture, images, labels, sums)

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
            self._before = self.architecture.snapshot()
            self.architecture.step(gradients, self.rate_scale)
        self.architecture.restore_unless(finite, self._before)
        return finite

    def _gradients(self, learner: Learner, examples: Examples) -> list[Tensor]:
        """Gradients of the loss on `examples` with respect to the architecture alone."""
        supernet, (images, labels) = learner.network, examples
        supernet.requires_grad_(False)  # the backward pass then skips the weights' gradients
        unused = torch.zeros_like(learner.meter.sums)
        total: list[Tensor] = []
        try:
            for micro in micro_batches(len(labels), learner.micro_batch):
                inputs, targets = on_device(learner, images[micro], labels[micro])
                loss = self._loss(learner, supernet, self.architecture.mixture(), inputs, targets, unused)
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
        return [learner.processes.sum(gradient.clone()) * factor for gradient in gradients]

    def _loss(
        self, learner: Learner, network: nn.Module, mixture: Mixture, images: Tensor, labels: Tensor, sums: Tensor
    ) -> Tensor:
        with learner.autocast():
            logits = network(images, mixture).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self._smoothing, reduction="sum")
        sums += Meter.sums_of(logits.detach(), labels, loss.detach()).to(sums)
        return loss


def all_finite(gradients: Sequence[Tensor]) -> Tensor:
    """Whether every value is a number (0-d bool)."""
    finite: Tensor = torch.stack([(gradient.abs() < torch.inf).all() for gradient in gradients]).all()
    return finite


def _lower_scale(learner: Learner, finite: Tensor) -> None:
    """Halves fp16's loss scale where the architecture's gradient was not finite: PyTorch looks at the weights' only."""
    if learner.scaler.is_enabled():
        scale = learner.scaler.scale(torch.ones((), device=learner.device))
        learner.scaler.update(torch.where(finite, scale, scale / 2))
