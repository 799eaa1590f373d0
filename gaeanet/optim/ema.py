"""The exponential moving average (EMA) of the weights, a second network beside the one in training."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def decay_at(update: int, decay: float) -> float:
    """The average's decay at an update, counted from 0: min(decay, (1 + t) / (10 + t)).

    So a short run's average does not hang on to the random start (as in TensorFlow's ExponentialMovingAverage).
    """
    return min(decay, (1 + update) / (10 + update))


class WeightAverage:
    """An exponential moving average of a network's weights and batch-norm statistics.

    At each update every floating-point parameter and buffer moves towards the network's by 1 - decay; integer buffers
    (batch counters) are copied.

    Attributes:
        network: The averaged copy, in evaluation mode; the network in training is never touched.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        mine, theirs = self.network.state_dict(), network.state_dict()
        floating = [name for name, value in theirs.items() if value.is_floating_point()]
        counters = [name for name in theirs if name not in set(floating)]
        # state_dict hands out the tensors themselves, which stay the same through training.
        self.follow(
            [(mine[name], theirs[name]) for name in floating], [(mine[name], theirs[name]) for name in counters]
        )

    def follow(self, floating: Sequence[tuple[Tensor, Tensor]], counters: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Sets what `update` works on: pairs of a tensor of the average and the network's that it follows."""
        self._floating = [mine for mine, _ in floating], [theirs for _, theirs in floating]
        self._counters = counters

    @torch.no_grad()
    def update(self, weight: Tensor) -> None:
        """Moves towards the network by `weight`, 1 - decay (0-d float32 on the device); 0 changes nothing."""
        mine, theirs = self._floating
        torch._foreach_lerp_(mine, theirs, [weight] * len(mine))
        for counter, new in self._counters:
            torch.where(weight > 0, new, counter, out=counter)
