"""Training and validation transforms: a picture in, uint8 (3, size, size) out, in channels-last memory.

For training the picture need not be decoded yet (`decode.Picture`), for its crop is drawn from its size alone;
validation takes its pixels, uint8 (3, H, W).

Every draw comes from torch's default generator, which the loader seeds for each sample. The order is that of the
recipe: random resized crop, flip, AutoAugment or RandAugment, colour jitter, cutout, random erasing; normalisation
follows on the device, a whole batch at once (`normalize`), and there images are mixed (gaeanet/training/mixing.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as TF
from torch import Tensor

from gaeanet.data.images.colour import ColorJitter
from gaeanet.data.images.policies import AutoAugment, RandAugment

if TYPE_CHECKING:
    from gaeanet.config.augmentation import Augmentation
    from gaeanet.data.images.decode import Picture

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet's channel means and standard deviations, of pixels in 0..1."""

VALIDATION_CROP = 0.875
"""Fraction of the resized image that the validation crop shows: 224 of 256 pixels."""

_ASPECTS = (3 / 4, 4 / 3)
_ERASED_AREA = (0.02, 1 / 3)
_ERASED_ASPECT = 10 / 3
"""Of random erasing: bounds of the rectangle's fraction of the area, and of the longer side's ratio to the shorter."""


def normalize(images: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) -> float32, ImageNet's mean and standard deviation; keeps device and memory format."""
    mean = torch.tensor(MEAN, device=images.device).mul_(255).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=images.device).mul_(255).view(1, 3, 1, 1)
    return images.float().sub_(mean).div_(std)


def crop_box(height: int, width: int, min_area: float) -> tuple[int, int, int, int]:
    """A random box (top, left, height, width) of min_area to 1 of the image and aspect 3/4 to 4/3.

    As torchvision draws it (after Szegedy et al. 2015): ten tries, then the largest central box of an allowed aspect.
    """
    draws = torch.rand(10, 2, dtype=torch.float64).tolist()
    log_low, log_high = math.log(_ASPECTS[0]), math.log(_ASPECTS[1])
    offset = torch.rand(2, dtype=torch.float64).tolist()
    for area_draw, aspect_draw in draws:
        area = height * width * (min_area + (1.0 - min_area) * area_draw)
        aspect = math.exp(log_low + (log_high - log_low) * aspect_draw)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(offset[0] * (height - h + 1)), int(offset[1] * (width - w + 1)), h, w
    w = min(width, max(1, round(height * _ASPECTS[1])))
    h = min(height, max(1, round(width / _ASPECTS[0])))
    return (height - h) // 2, (width - w) // 2, h, w


def resized(image: Tensor, height: int, width: int) -> Tensor:
    """uint8 (3, H, W) -> (3, height, width): bilinear with antialiasing, as Pillow does it; in channels-last memory.

    torchvision's `resize` gives the same values, but for a crop in this memory order takes twice as long.
    """
    pixels = image.permute(1, 2, 0).unsqueeze(0).contiguous()
    # Permuted back only now: made in the other order, a batch of one has a stride that hides its memory order.
    return F.interpolate(pixels.permute(0, 3, 1, 2), size=(height, width), mode="bilinear", antialias=True).squeeze(0)


def cutout(image: Tensor, length: int) -> Tensor:
    """Fills a square of side `length`, centred on a random pixel and cut off at the edges, with the mean colour.

    DeVries & Taylor 2017 zero it after normalisation; the mean colour, rounded to 8 bit, is that zero to 0.006.
    """
    _, height, width = image.shape
    draws = torch.rand(2, dtype=torch.float64).tolist()
    y, x = int(draws[0] * height), int(draws[1] * width)
    top, left = max(0, y - length // 2), max(0, x - length // 2)
    bottom, right = min(height, y - length // 2 + length), min(width, x - length // 2 + length)
    return _filled(image, top, left, bottom, right)


def erased(image: Tensor) -> Tensor:
    """Fills a rectangle of 2 % to a third of the area and aspect 0.3 to 10/3 with the mean colour.

    Random erasing (Zhong et al. 2020, arXiv 1708.04896) with timm's bounds: its mode `const`, and torchvision's
    default, which write zero after normalisation; to 0.006 that is the mean colour, as for `cutout`. (timm's `pixel`
    writes normal noise.) Ten tries to find a rectangle that fits; an image too narrow for all of them stays as it is.
    """
    _, height, width = image.shape
    low, high = _ERASED_AREA
    log_aspect = math.log(_ERASED_ASPECT)
    offset = torch.rand(2, dtype=torch.float64).tolist()
    for area_draw, aspect_draw in torch.rand(10, 2, dtype=torch.float64).tolist():
        area = height * width * (low + (high - low) * area_draw)
        aspect = math.exp(log_aspect * (2 * aspect_draw - 1))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            top, left = int(offset[0] * (height - h + 1)), int(offset[1] * (width - w + 1))
            return _filled(image, top, left, top + h, left + w)
    return image


def _filled(image: Tensor, top: int, left: int, bottom: int, right: int) -> Tensor:
    """Fills a rectangle with the mean colour, in place."""
    mean = torch.tensor([round(255 * value) for value in MEAN], dtype=image.dtype)
    image[:, top:bottom, left:right] = mean.view(3, 1, 1)
    return image


class TrainingTransform:
    """The augmentation that the experiment asks for."""

    def __init__(self, augmentation: Augmentation) -> None:
        self._sizes = augmentation.training_sizes
        self._epochs = augmentation.epochs
        self._min_area = augmentation.crop_min_area
        self._cutout = augmentation.cutout_length if augmentation.cutout else 0
        self._erasing = augmentation.random_erasing
        policies = (augmentation.autoaugment, AutoAugment), (augmentation.randaugment, RandAugment)
        self._policies = [policy() for asked, policy in policies if asked]
        self._jitter = ColorJitter(0.4, 0.4, 0.4, 0.2) if augmentation.color_jitter else None

    def at(self, epoch: int) -> Callable[[Picture], Tensor]:
        """The transform of an epoch."""
        return partial(self._apply, size=self._size(epoch))

    def after_crop(self, epoch: int) -> Callable[[Tensor], Tensor]:
        """What the transform of an epoch does with a crop."""
        return partial(self._finish, size=self._size(epoch))

    def crop(self, picture: Picture) -> Tensor:
        """A random part of a picture; the rest of it is not decoded."""
        return picture.region(*crop_box(picture.height, picture.width, self._min_area))

    def _size(self, epoch: int) -> int:
        first, last = self._sizes
        return image_size(epoch, first=first, last=last, epochs=self._epochs)

    def _apply(self, picture: Picture, size: int) -> Tensor:
        return self._finish(self.crop(picture), size)

    def _finish(self, image: Tensor, size: int) -> Tensor:
        image = resized(image, size, size)
        if torch.rand(()).item() < 0.5:
            image = image.flip(2)
        for policy in self._policies:
            image = policy(image)
        if self._jitter:
            image = self._jitter(image.permute(1, 2, 0).contiguous()).permute(2, 0, 1)
        if self._cutout:
            image = cutout(image, self._cutout)
        if self._erasing and torch.rand(()).item() < self._erasing:
            image = erased(image)
        return image


class ValidationTransform:
    """Shorter side to size / crop_fraction (256 for 224), central crop of `size`: nothing random.

    Attributes:
        size: Side of the crop in pixels.
        resize: Length of the shorter side before it.
    """

    def __init__(self, size: int, crop_fraction: float = VALIDATION_CROP) -> None:
        self.size = size
        self.resize = round(size / crop_fraction)

    def __call__(self, image: Tensor) -> Tensor:
        return TF.center_crop(TF.resize(image, [self.resize], antialias=True), [self.size, self.size])


def image_size(epoch: int, *, first: int, last: int, epochs: int) -> int:
    """Side of the training images in an epoch: from `first` to `last` in a straight line, in steps of 16 pixels.

    Progressive resizing (Howard 2018; Tan & Le 2021, arXiv 2104.00298): small images early cost less and lose little.
    """
    if first == last or epochs == 1:
        return last
    size = first + (last - first) * epoch / (epochs - 1)
    return min(max(16 * round(size / 16), min(first, last)), max(first, last))
