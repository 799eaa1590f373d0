"""One optimizer step: forward, loss, backward, clip, update, average.

The images are prepared before it (`examples.py`), and its arithmetic is all here. It calls the network and the loss
once for each micro-batch, optimizer and average once; a search's objective also before and after the gradients.

Nothing here waits for the device. Whether the gradient was finite is a number on the device, and so is all that follows
from it: a step whose gradient is not finite leaves weights, momentum, average and batch-norm statistics as they were,
and its position in the schedule. The loop reads the counters when it reports.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
import torch.distributed
from torch import Tensor

from gaeanet.optim.rates import StepRates
from gaeanet.training.examples import Shard, Timer
from gaeanet.training.learner import Learner


class Objective(Protocol):
    """The objective that a step optimises."""

    @property
    def fixed(self) -> Hashable:
        """What a step depends on beside tensors: steps of which it is equal launch the same kernels."""

    def prepare(self, learner: Learner, images: Tensor, labels: Tensor, timer: Timer = nullcontext) -> Shard:
        """What the step takes, from images, uint8 (N, 3, H, W), and labels, int64 (N,); on the host, before it."""

    def loss(self, outputs: Any, targets: tuple[Tensor, ...], sums: Tensor) -> Tensor:
        """The sum of the losses of a micro-batch (0-d); adds them to `sums` (see `Meter.sums_of`)."""


class JointObjective(ABC):
    """An objective that moves more than the weights: a search's, whose architecture learns with them."""

    @abstractmethod
    def begin(self, learner: Learner, others: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor | None, tuple[Any, ...]]:
        """Before the weights' gradients.

        Returns:
            Whether what it did was finite (0-d bool), None for nothing done; and what the network takes beside images.
        """

    @abstractmethod
    def end(self, learner: Learner, finite: Tensor) -> Tensor:
        """Before the update, with whether all so far was finite; returns whether the step takes place (0-d bool)."""

    @abstractmethod
    def snapshot(self) -> Callable[[], None]:
        """Copies all of its own that a step changes; returns a function that restores it."""


def step(learner: Learner, shard: Shard, objective: Objective, rates: StepRates, timer: Timer = nullcontext) -> None:
    """One optimizer step on this process's shard of a global batch.

    Args:
        shard: What `objective.prepare` returned.
        rates: Of the learner's next update.
        timer: For measurements.
    """
    finite, sums = backward(learner, shard, objective, rates, timer)
    all_reduce(learner)
    update(learner, finite, sums, objective, rates)
    learner.batches += 1


def backward(
    learner: Learner, shard: Shard, objective: Objective, rates: StepRates, timer: Timer = nullcontext
) -> tuple[Tensor | None, Tensor]:
    """The gradients of a step's micro-batches, added up in the parameters and, where there is one, in the flat buffer.

    Returns:
        Whether what a joint objective did was finite (see `JointObjective.begin`), and the sums of losses and
        accuracies (see `Meter.sums_of`).
    """
    learner.network.train()
    for part in learner.frozen:
        part.eval()  # batch norms of frozen parts keep their statistics
    if learner.drop_path_rate is not None:
        learner.drop_path_rate.copy_(rates.drop_path_rate)
    torch._foreach_copy_(learner.statistics_before, learner.statistics)
    learner.network.zero_grad(set_to_none=True)
    sums = torch.zeros_like(learner.meter.sums)
    finite, inputs = objective.begin(learner, shard.others) if isinstance(objective, JointObjective) else (None, ())

    for images, targets, is_last in shard.micro_batches:
        with timer("forward"):
            with learner.autocast():
                outputs = learner.forward(images, *inputs)
            loss = objective.loss(outputs, targets, sums) * learner.loss_scale
        # DistributedDataParallel exchanges gradients once a step, in the backward pass of its last micro-batch.
        with timer("backward"), nullcontext() if is_last else learner.no_sync():
            learner.scaler.scale(loss).backward()

    if learner.buffers:
        learner.buffers.gradients.zero_()  # the gaps too, which a clipped gradient that is not finite has made NaN
        gradients = [parameter.grad for parameter in learner.buffers.members]
        torch._foreach_copy_(learner.buffers.gradient_views, gradients)  # type: ignore[arg-type]  # none lacks one
    return finite, sums


def all_reduce(learner: Learner) -> None:
    """Adds up the flat gradients of all processes; DistributedDataParallel has done so in the backward pass."""
    if learner.buffers and learner.processes.world_size > 1:
        torch.distributed.all_reduce(learner.buffers.gradients)


@torch.no_grad()
def update(learner: Learner, finite: Tensor | None, sums: Tensor, objective: Objective, rates: StepRates) -> None:
    """Clips the gradient of all processes, and moves weights and average along it where it is finite."""
    learner.scaler.unscale_(learner.optimizer)  # a scaled gradient would be clipped thousands of times too hard
    norm = torch.nn.utils.clip_grad_norm_(learner.updated, learner.max_norm)
    taken: Tensor = norm < torch.inf if finite is None else (norm < torch.inf) & finite
    if isinstance(objective, JointObjective):
        taken = objective.end(learner, taken)

    for group in learner.optimizer.param_groups:
        group["lr"] = rates.learning_rate * group["factor"]
    # PyTorch's protocol for steps that a device may skip: see torch.amp.GradScaler.step.
    learner.optimizer.grad_scale = None  # type: ignore[attr-defined]
    learner.optimizer.found_inf = (~taken).float()  # type: ignore[attr-defined]
    learner.optimizer.step()
    learner.scaler.update()
    for statistic, before in zip(learner.statistics, learner.statistics_before):
        torch.where(taken, statistic, before, out=statistic)
    if learner.average:
        learner.average.update(torch.where(taken, rates.average_weight, 0.0).float())

    good = taken.long()
    learner.counts += torch.stack([good, 1 - good, torch.ones_like(good)])
    learner.counts[2] *= 1 - good
    learner.meter.sums += torch.where(taken, sums, 0.0)
