"""Predictions of networks for each image of a split, from which all metrics and plots after training are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from gaeanet.data.images.transforms import ValidationTransform, normalize
from gaeanet.data.loading.loader import picked_batches
from gaeanet.data.sources.order import shard_slice
from gaeanet.data.sources.source import Source
from gaeanet.evaluation.meter import exact_sum
from gaeanet.runtime.processes import Processes


class Predictions(NamedTuple):
    """One network's predictions for n images, in the order of the split.

    Attributes:
        labels: True classes, int64 (n,).
        guesses: The five most probable classes (or all, if fewer), best first, int64 (n, k).
        confidence: Probability of the first of them, float64 (n,).
        losses: Cross-entropy, float32 (n,).
    """

    labels: NDArray[np.int64]
    guesses: NDArray[np.int64]
    confidence: NDArray[np.float64]
    losses: NDArray[np.float32]

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the first guess is right, (n,)."""
        right: NDArray[np.bool_] = self.guesses[:, 0] == self.labels
        return right

    @property
    def correct5(self) -> NDArray[np.bool_]:
        """Whether one of the guesses is right, (n,)."""
        right: NDArray[np.bool_] = (self.guesses == self.labels[:, None]).any(1)
        return right

    @property
    def loss(self) -> float:
        """Mean cross-entropy, added up as in training, so that it is exactly the logged number."""
        return float(exact_sum(torch.from_numpy(self.losses)).item() / len(self.losses)) if len(self.losses) else np.nan


def batches_of(count: int, batch: int, shards: int = 1) -> list[range]:
    """The ranges of samples that `shards` processes, each with a contiguous shard, had as batches in training.

    With the same batches every image has the same neighbours, so that results are bit-exact.
    """
    ranges = []
    for number in range(shards):
        bounds = shard_slice(count, number, shards)
        ranges += [range(k, min(k + batch, bounds.stop)) for k in range(bounds.start, bounds.stop, batch)]
    return ranges


@torch.inference_mode()
def predict_split(
    networks: Sequence[nn.Module],
    source: Source,
    transform: ValidationTransform,
    processes: Processes,
    *,
    batch: int,
    shards: int = 1,
    workers: int = 0,
) -> list[Predictions]:
    """Predictions of each network on the validation split, in evaluation mode and float32, sharded over processes.

    Args:
        batch: Images of a batch.
        shards: Number of processes that the batches reproduce; see `batches_of`.
    """
    device, count = processes.device, len(source.catalog.val)
    ranges = batches_of(count, batch, shards)[processes.rank :: processes.world_size]
    k = min(5, len(source.catalog.classes))
    # Each image belongs to one process; the others' zeros add nothing.
    guesses = torch.zeros((len(networks), count, k), dtype=torch.int64, device=device)
    numbers = torch.zeros((len(networks), count, 2), dtype=torch.float32, device=device)
    for loaded in picked_batches(source, "val", transform, ranges, workers=workers):
        samples = slice(ranges[loaded.step].start, ranges[loaded.step].stop)
        images, labels = normalize(loaded.images.to(device)), loaded.labels.to(device)
        for number, network in enumerate(networks):
            logits = network(images)
            guesses[number, samples] = logits.topk(k, dim=1).indices
            numbers[number, samples, 0] = logits.softmax(1).amax(1)
            numbers[number, samples, 1] = F.cross_entropy(logits, labels, reduction="none")
    processes.sum(guesses)
    processes.sum(numbers)
    labels_of_all = source.catalog.val.labels.astype(np.int64)
    return [
        Predictions(
            labels_of_all,
            guesses[number].cpu().numpy(),
            numbers[number, :, 0].double().cpu().numpy(),
            numbers[number, :, 1].cpu().numpy(),
        )
        for number in range(len(networks))
    ]
