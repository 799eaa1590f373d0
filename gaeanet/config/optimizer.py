"""The optimizer's keys of `hyperparameters:`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gaeanet.config.base import Block, Probability


class Optimizer(Block):
    """Optimizer: the update, the loss's smoothing, what learns how fast, and the averaged weights."""

    optimizer: Literal["sgd", "muon"] = "sgd"
    """SGD with momentum, as published; or Muon (Jordan et al. 2024) for the convolutions that mix channels."""
    momentum: Probability = 0.9
    """Momentum of either."""
    weight_decay: float = Field(3.0e-5, ge=0)
    """Weight decay (L2)."""
    decay_norms_and_biases: bool = True
    """False leaves batch norms' weights and all biases without weight decay."""
    clip_gradients_l2_norm: float = Field(5.0, ge=0)
    """Largest norm of the whole gradient; 0 does not clip."""
    label_smoothing_rate: Probability = 0.1
    """Label smoothing of the training loss."""
    ema_decay: Probability = 0.999
    """Weight of the old average in the averaged weights (EMA); 0 keeps no average."""
    freeze: Literal["nothing", "stem", "cells"] | Annotated[int, Field(ge=0)] = "nothing"
    """What keeps its weights and batch-norm statistics: the stem, stem and all cells, or stem and the first n cells."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Each layer group's rate relative to that of the next one; the head learns at the full rate."""
