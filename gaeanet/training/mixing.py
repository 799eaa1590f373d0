"""mixup and CutMix: images mixed with one another, a batch at a time.

mixup (Zhang et al. 2018, arXiv 1710.09412) takes a weighted mean of two images, CutMix (Yun et al. 2019, arXiv
1905.04899) puts a rectangle of the one into the other; the loss is the same mean of those against both labels. One
draw holds for a whole step, on all processes. An image's partner is the one that follows it in its process's shard of
the batch, which the epoch's order has shuffled: so the mixtures do not depend on the size of the micro-batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from gaeanet.config.augmentation import MixedImages


@dataclass(frozen=True)
class Mix:
    """How one step mixes each image with its partner.

    Attributes:
        lam: Mixing coefficient, 0 to 1 (lambda in both papers): the image's own weight; 1 - lam is its partner's.
        box: Top, left, bottom and right of the partner's rectangle, whose area is 1 - lam; None for mixup.
    """

    lam: float
    box: tuple[int, int, int, int] | None = None

    def images(self, images: Tensor, follower: Tensor) -> Tensor:
        """Mixes normalised float images (N, 3, H, W), which may be overwritten, each with the next; the last one's
        partner is `follower` (1, 3, H, W).
        """
        if self.box is None:
            return torch.lerp(images, torch.cat([images[1:], follower]), 1.0 - self.lam)
        top, left, bottom, right = self.box
        rectangle = (..., slice(top, bottom), slice(left, right))
        images[rectangle] = torch.cat([images[1:][rectangle], follower[rectangle]])
        return images

    def labels(self, labels: Tensor, follower: Tensor) -> Tensor:
        """An image's own label and its partner's, int64 (N, 2), from labels (N,) and that of `follower` (1,)."""
        return torch.stack([labels, torch.cat([labels[1:], follower])], 1)

    @property
    def weights(self) -> Tensor:
        """The weights of an image's own label and its partner's, float32 (2,)."""
        return torch.tensor([self.lam, 1.0 - self.lam])


class Mixing:
    """Draws the mixing of each step: mixup or CutMix, either with equal probability where the experiment has both."""

    def __init__(self, mixed: MixedImages) -> None:
        alphas = (mixed.mixup_alpha, False), (mixed.cutmix_alpha, True)
        self._kinds = [(alpha, cuts) for alpha, cuts in alphas if alpha > 0]

    def draw(self, seed: int, height: int, width: int) -> Mix | None:
        """The mixing that `seed` gives for images of this size; None where nothing is mixed."""
        if not self._kinds:
            return None
        rng = np.random.default_rng(seed)
        alpha, cuts = self._kinds[int(rng.integers(len(self._kinds)))]
        lam = float(rng.beta(alpha, alpha))
        return cut(lam, height, width, *rng.random(2).tolist()) if cuts else Mix(lam)


def cut(lam: float, height: int, width: int, y: float, x: float) -> Mix:
    """CutMix's rectangle, of the image's aspect ratio and 1 - lam of its area, around (y, x) in 0..1 of its sides.

    What lies outside of the image is cut off, and `lam` becomes the fraction that is left of the image, to the pixel.
    """
    side = math.sqrt(1.0 - lam)
    h, w = int(height * side), int(width * side)
    top, left = int(y * height) - h // 2, int(x * width) - w // 2
    bottom, right = min(height, top + h), min(width, left + w)
    top, left = max(0, top), max(0, left)
    return Mix(1.0 - (bottom - top) * (right - left) / (height * width), (top, left, bottom, right))
