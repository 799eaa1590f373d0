"""The training images' keys of `hyperparameters:`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from gaeanet.config.base import MOST_PIXELS, Block, Length, Seeded

Side = Annotated[int, Field(le=MOST_PIXELS)]


class Augmentation(Length, Seeded):
    """Images: their size, and how training images are augmented one by one."""

    image_size: int = Field(224, ge=32, le=MOST_PIXELS)
    """Side in pixels of the images that the network is validated on, and trained on unless train_image_size says
    otherwise."""
    train_image_size: Side | Annotated[list[Side], Field(min_length=2, max_length=2)] | None = None
    """Side of the training images; two sizes grow from the first to the second over the run, in steps of 16."""
    crop_min_area: float = Field(0.08, gt=0, le=1)
    """Smallest fraction of a training image that a random crop may show."""
    color_jitter: bool = True
    """Brightness, contrast and saturation by 0.4, hue by 0.2."""
    autoaugment: bool = False
    """AutoAugment with the policy found for ImageNet (Cubuk et al. 2019)."""
    randaugment: bool = False
    """RandAugment (Cubuk et al. 2020), in its place."""
    cutout: bool = False
    """A square of the mean colour at a random position (DeVries & Taylor 2017)."""
    cutout_length: int = Field(16, ge=1, le=MOST_PIXELS)
    """Side of that square in pixels."""
    random_erasing: float = Field(0.0, ge=0, le=1)
    """Probability that a rectangle of 2 % to a third of a training image is filled with the mean colour."""

    @model_validator(mode="after")
    def _images_fit(self) -> Augmentation:
        if self.autoaugment and self.randaugment:
            raise ValueError("autoaugment and randaugment are both true: choose one")
        smallest = min(self.training_sizes)
        if smallest < 32:
            raise ValueError(f"train_image_size {smallest} is too small: the network needs 32 pixels")
        if self.cutout and self.cutout_length > smallest:
            raise ValueError(f"cutout_length {self.cutout_length} exceeds the training images' size {smallest}")
        return self

    @property
    def training_sizes(self) -> tuple[int, int]:
        """Side of the training images in pixels at the beginning and at the end of the run."""
        sizes = self.image_size if self.train_image_size is None else self.train_image_size
        return (sizes, sizes) if isinstance(sizes, int) else (sizes[0], sizes[1])


class MixedImages(Block):
    """Mixing: training images blended with one another."""

    mixup_alpha: float = Field(0.0, ge=0)
    """mixup: pairs of images blended, lambda from Beta(alpha, alpha) once a step (Zhang et al. 2018); 0 for none."""
    cutmix_alpha: float = Field(0.0, ge=0)
    """CutMix: a rectangle of one image put into another (Yun et al. 2019); with both, a step takes either."""

    @property
    def mixes(self) -> bool:
        """Whether training images are mixed with one another."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0
