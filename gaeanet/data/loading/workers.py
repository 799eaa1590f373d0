"""How many worker processes prepare images. Nothing here needs torch."""

from __future__ import annotations

from gaeanet.runtime.host import usable_cores

PREFETCH = 4
"""Training batches that a worker holds ready."""


def workers_each(workers: int, streams: int) -> list[int]:
    """How many workers each of several streams has; where there are any, none is without."""
    return [max(min(1, workers), workers * (k + 1) // streams - workers * k // streams) for k in range(streams)]


def usable_workers(asked: int) -> int:
    """As many workers as asked for, but not more than there are cores for this process."""
    return min(asked, usable_cores())
