"""Reads a few numbers from the device without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


class Readback:
    """An asynchronous copy of a small tensor to the host.

    On a CPU the values are current. On a GPU a copy runs beside training, and the next one starts when it has arrived:
    values are a step or two old.
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
        """Discards a copy that is under way: it is of a state before a rewind."""
        self._copy = None
