"""Reads a few numbers from the device without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


class Readback:
    """A small tensor as the device had it not long ago.

    On a CPU that is now. On a GPU a copy is under way while training goes on, and the next begins when it has arrived:
    a step or two late.
    """

    def __init__(self) -> None:
        self._copy: tuple[Tensor, torch.cuda.Event] | None = None

    def poll(self, values: Tensor) -> list[int] | None:
        """The newest values that have arrived (see the class); None where none has since the last call."""
        if values.device.type != "cuda":
            numbers: list[int] = values.tolist()
            return numbers
        arrived = None
        if self._copy is not None and self._copy[1].query():
            arrived, self._copy = self._copy[0].tolist(), None
        if self._copy is None:
            copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            copy.copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._copy = copy, event
        return arrived

    def forget(self) -> None:
        """What is under way is of a state that is no more."""
        self._copy = None
