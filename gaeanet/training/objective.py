"""The objective of training: smoothed cross-entropy on images that may be mixed with one another."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from gaeanet.config.experiment import Hyperparameters
from gaeanet.data.images.transforms import normalize
from gaeanet.data.sources.order import mix_seed
from gaeanet.evaluation.meter import Meter
from gaeanet.training.learner import Learner
from gaeanet.training.mixing import Mix, Mixing


def to_device(learner: Learner, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised float32 images, and labels, on the learner's device."""
    images = normalize(images.to(learner.device, non_blocking=True))
    return images, labels.to(learner.device, non_blocking=True)


class Classification:
    """Smoothed cross-entropy of the network and its auxiliary tower, against labels or mixtures of two."""

    def __init__(self, hp: Hyperparameters) -> None:
        self._seed, self._smoothing, self._tower_weight = hp.seed, hp.label_smoothing_rate, hp.auxiliary_weight
        self._mixing = Mixing(hp)
        self._mix: Mix | None = None

    def begin(self, learner: Learner, images: Tensor) -> None:
        """Draws how this step mixes its images: the same on all processes."""
        height, width = images.shape[2:]
        self._mix = self._mixing.draw(mix_seed(self._seed, learner.batches), height, width)

    def examples(self, learner: Learner, images: Tensor, labels: Tensor, micro: slice) -> tuple[Tensor, Tensor]:
        """Images, and labels int64 (N,); where images are mixed, the label of each and of its partner, (N, 2)."""
        mine, own = to_device(learner, images[micro], labels[micro])
        if self._mix is None:
            return mine, own
        after = micro.stop % len(labels)
        follower, its_label = to_device(learner, images[after : after + 1], labels[after : after + 1])
        return self._mix.images(mine, follower), self._mix.labels(own, its_label)

    def loss(self, learner: Learner, images: Tensor, labels: Tensor, sums: Tensor) -> Tensor:
        """The sum of losses, the tower's included; a mixed image counts as right with its larger label."""
        mix = self._mix
        with learner.autocast():
            outputs = learner.forward(images)
        logits, *tower = outputs if isinstance(outputs, tuple) else (outputs,)

        def smoothed(logits: Tensor) -> Tensor:
            def against(labels: Tensor) -> Tensor:
                return F.cross_entropy(logits.float(), labels, label_smoothing=self._smoothing, reduction="sum")

            return mix.loss(against, labels) if mix else against(labels)

        loss = smoothed(logits)
        sums += Meter.sums_of(logits.detach(), mix.larger(labels) if mix else labels, loss.detach()).to(sums)
        for auxiliary in tower:
            loss = loss + self._tower_weight * smoothed(auxiliary)
        return loss

    def end(self, learner: Learner, finite: Tensor) -> Tensor:
        """Nothing but the weights moves."""
        return finite
