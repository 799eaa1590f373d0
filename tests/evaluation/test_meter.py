"""Counting: sums over samples, whatever the batches."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gaeanet.data.images.transforms import normalize
from gaeanet.data.loading.loader import Batch
from gaeanet.evaluation.meter import Meter, Totals, evaluate

CPU = torch.device("cpu")


def batches(images: torch.Tensor, labels: torch.Tensor, size: int) -> list[Batch]:
    return [Batch(0, k, images[k : k + size], labels[k : k + size]) for k in range(0, len(labels), size)]


def test_field_report_41_every_batch_size_gives_the_same_numbers() -> None:
    torch.manual_seed(0)
    images, labels = torch.randint(0, 256, (9, 3, 8, 8), dtype=torch.uint8), torch.randint(0, 7, (9,))
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 7), nn.Dropout(0.5)).train()
    found = [evaluate([network], batches(images, labels, size), CPU)[0].totals() for size in range(1, 10)]
    assert network.training
    logits = network.eval()(normalize(images))
    for totals in found:
        assert totals.samples == 9
        assert totals.top1 == (logits.argmax(1) == labels).sum().item()
        assert totals.top5 == (logits.topk(5).indices == labels[:, None]).any(1).sum().item()
        assert totals.loss == pytest.approx(F.cross_entropy(logits, labels, reduction="sum").item(), abs=1e-5)


def test_field_report_24_top5_counts_the_classes_there_are() -> None:
    meter = Meter(CPU)
    meter.add(torch.tensor([[1.0, 0.0, 0.5]]), torch.tensor([1]), torch.tensor(0.0))
    assert meter.totals() == Totals(1, 0.0, 0, 1)


def test_metrics_are_named_as_in_the_log() -> None:
    assert Totals(4, 2.0, 1, 3).metrics("ema_") == {
        "ema_loss": 0.5,
        "ema_top1_accuracy": 25.0,
        "ema_top5_accuracy": 75.0,
    }
