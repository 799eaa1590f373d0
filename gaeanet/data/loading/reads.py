"""Which sample each worker is reading, as the training process sees it: a read that never returns has a name."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch.utils.data import get_worker_info

from gaeanet.data.sources.source import Contents, Source
from gaeanet.runtime.progress import duration

PATIENCE = 30.0
"""Seconds of a read after which it is reported."""
_NONE = -1.0


class Reads:
    """The sample of a split that each worker reads, and since when, in memory that all of them share.

    Args:
        workers: Worker processes; without any, the training process reads.
    """

    def __init__(self, source: Source, split: str, workers: int) -> None:
        self._source, self._split = source, split
        # A number and a time for each worker. Not locked: each has one writer, and is for messages only.
        self._cells = multiprocessing.RawArray("d", [_NONE, 0.0] * max(1, workers))

    def watched(self, indices: Iterable[int], contents: Iterator[Contents]) -> Iterator[Contents]:
        """The contents of the samples `indices`, each noted while it is awaited."""
        worker = get_worker_info()
        cell = 2 * worker.id if worker is not None else 0
        for index in indices:
            self._cells[cell + 1] = time.monotonic()
            self._cells[cell] = index
            content = next(contents)
            self._cells[cell] = _NONE
            yield content

    def longest(self) -> tuple[str, float] | None:
        """The sample whose read has lasted longest, by its path, and how many seconds; None where nothing is read."""
        cells = list(self._cells)
        reading = [(since, index) for index, since in zip(cells[::2], cells[1::2]) if index != _NONE]
        if not reading:
            return None
        since, index = min(reading)
        return self._source.path(self._split, int(index)), time.monotonic() - since


class HangingReads:
    """Reports reads that last longer than `PATIENCE`, each once, from a thread of its own.

    Args:
        log: Receives the message.
    """

    def __init__(self, reads: Reads, log: Callable[[str], None]) -> None:
        self._reads, self._log = reads, log
        self._waiting = False
        self._ended = threading.Event()

    @contextmanager
    def reported(self) -> Iterator[None]:
        """Starts the thread, and ends it."""
        thread = threading.Thread(target=self._look, daemon=True, name="hanging reads")
        thread.start()
        try:
            yield
        finally:
            self._ended.set()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around waiting for a batch: only then does a read hold anything up."""
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False

    def _look(self) -> None:
        reported = None
        while not self._ended.wait(PATIENCE / 4):
            longest = self._reads.longest() if self._waiting else None
            if longest is not None and longest[1] > PATIENCE and longest[0] != reported:
                reported = longest[0]
                self._log(f"still reading {reported} after {duration(longest[1])}: does its file system answer?")
