"""What networks say about each image of a split: the one thing that every number and picture after training needs."""

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
from gaeanet.data.sources.order import share
from gaeanet.data.sources.source import Source
from gaeanet.evaluation.meter import exact_sum
from gaeanet.runtime.processes import Processes


class Predictions(NamedTuple):
    """One network's guesses for n images, in the order of the split.

    Attributes:
        labels: True classes, int64 (n,).
        guesses: The first five classes (or all, with fewer), best first, int64 (n, k).
        confidence: Probability of the first guess, float64 (n,).
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
        """Mean cross-entropy, added up as in training, so that it is the logged number to the last digit."""
        return float(exact_sum(torch.from_numpy(self.losses)).item() / len(self.losses)) if len(self.losses) else np.nan


def batches_of(count: int, batch: int, parts: int = 1) -> list[range]:
    """The ranges of samples that `parts` processes, each with one contiguous share, took as batches in training.

    Cut alike, every image meets the same neighbours again, so that not even rounding differs.
    """
    ranges = []
    for part in range(parts):
        bounds = share(count, part, parts)
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
    parts: int = 1,
    workers: int = 0,
) -> list[Predictions]:
    """What each network, in evaluation mode and float32, says about the validation split; the processes share the work.

    Args:
        batch: Images at once.
        parts: Processes that the batches are cut for; see `batches_of`.
    """
    device, count = processes.device, len(source.catalog.val)
    ranges = batches_of(count, batch, parts)[processes.rank :: processes.world_size]
    k = min(5, len(source.catalog.classes))
    # Each image belongs to one process; the others' zeros add nothing.
    guesses = torch.zeros((len(networks), count, k), dtype=torch.int64, device=device)
    numbers = torch.zeros((len(networks), count, 2), dtype=torch.float32, device=device)
    for found in picked_batches(source, "val", transform, ranges, workers=workers):
        place = slice(ranges[found.step].start, ranges[found.step].stop)
        images, labels = normalize(found.images.to(device)), found.labels.to(device)
        for number, network in enumerate(networks):
            logits = network(images)
            guesses[number, place] = logits.topk(k, dim=1).indices
            numbers[number, place, 0] = logits.softmax(1).amax(1)
            numbers[number, place, 1] = F.cross_entropy(logits, labels, reduction="none")
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
