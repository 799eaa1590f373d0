"""The objective of training: smoothed cross-entropy on images that may be mixed with one another."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from gaeanet.config.experiment import Hyperparameters
from gaeanet.data.images.transforms import normalize
from gaeanet.data.sources.order import mix_seed
from gaeanet.evaluation.meter import Meter
from gaeanet.runtime.transfer import to_device
from gaeanet.training.learner import Learner
from gaeanet.training.mixing import Mix, Mixing, larger, mixed_loss


def on_device(learner: Learner, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised float32 images, and labels, on the learner's device."""
    return normalize(to_device(images, learner.device)), to_device(labels, learner.device)


class Classification:
    """Smoothed cross-entropy of the network and its auxiliary tower, against labels or mixtures of two."""

    def __init__(self, hp: Hyperparameters) -> None:
        self._seed, self._smoothing, self._tower_weight = hp.seed, hp.label_smoothing_rate, hp.auxiliary_weight
        self._mixing = Mixing(hp)
        self._mix: Mix | None = None

    @property
    def fixed(self) -> None:
        """Nothing but tensors changes from step to step."""

    def draw(self, learner: Learner, images: Tensor) -> tuple[()]:
        """Draws how this step mixes its images: the same on all processes."""
        height, width = images.shape[2:]
        self._mix = self._mixing.draw(mix_seed(self._seed, learner.batches), height, width)
        return ()

    def examples(self, learner: Learner, images: Tensor, labels: Tensor, micro: slice) -> tuple[Tensor, ...]:
        """Images, and labels int64 (N,); of mixed images those of each and its partner, (N, 2), and their weights."""
        mine, own = on_device(learner, images[micro], labels[micro])
        if self._mix is None:
            return mine, own
        after = micro.stop % len(labels)
        follower, its_label = on_device(learner, images[after : after + 1], labels[after : after + 1])
        weights = self._mix.weights.to(learner.device, non_blocking=True)
        return self._mix.images(mine, follower), self._mix.labels(own, its_label), weights

    def begin(self, learner: Learner, drawn: tuple[Tensor, ...]) -> None:
        """Nothing but the weights moves."""

    def loss(self, learner: Learner, examples: tuple[Tensor, ...], sums: Tensor) -> Tensor:
        """The sum of losses, the tower's included; a mixed image counts as right with its larger label."""
        images, labels, *weights = examples
        with learner.autocast():
            outputs = learner.forward(images)
        logits, *tower = outputs if isinstance(outputs, tuple) else (outputs,)

        def smoothed(logits: Tensor) -> Tensor:
            def against(labels: Tensor) -> Tensor:
                return F.cross_entropy(logits.float(), labels, label_smoothing=self._smoothing, reduction="sum")

            return mixed_loss(against, labels, *weights) if weights else against(labels)

        loss = smoothed(logits)
        sums += Meter.sums_of(logits.detach(), larger(labels, *weights) if weights else labels, loss.detach()).to(sums)
        for auxiliary in tower:
            loss = loss + self._tower_weight * smoothed(auxiliary)
        return loss

    def snapshot(self) -> Callable[[], None]:
        """A step changes nothing of it."""
        return lambda: None

    def end(self, learner: Learner, finite: Tensor) -> Tensor:
        """Nothing but the weights moves."""
        return finite
