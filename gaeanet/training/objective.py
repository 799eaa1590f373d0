"""The objective of training: smoothed cross-entropy on images that may be mixed with one another."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from gaeanet.config.experiment import Hyperparameters
from gaeanet.data.sources.order import mix_seed
from gaeanet.evaluation.meter import Meter
from gaeanet.training.examples import Shard, Timer, micro_batches
from gaeanet.training.learner import Learner
from gaeanet.training.mixing import Mixing


class Classification:
    """Smoothed cross-entropy of the network and its auxiliary tower, against labels or mixtures of two."""

    def __init__(self, hp: Hyperparameters) -> None:
        self._seed, self._smoothing, self._tower_weight = hp.seed, hp.label_smoothing_rate, hp.auxiliary_weight
        self._mixing = Mixing(hp)

    @property
    def fixed(self) -> None:
        """Nothing but tensors changes from step to step."""

    def prepare(self, learner: Learner, images: Tensor, labels: Tensor, timer: Timer = nullcontext) -> Shard:
        """Images and labels, mixed by one draw for the step: the same on all processes."""
        height, width = images.shape[2:]
        mix = self._mixing.draw(mix_seed(self._seed, learner.batches), height, width)
        return Shard(micro_batches(learner, images, labels, mix, timer))

    def loss(self, outputs: Tensor | tuple[Tensor, Tensor], targets: tuple[Tensor, ...], sums: Tensor) -> Tensor:
        """The sum of losses, the tower's included; a mixed image counts as right with its larger label."""
        logits, *tower = outputs if isinstance(outputs, tuple) else (outputs,)
        labels, *weights = targets

        def smoothed(logits: Tensor) -> Tensor:
            def against(labels: Tensor) -> Tensor:
                return F.cross_entropy(logits.float(), labels, label_smoothing=self._smoothing, reduction="sum")

            return mixed_loss(against, labels, *weights) if weights else against(labels)

        loss = smoothed(logits)
        sums += Meter.sums_of(logits.detach(), larger(labels, *weights) if weights else labels, loss.detach()).to(sums)
        for auxiliary in tower:
            loss = loss + self._tower_weight * smoothed(auxiliary)
        return loss


def mixed_loss(against: Callable[[Tensor], Tensor], labels: Tensor, weights: Tensor) -> Tensor:
    """The loss against mixed labels (N, 2) of weights (2,), given the loss against labels (N,).

    Cross-entropy, smoothed or not, is linear in its target: this is the cross-entropy against the mixed targets.
    """
    own, partners = labels.unbind(1)
    return weights[0] * against(own) + weights[1] * against(partners)


def larger(labels: Tensor, weights: Tensor) -> Tensor:
    """The labels of greater weight, (N,), of mixed labels (N, 2)."""
    own, partners = labels.unbind(1)
    return torch.where(weights[0] >= weights[1], own, partners)
