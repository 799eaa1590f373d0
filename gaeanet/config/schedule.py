"""The schedule's keys of `hyperparameters:`, and how a global batch is divided."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from gaeanet.config.base import MOST_EPOCHS, MOST_IMAGES, Block, Length, Positive


class Schedule(Length):
    """Schedule: the length of the run and the learning rate along it."""

    learning_rate: Positive = 0.5
    """Rate after the warm-up. It goes with the batch: 0.5 for 1024, 1.0 for 2048."""
    lr_scheduler: Literal["cosine", "linear", "efficientnet"] = "cosine"
    """How the rate falls after the warm-up."""
    lr_gamma: float = Field(0.97, gt=0, le=1)
    """Factor of the efficientnet schedule."""
    lr_decay_every: int = Field(2, ge=1, le=MOST_EPOCHS)
    """Period of the efficientnet schedule in epochs."""
    warmup_epochs: int = Field(5, ge=0, le=MOST_EPOCHS)
    """Epochs over which the rate rises to learning_rate."""


class Batches(Block):
    """Batches: what a step sees, and how processes divide it."""

    global_batch_size: int = Field(1024, ge=2, le=MOST_IMAGES)
    """Images a step over all processes."""
    max_batch_per_slot: int | None = Field(None, ge=2, le=MOST_IMAGES)
    """Most images of a micro-batch: a process accumulates gradients over as many as its images need; null for one."""
    sync_batch_norm: bool = False
    """Batch-norm statistics over all processes instead of each process's own images."""
    repeated_augmentation: int = Field(1, ge=1, le=MOST_IMAGES)
    """How often an image is in a batch, augmented differently each time (Hoffer et al. 2020); 1 has each once."""

    @model_validator(mode="after")
    def _repeats_divide_the_batch(self) -> Batches:
        if self.global_batch_size % self.repeated_augmentation:
            raise ValueError(
                f"repeated_augmentation {self.repeated_augmentation} does not divide global_batch_size "
                f"{self.global_batch_size}: choose a batch that it divides"
            )
        return self

    def micro_batches(self, images: int) -> int:
        """In how many micro-batches a process handles its images of a global batch."""
        return -(-images // (self.max_batch_per_slot or images))
