"""Small pictures for the report: what augmentation makes of images, and what a network takes for something else."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torchvision.transforms.v2.functional as TF
from PIL import Image
from torch import Tensor

from gaeanet.config.augmentation import Augmentation
from gaeanet.data.images.decode import ImageError, Pixels, to_pixels
from gaeanet.data.images.transforms import TrainingTransform, ValidationTransform
from gaeanet.data.sources.order import sample_seed
from gaeanet.data.sources.source import Source
from gaeanet.errors import RunError
from gaeanet.evaluation.predictions import Predictions
from gaeanet.evaluation.score import confusions

SIDE = 96
"""Pixels of a thumbnail's side."""


class Sample(NamedTuple):
    """A training image: class, the validation view of it, and what training saw in its first epochs, as data URLs."""

    label: int
    view: str
    augmented: list[str]


class Confusion(NamedTuple):
    """A pair of classes: the true one, the guessed one, images, and some of them as data URLs with their names."""

    true: int
    guess: int
    images: int
    pictures: list[tuple[str, str]]


def data_url(pixels: Tensor, side: int = SIDE) -> str:
    """uint8 pixels (3, H, W) as a small JPEG that stands in the page itself."""
    image = TF.to_pil_image(pixels)
    if max(image.size) > side:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def samples(source: Source, augmentation: Augmentation, count: int = 6, epochs: int = 4) -> list[Sample]:
    """Some training images, of as many classes as possible, with the augmentation draws of the run's first epochs."""
    labels = source.catalog.train.labels
    order = source.epoch_order(augmentation.seed, 0)
    _, firsts = np.unique(labels[order], return_index=True)
    chosen = [int(order[k]) for k in sorted(firsts.tolist())[:count]]
    chosen += [int(index) for index in order[: count * 4] if int(index) not in chosen][: count - len(chosen)]
    augment, view = TrainingTransform(augmentation), ValidationTransform(augmentation.image_size)
    shown_samples = []
    state = torch.default_generator.get_state()
    try:
        for index in chosen:
            try:
                pixels = to_pixels(source.read("train", index))
            except (ImageError, RunError):
                continue  # the training log counts those
            drawn = []
            for epoch in range(min(epochs, augmentation.epochs) if augmentation.epochs > 1 else epochs):
                torch.default_generator.manual_seed(sample_seed(augmentation.seed, epoch, index))
                drawn.append(data_url(augment.at(min(epoch, augmentation.epochs - 1))(Pixels(pixels))))
            shown_samples.append(Sample(int(labels[index]), data_url(view(pixels)), drawn))
    finally:
        torch.default_generator.set_state(state)
    return shown_samples


def confused(
    source: Source, predictions: Predictions, view: ValidationTransform, pairs: int = 8, each: int = 4
) -> list[Confusion]:
    """The pairs of classes confused most often, with the images in which the network was surest of the wrong one."""
    pairs_shown = []
    for true, guess, count in confusions(predictions, pairs):
        indices = np.flatnonzero((predictions.labels == true) & (predictions.guesses[:, 0] == guess))
        surest: Sequence[int] = indices[np.argsort(-predictions.confidence[indices], kind="stable")][:each].tolist()
        pictures = [
            (
                data_url(view(to_pixels(source.read("val", index)))),
                f"{source.catalog.val.name(index)}, {100 * predictions.confidence[index]:.0f} % sure",
            )
            for index in surest
        ]
        pairs_shown.append(Confusion(true, guess, count, pictures))
    return pairs_shown
