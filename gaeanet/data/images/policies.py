"""AutoAugment (Cubuk et al. 2019) and RandAugment (Cubuk et al. 2020), as torchvision draws them and Pillow does them.

Most of their operations replace each level of a channel by another one, or are parts of colour jitter: those the
kernels do in place, bit for bit as Pillow. Rotations, shears, shifts and sharpness remain Pillow's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torchvision.transforms.v2 as transforms
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gaeanet.data.images.colour import jitter
from gaeanet.kernels.build import OWN, availability

LEVELS = np.arange(256)

_JITTER = {"Brightness": 0, "Contrast": 1, "Color": 2}


class Operations:
    """torchvision's way to apply an operation, on pixels (3, H, W) whose memory is (H, W, 3)."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._fast = availability() == OWN

    def _apply_image_or_video_transform(
        self, image: Tensor, transform_id: str, magnitude: float, interpolation: Any, fill: Any
    ) -> Tensor:
        pixels = image.permute(1, 2, 0).contiguous()
        if not (self._fast and apply_in_place(pixels, transform_id, magnitude)):
            pillow = super()._apply_image_or_video_transform(  # type: ignore[misc]
                Image.fromarray(pixels.numpy()), transform_id, magnitude, interpolation, fill
            )
            pixels = torch.from_numpy(np.array(pillow))
        return pixels.permute(2, 0, 1)


class AutoAugment(Operations, transforms.AutoAugment):  # type: ignore[misc]
    """The policy found on ImageNet."""


class RandAugment(Operations, transforms.RandAugment):  # type: ignore[misc]
    """Two operations of magnitude 9."""


def apply_in_place(pixels: Tensor, operation: str, magnitude: float) -> bool:
    """Applies an operation to uint8 (H, W, 3) by the kernels; False where they do not have it."""
    from gaeanet.kernels.pixels import count_levels, map_levels

    if operation in _JITTER:
        factors = [1.0, 1.0, 1.0, 0.0]
        factors[_JITTER[operation]] += magnitude
        jitter(pixels, torch.tensor([_JITTER[operation], -1, -1, -1]), factors)
    elif operation in ("AutoContrast", "Equalize"):
        results = autocontrast if operation == "AutoContrast" else equalize
        map_levels(pixels, _table([results(count) for count in count_levels(pixels).numpy()]))
    elif operation in ("Invert", "Posterize", "Solarize"):
        map_levels(pixels, _table([_results(operation, magnitude)] * 3))
    else:
        return operation == "Identity"
    return True


def _results(operation: str, magnitude: float) -> NDArray[np.int64]:
    """What becomes of each level; the magnitude is the bits kept or, of 1, the threshold."""
    if operation == "Posterize":
        return LEVELS & -(1 << (8 - int(magnitude)))
    threshold = 255.0 * magnitude if operation == "Solarize" else 0.0
    results: NDArray[np.int64] = np.where(threshold > LEVELS, LEVELS, 255 - LEVELS)
    return results


def autocontrast(count: NDArray[np.int64]) -> NDArray[np.int64]:
    """The levels that occur, spread over 0..255; `count` (256,) is how often each does."""
    present = np.flatnonzero(count)
    low, high = present[0], present[-1]
    if low == high:
        return LEVELS
    scale = 255.0 / (high - low)
    spread: NDArray[np.int64] = (LEVELS * scale - low * scale).astype(np.int64)
    return spread


def equalize(count: NDArray[np.int64]) -> NDArray[np.int64]:
    """The levels by their rank, so that all of 0..255 are as frequent as can be."""
    present = np.flatnonzero(count)
    step = (count.sum() - count[present[-1]]) // 255
    if len(present) == 1 or not step:
        return LEVELS
    before = np.cumsum(count) - count
    ranks: NDArray[np.int64] = (before + step // 2) // step
    return ranks


def _table(results: list[NDArray[np.int64]]) -> Tensor:
    return torch.from_numpy(np.stack(results).clip(0, 255).astype(np.uint8))
