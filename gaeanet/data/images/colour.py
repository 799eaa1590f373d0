"""Colour jitter: brightness, contrast, saturation and hue, in random order.

The operations and draws are those of torchvision's `ColorJitter` on Pillow images, which the published recipes used.
Pillow needs most of the time of an augmented image for them; the kernels (gaeanet/kernels/colour.cpp) do the same, to
the last bit, in a sixth of it, so that a run is the same with and without them.
"""

from __future__ import annotations

import numpy as np
import torch
import torchvision.transforms.v2.functional as TF
from PIL import Image
from torch import Tensor

from gaeanet.kernels.build import OWN, availability

OPERATIONS = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)


class ColorJitter:
    """Jitter with factors of 1 - strength to 1 + strength, and a hue turned by at most `hue` of the colour circle.

    Draws come from torch's default generator.
    """

    def __init__(self, brightness: float, contrast: float, saturation: float, hue: float) -> None:
        self._ranges = [(1 - x, 1 + x) for x in (brightness, contrast, saturation)] + [(-hue, hue)]
        self._jitter = jitter if availability() == OWN else jitter_in_pillow

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels uint8 (H, W, 3), contiguous, which may be written to."""
        order = torch.randperm(4)
        factors = [torch.empty(1).uniform_(low, high).item() for low, high in self._ranges]
        return self._jitter(pixels, order, factors)


def jitter(pixels: Tensor, order: Tensor, factors: list[float]) -> Tensor:
    """The operations in the given order, in place, by the kernels: see `colour_jitter` there."""
    from gaeanet.kernels.pixels import colour_jitter

    colour_jitter(pixels, order, factors)
    return pixels


def jitter_in_pillow(pixels: Tensor, order: Tensor, factors: list[float]) -> Tensor:
    """The same by Pillow."""
    image = Image.fromarray(pixels.numpy())
    for k in order.tolist():
        image = OPERATIONS[k](image, factors[k])
    return torch.from_numpy(np.array(image))
