"""How far a long piece of work on images has come."""

from __future__ import annotations

import time

_EVERY = 10.0
"""Seconds from one line to the next."""


class Progress:
    """A line now and then: how much is done, how fast, how long still."""

    def __init__(self, total: int, unit: str = "GB", scale: float = 1e9) -> None:
        self._total, self._unit, self._scale = total, unit, scale
        self._done = self._found = 0
        self._start = self._said = time.monotonic()

    def add(self, amount: int, found: bool = False) -> None:
        """So much more is done; `found` to be done already, which says nothing about the speed of the rest."""
        self._done += amount
        self._found += amount * found
        now = time.monotonic()
        if now - self._said >= _EVERY:
            self._said = now
            left = (now - self._start) * (self._total - self._done) / max(1, self._done - self._found)
            digits = 0 if self._scale == 1 else 1
            done, total = (f"{n / self._scale:,.{digits}f}" for n in (self._done, self._total))
            share = f"{done} of {total} {self._unit}"
            print(f"{share} ({100 * self._done / self._total:.0f} %), {left / 60:.0f} min left", flush=True)
