"""The schedule of a run as tensors on the device.

Which update a step makes is known on the device alone, since a step whose gradient is not finite makes none. So the
device holds the rates of the next updates, and a step picks its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Row(NamedTuple):
    """The schedule's values at one update.

    Attributes:
        learning_rate: Of the optimizer, without the groups' factors.
        drop_path_rate: Probability that an edge is dropped.
        average_weight: Weight of the new values in the moving average, 1 - decay.
    """

    learning_rate: float
    drop_path_rate: float = 0.0
    average_weight: float = 0.0


class StepRates(NamedTuple):
    """A row on the device, 0-d each."""

    learning_rate: Tensor
    drop_path_rate: Tensor
    average_weight: Tensor


class Rates:
    """A window of the schedule on the device: the rows of the next updates.

    Args:
        row: The row of an update, counted from 0.
        window: How many updates are held; `move_to` must be called at least as often.
    """

    def __init__(self, row: Callable[[int], Row], window: int, device: torch.device) -> None:
        self._row, self._window = row, window
        # The rates of a run on the CPU are float64; on a GPU the optimizer wants float32, and MPS has nothing else.
        dtype = torch.float64 if device.type == "cpu" else torch.float32
        # These stay the same tensors: a recorded step reads them where they are.
        self._rows = torch.zeros(window, len(Row._fields), dtype=dtype, device=device)
        self._first = torch.zeros((), dtype=torch.int64, device=device)
        self.move_to(0)

    @classmethod
    def constant(cls, row: Row, device: torch.device) -> Rates:
        """The same rates for every update."""
        return cls(lambda _: row, 1, device)

    def move_to(self, update: int) -> None:
        """Holds the rows from this update on."""
        rows = [self._row(k) for k in range(update, update + self._window)]
        self._rows.copy_(torch.tensor(rows, dtype=self._rows.dtype), non_blocking=True)
        self._first.fill_(update)

    def at(self, update: Tensor) -> StepRates:
        """The rates of an update (0-d, int64)."""
        index = (update - self._first).clamp(0, self._window - 1)
        return StepRates(*self._rows[index.view(1)].squeeze(0).unbind())
