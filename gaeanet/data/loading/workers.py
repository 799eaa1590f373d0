"""How many worker processes prepare images. Nothing here needs torch."""

from __future__ import annotations

import multiprocessing
import signal

from gaeanet.runtime.host import usable_cores

PREFETCH = 4
"""Training batches that a worker holds ready."""


def workers_each(workers: int, streams: int) -> list[int]:
    """How many workers each of several streams has; where there are any, none is without."""
    return [max(min(1, workers), workers * (k + 1) // streams - workers * k // streams) for k in range(streams)]


def usable_workers(asked: int) -> int:
    """As many workers as asked for, but not more than there are cores for this process."""
    return min(asked, usable_cores())


def end_workers() -> None:
    """Kills this process's workers, which may hang in a read; they leave other signals to this process."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would raise an error for each
    for worker in multiprocessing.active_children():
        worker.kill()
