"""Trains the network of an experiment file the plain way (benchmarks/plain.py): how long until it is as good?

    python benchmarks/plain_training.py DATA [--config FILE] [--epochs 26] [--workers 1]

SGD with momentum 0.9, decay and label smoothing as in the file, a cosine over the epochs after two of warm-up, images
of the whole size throughout, crops and flips. Prints the validation's top-1 every other epoch, and the time since the
start.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import plain
import torch
from torch import nn
from torchvision import transforms

from gaeanet.config.experiment import load_experiment
from gaeanet.data.images.transforms import MEAN, STD
from gaeanet.models.build import build_network

WARMUP = 2


def rate_at(epoch: float, epochs: int, peak: float) -> float:
    """Up on a straight line, then down on a cosine; `epoch` counts from 0 and may be within one."""
    if epoch < WARMUP:
        return peak * epoch / WARMUP
    return peak * (1 + math.cos(math.pi * (epoch - WARMUP) / (epochs - WARMUP))) / 2


def top1(network: nn.Module, batches: object) -> float:
    """In percent; leaves the network in training mode."""
    right = total = 0
    for images, labels in batches:  # type: ignore[attr-defined]
        right += int((plain.predict(network, images).argmax(1) == labels).sum())
        total += len(labels)
    network.train()
    return 100 * right / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a directory with train/ and val/")
    parser.add_argument("--config", default=Path(__file__).parent / "imagenette.yaml", help="an experiment file")
    parser.add_argument("--epochs", type=int, default=26)
    parser.add_argument("--rate", type=float, default=0.1, help="the peak of the learning rate")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--steps", type=int, help="stop after so many, and print their rate")
    arguments = parser.parse_args()
    hp = load_experiment(arguments.config, data=arguments.data).hyperparameters
    crops = transforms.Compose(
        [
            transforms.RandomResizedCrop(hp.image_size, scale=(hp.crop_min_area, 1)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    batch, workers = hp.global_batch_size, arguments.workers
    train = plain.loader(f"{arguments.data}/train", crops, batch, workers, True)
    val = plain.loader(f"{arguments.data}/val", plain.validation_transform(hp.image_size), batch, workers, False)
    torch.manual_seed(hp.seed)
    step = plain.Step(
        plain.plain(build_network(hp)), hp.clip_gradients_l2_norm, hp.label_smoothing_rate, hp.weight_decay
    )
    began = time.perf_counter()
    for epoch in range(arguments.epochs):
        for k, (images, labels) in enumerate(train):  # type: ignore[misc]
            rate = rate_at(epoch + k / len(train), arguments.epochs, arguments.rate)
            step.optimizer.param_groups[0]["lr"] = rate
            step(images, labels)
            if arguments.steps == k:
                print(f"{arguments.steps * batch / (time.perf_counter() - began):.1f} images/s")
                return
            if k == 0:
                began = time.perf_counter() if arguments.steps else began
        if epoch % 2 or epoch == arguments.epochs - 1:
            accuracy, elapsed = top1(step.network, val), time.perf_counter() - began
            print(f"epoch {epoch + 1}: top-1 {accuracy:.2f} % after {elapsed / 60:.1f} min", flush=True)


if __name__ == "__main__":
    main()
