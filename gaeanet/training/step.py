"""One optimizer step: forward, loss, backward, clip, update, average.

Nothing here waits for the device. Whether the gradient was finite is a number on the device, and so is all that follows
from it: a step whose gradient is not finite leaves weights, momentum, average and batch-norm statistics as they were,
and its position in the schedule. The loop reads the counters when it reports.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from gaeanet.optim.rates import Rates
from gaeanet.training.learner import Learner

Timer = Callable[[str], AbstractContextManager[Any]]
"""Times a stage of the step: `transfer`, `forward` or `backward`."""

Examples = tuple[Tensor, ...]
"""What an objective makes of images and labels: tensors on the device."""


class Objective(Protocol):
    """The objective that a step optimises."""

    @property
    def fixed(self) -> Hashable:
        """What a step depends on beside tensors: steps of which it is equal launch the same kernels."""

    def draw(self, learner: Learner, images: Tensor) -> Examples:
        """Before the step, on the host: random numbers, and what `begin` takes."""

    def examples(self, learner: Learner, images: Tensor, labels: Tensor, micro: slice) -> Examples:
        """A micro-batch on the device, as `loss` takes it."""

    def begin(self, learner: Learner, drawn: Examples) -> Tensor | None:
        """Before the weights' gradients; returns whether what it did was finite (0-d bool), None for nothing done."""

    def loss(self, learner: Learner, examples: Examples, sums: Tensor) -> Tensor:
        """The sum of the losses of a micro-batch (0-d); adds them to `sums` (see `Meter.sums_of`)."""

    def snapshot(self) -> Callable[[], None]:
        """Copies all of its own that a step changes; returns a function that restores it."""

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
    drawn = objective.draw(learner, images)
    examples = examples_of(learner, images, labels, objective, timer)
    begun, sums = backward(learner, drawn, examples, objective, rates, timer)
    learner.exchange_gradients()
    update(learner, begun, sums, objective, rates)
    learner.batches += 1


def examples_of(
    learner: Learner, images: Tensor, labels: Tensor, objective: Objective, timer: Timer = nullcontext
) -> Iterator[tuple[Examples, bool]]:
    """The micro-batches of a shard on the device, one by one, and whether each is the last."""
    for micro in micro_batches(len(labels), learner.micro_batch):
        with timer("transfer"):
            examples = objective.examples(learner, images, labels, micro)
        yield examples, micro.stop == len(labels)


def backward(
    learner: Learner,
    drawn: Examples,
    examples: Iterable[tuple[Examples, bool]],
    objective: Objective,
    rates: Rates,
    timer: Timer = nullcontext,
) -> tuple[Tensor | None, Tensor]:
    """The gradients of a step's micro-batches, added up in the parameters.

    Returns:
        What `Objective.begin` returns, and the sums of losses and accuracies (see `Meter.sums_of`).
    """
    _, drop_path, _ = rates.at(learner.updates)
    learner.begin_step(drop_path)
    sums = torch.zeros_like(learner.meter.sums)
    begun = objective.begin(learner, drawn)
    for micro_batch, is_last in examples:
        with timer("forward"):
            loss = objective.loss(learner, micro_batch, sums) * learner.loss_scale
        with timer("backward"), learner.gradient_exchange(is_last=is_last):
            learner.scaler.scale(loss).backward()
    return begun, sums


def update(learner: Learner, begun: Tensor | None, sums: Tensor, objective: Objective, rates: Rates) -> None:
    """Clips the gradient of all processes, and moves weights and average along it where it is finite."""
    rate, _, average_weight = rates.at(learner.updates)
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
