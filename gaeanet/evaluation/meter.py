"""Metrics as sums over samples, so that they depend neither on the batch size nor on the number of processes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gaeanet.data.images.transforms import normalize
from gaeanet.data.loading.loader import Batch


class Totals(NamedTuple):
    """Sums over samples.

    Attributes:
        samples: How many.
        loss: Sum of the losses.
        top1, top5: Samples whose label is the most probable class, or among the five most probable (or all, if fewer).
    """

    samples: int
    loss: float
    top1: int
    top5: int

    def metrics(self, prefix: str = "") -> dict[str, float]:
        """Mean loss and accuracies in percent, named as in metrics.jsonl; NaN without samples."""
        return {
            f"{prefix}loss": self.loss / self.samples if self.samples else math.nan,
            f"{prefix}top1_accuracy": 100.0 * self.top1 / self.samples if self.samples else math.nan,
            f"{prefix}top5_accuracy": 100.0 * self.top5 / self.samples if self.samples else math.nan,
        }

    @classmethod
    def of(cls, sums: Tensor) -> Totals:
        """From the sums of a meter, or of several meters."""
        samples, loss, top1, top5 = sums.tolist()
        return cls(round(samples), loss, round(top1), round(top5))


class Meter:
    """Accumulates `Totals` on the device, so that nothing waits for it."""

    def __init__(self, device: torch.device) -> None:
        # float64 is exact for every count; MPS lacks it, and float32 is exact to 16 million.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.zeros(4, device=device, dtype=dtype)

    def add(self, logits: Tensor, labels: Tensor, loss_sum: Tensor) -> None:
        """Adds a batch: logits (N, classes), labels (N,), and the sum of its losses."""
        self.sums += self.sums_of(logits, labels, loss_sum).to(self.sums)

    @staticmethod
    def sums_of(logits: Tensor, labels: Tensor, loss_sum: Tensor) -> Tensor:
        """Number of samples, loss, top-1 and top-5 of a batch, (4,)."""
        guesses = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        samples = torch.full_like(loss_sum, len(labels))
        return torch.stack([samples, loss_sum, guesses[:, 0].sum().to(loss_sum), guesses.sum().to(loss_sum)])

    def totals(self) -> Totals:
        """The sums so far."""
        return Totals.of(self.sums)

    def reset(self) -> None:
        self.sums.zero_()


def exact_sum(losses: Tensor) -> Tensor:
    """The sum of losses (N,) rounded to multiples of 2^-24 (6e-8), a 0-d float64 tensor.

    Such sums are exact below 2^29, so that the result does not depend on the order or the number of processes.
    """
    if losses.device.type == "mps":  # which has no float64
        return losses.sum()
    return torch.round(losses.double() * _GRAIN).sum() / _GRAIN


_GRAIN = 2.0**24


@torch.inference_mode()
def evaluate(networks: list[nn.Module], batches: Iterable[Batch], device: torch.device) -> list[Meter]:
    """Evaluates each network on the same batches: plain cross-entropy, float32, evaluation mode.

    The networks are left in the mode they were in.
    """
    modes = [network.training for network in networks]
    meters = [Meter(device) for _ in networks]
    for network in networks:
        network.eval()
    for batch in batches:
        images = normalize(batch.images.to(device, non_blocking=True))
        labels = batch.labels.to(device, non_blocking=True)
        for network, meter in zip(networks, meters):
            # Not the compiled network: the checkpoint, loaded uncompiled, must give the same numbers.
            logits = network.forward(images)
            meter.add(logits, labels, exact_sum(F.cross_entropy(logits, labels, reduction="none")))
    for network, mode in zip(networks, modes):
        network.train(mode)
    return meters
