"""What the blocks of an experiment file have in common: their rules, and the keys that several of them need."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]

MOST_EPOCHS = 100_000
MOST_PIXELS = 4096
"""Side of an image."""
MOST_IMAGES = 1_000_000
"""Of a batch."""
MOST_KEPT = 10_000
"""Checkpoints."""
MOST_STEPS = 10**9


class Block(BaseModel):
    """A block whose keys are known, whose values have the right type, and which never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Length(Block):
    """How long a run is: its schedule follows it, and training images that grow."""

    epochs: int = Field(300, ge=1, le=MOST_EPOCHS)
    """Epochs of the whole run."""


class Seeded(Block):
    """What random draws follow from: initial weights, the order of images, augmentation, drop-path."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Initial weights, the order of images and all random draws follow from it."""
