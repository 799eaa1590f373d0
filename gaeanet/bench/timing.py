"""Timing of repeated work within a time limit."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def repeated(work: Callable[[], object], seconds: float, *, most: int = 50, warm_up: bool = False) -> list[float]:
    """Runs `work` once, and again within `seconds`, up to `most` times; returns the seconds of each.

    A repetition that would probably exceed the limit is not started. With `warm_up` one more runs first, not timed.
    """
    end, times = time.monotonic() + seconds, list[float]()
    if warm_up:
        work()
    while not times or (len(times) < most and time.monotonic() + times[-1] < end):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return times


def clamped(number: float, most: int) -> int:
    """`number` rounded down, at least 1 and at most `most`."""
    return max(1, min(most, int(number)))


def wait(device: torch.device) -> None:
    """Synchronises with the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
