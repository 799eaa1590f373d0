"""The moving average of the weights, a second network beside the one in training."""

from __future__ import annotations

import copy

import torch
from torch import nn


class WeightAverage:
    """An exponential moving average of a network's weights and batch-norm statistics.

    After each optimizer step every floating-point parameter and buffer moves towards the network's by 1 - decay;
    integer buffers (batch counters) are copied. So that a short run's average does not hang on to the random start,
    the decay is min(decay, (1 + t) / (10 + t)) at update t (as in TensorFlow's ExponentialMovingAverage).

    Attributes:
        network: The averaged copy, in evaluation mode; the network in training is never touched.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        mine, theirs = self.network.state_dict(), network.state_dict()
        floating = [name for name, value in theirs.items() if value.is_floating_point()]
        whole = [name for name in theirs if name not in set(floating)]
        # state_dict hands out the tensors themselves, which stay the same through training.
        self._floating = [mine[name] for name in floating], [theirs[name] for name in floating]
        self._whole = [mine[name] for name in whole], [theirs[name] for name in whole]

    def decay_at(self, update: int) -> float:
        """The decay of update number `update`, counted from 0."""
        return min(self.decay, (1 + update) / (10 + update))

    @torch.no_grad()
    def update(self, update: int) -> None:
        """Takes in the network's weights after optimizer step number `update`, counted from 0."""
        decay = self.decay_at(update)
        if decay == 0.0:
            torch._foreach_copy_(*self._floating)  # exactly, which a step of length 1 would round
        else:
            torch._foreach_lerp_(*self._floating, 1.0 - decay)
        if self._whole[0]:
            torch._foreach_copy_(*self._whole)
