"""Learning rate and drop-path rate: pure functions of progress.

Progress is measured in epochs and may be fractional: `epoch + step / steps_per_epoch`. The published schedules give one
value an epoch. `linear` and `cosine` here pass through exactly those values at whole epochs and run straight between
them, so that a run of five epochs ends as low as one of three hundred, and the last step ends next to zero;
`efficientnet` is a staircase, as published. Warm-up passes through `rate * (e + 1) / warmup_epochs` likewise.
"""

from __future__ import annotations

import math
from collections.abc import Callable

TAIL_EPOCHS = 5
"""Length of the last, flatter part of PC-DARTS's linear schedule."""


def cosine(epoch: float, epochs: int) -> float:
    """(1 + cos(pi e / E)) / 2: the fraction of the initial rate at epoch e of E (Loshchilov & Hutter 2017)."""
    return 0.5 * (1.0 + math.cos(math.pi * epoch / epochs))


def linear(epoch: float, epochs: int) -> float:
    """PC-DARTS's linear schedule: falls to 1 / (E - 5) five epochs before the end, and from there to zero.

    With fewer than six epochs the tail is shortened to E - 1, so that the rate stays positive and never rises.
    """
    if epoch >= epochs:
        return 0.0
    tail = min(TAIL_EPOCHS, epochs - 1)
    if epochs - epoch > tail:
        return (epochs - tail - epoch) / (epochs - tail)
    return (epochs - epoch) / ((epochs - tail) * tail)


def staircase(epoch: float, gamma: float, decay_every: int) -> float:
    """EfficientNet's schedule: `gamma` to the power of floor((e + 1) / decay_every)."""
    return float(gamma ** math.floor((epoch + 1) / decay_every))


def _between_whole_epochs(schedule: Callable[[int], float], epoch: float) -> float:
    """The straight line between the values of `schedule` at the whole epochs around `epoch`."""
    below = math.floor(epoch)
    fraction = epoch - below
    value = schedule(below)
    return value if fraction == 0.0 else value + fraction * (schedule(below + 1) - value)


def learning_rate(
    epoch: float,
    *,
    scheduler: str,
    base: float,
    epochs: int,
    warmup_epochs: int = 0,
    gamma: float = 0.97,
    decay_every: int = 2,
) -> float:
    """The learning rate at a moment of training.

    Args:
        epoch: Progress in epochs, 0 <= epoch <= epochs.
        scheduler: `cosine`, `linear` or `efficientnet`.
        base: The rate before any decay.
        epochs: Length of the run.
        warmup_epochs: Epoch e < warmup_epochs uses base * (e + 1) / warmup_epochs instead of the schedule.
        gamma, decay_every: Factor and period (epochs) of `efficientnet`.
    """
    if scheduler == "efficientnet" and epoch >= warmup_epochs - 1:
        # Full height is reached with the last warm-up epoch and held to its end; from there the stairs lead down.
        return base * (staircase(epoch, gamma, decay_every) if epoch >= warmup_epochs else 1.0)

    def published(whole: int) -> float:
        if whole < warmup_epochs:
            return (whole + 1) / warmup_epochs
        return linear(whole, epochs) if scheduler == "linear" else cosine(whole, epochs)

    return base * _between_whole_epochs(published, epoch)


def drop_path_rate(epoch: float, *, final: float, epochs: int) -> float:
    """Grows linearly from 0 to `final` over the run: `final * e / E`."""
    return final * epoch / epochs
