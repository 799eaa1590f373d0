"""The run's keys of `hyperparameters:`: the machine, checkpoints, trackers, and what the network starts from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gaeanet.config.base import MOST_EPOCHS, MOST_KEPT, MOST_STEPS, Block, Seeded


class Run(Seeded):
    """Run: randomness, precision, validation, checkpoints, and what happens when gradients are not finite."""

    validate_every: int = Field(1, ge=1, le=MOST_EPOCHS)
    """Epochs from one validation to the next; the last epoch is always validated."""
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "auto"
    """auto is bf16 on GPUs that have it, else fp32."""
    compile: Literal["auto", "graphs"] | bool = "auto"
    """auto is the fastest way that is proven on the GPU at hand: our kernels, each step one CUDA graph; graphs is
    PyTorch's kernels in such a graph, true is PyTorch's compiler (minutes), false launches kernel by kernel."""
    checkpoint_every: int | None = Field(None, ge=1, le=MOST_STEPS)
    """Steps from one checkpoint to the next; null saves at each validation only."""
    keep_latest: int = Field(2, ge=1, le=MOST_KEPT)
    """Newest checkpoints that are kept."""
    keep_best: int = Field(1, ge=1, le=MOST_KEPT)
    """Best checkpoints that are kept beside them."""
    checkpoint_bucket: str | None = None
    """A bucket's URL (gs://bucket/run, ...) to which checkpoints and log are copied, for another machine to resume."""
    on_divergence: Literal["stop", "rewind"] = "stop"
    """After max_bad_steps non-finite gradients in a row: end the run, or go back a checkpoint at half the rate."""
    max_bad_steps: int = Field(10, ge=1, le=MOST_STEPS)
    """Steps in a row whose gradient is not finite, after which on_divergence applies."""
    track: list[str] = Field([])
    """Trackers beside the log: tensorboard, or module:callable (see gaeanet/runs/trackers.py)."""


class Start(Block):
    """Start: a trained network in place of random weights."""

    init_checkpoint: str | None = None
    """A trained network to start from; with another number of classes its classifier and tower head are initialised."""
    init_weights: Literal["raw", "ema"] | None = None
    """Which of its weights; null takes those that did better."""
    new_head: bool = False
    """Initialise classifier and tower head even for the same number of classes."""
