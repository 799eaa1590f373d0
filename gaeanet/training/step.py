"""One optimizer step: forward, loss, backward, clip, update, average.

Nothing here waits for the device. Whether the gradient was finite is a number on the device, and so is all that follows
from it: a step whose gradient is not finite leaves weights, momentum, average and batch-norm statistics as they were,
and its position in the schedule. The loop reads the counters when it reports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from gaeanet.optim.rates import Rates
from gaeanet.training.learner import Learner

Timer = Callable[[str], AbstractContextManager[Any]]
"""Times a stage of the step: `transfer`, `forward` or `backward`."""


class Objective(Protocol):
    """The objective that a step optimises."""

    def begin(self, learner: Learner, images: Tensor) -> Tensor | None:
        """Before the weights' gradients; returns whether what it did was finite (0-d bool), None for nothing done."""

    def examples(self, learner: Learner, images: Tensor, labels: Tensor, micro: slice) -> tuple[Tensor, Tensor]:
        """The images and labels of a micro-batch on the device, as `loss` takes them."""

    def loss(self, learner: Learner, images: Tensor, labels: Tensor, sums: Tensor) -> Tensor:
        """The sum of the losses of a micro-batch (0-d); adds them to `sums` (see `Meter.sums_of`)."""

    def end(self, learner: Learner, finite: Tensor) -> Tensor:
        """Before the update, with whether all so far was finite; returns whether the step takes place (0-d bool)."""


def step(
    learner: Learner,
    images: Tensor,
    labels: Tensor,
    objective: Objective,
    rates: Rates,
    timer: Timer = nullcontext,
) -> None:
    """One optimizer step on this process's shard of a global batch.

    Args:
        images, labels: uint8 (N, 3, H, W) and int64 (N,).
        rates: Learning rate, drop-path rate and weight of the new values in the average, by number of the update.
        timer: For measurements.
    """
    rate, drop_path, average_weight = rates.at(learner.updates)
    learner.begin_step(drop_path)
    sums = torch.zeros_like(learner.meter.sums)
    begun = objective.begin(learner, images)

    for micro in micro_batches(len(labels), learner.micro_batch):
        with timer("transfer"):
            inputs, targets = objective.examples(learner, images, labels, micro)
        with timer("forward"):
            loss = objective.loss(learner, inputs, targets, sums) * learner.loss_scale
        with timer("backward"), learner.gradient_exchange(is_last=micro.stop == len(labels)):
            learner.scaler.scale(loss).backward()

    finite = learner.clip_gradients()
    finite = objective.end(learner, finite if begun is None else finite & begun)
    learner.update(finite, rate)
    learner.update_average(finite, average_weight)
    learner.count(finite, sums)


def micro_batches(count: int, largest: int | None) -> Iterator[slice]:
    """The micro-batches of a shard of `count` images: at most `largest` each, as alike as can be, larger ones first."""
    number = -(-count // (largest or count))
    size, larger = divmod(count, number)
    start = 0
    for k in range(number):
        stop = start + size + (k < larger)
        yield slice(start, stop)
        start = stop
