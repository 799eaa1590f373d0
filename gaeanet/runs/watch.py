"""A question that is asked again and again in the background, beside a run that must not wait for the answer."""

from __future__ import annotations

import threading
from collections.abc import Callable

INTERVAL = 3.0
"""Seconds from one answer to the next question."""


class Watch:
    """Asks until the answer is yes. A question that fails changes nothing: the next one may be answered.

    Args:
        question: Called in a thread of its own, which never holds up the end of the process.
    """

    def __init__(self, question: Callable[[], bool], interval: float = INTERVAL) -> None:
        self._question, self._interval = question, interval
        self._over = threading.Event()
        self._yes = threading.Event()
        threading.Thread(target=self._ask, name="watch", daemon=True).start()

    @property
    def answered_yes(self) -> bool:
        return self._yes.is_set()

    def close(self) -> None:
        """Asks no more."""
        self._over.set()

    def _ask(self) -> None:
        while not self._over.wait(self._interval):
            try:
                if self._question():
                    self._yes.set()
                    return
            except Exception:  # whatever a master that is away or overloaded answers  # noqa: S112
                continue
