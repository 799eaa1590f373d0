"""Timing work that is repeated for as long as there is time."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def repeated(work: Callable[[], object], seconds: float, *, most: int = 50, warm_up: bool = False) -> list[float]:
    """Does `work` once, and again while `seconds` last, up to `most` times; returns the seconds of each.

    What would probably not be done in time is not begun. With `warm_up` it is done once more before, uncounted.
    """
    end, times = time.monotonic() + seconds, list[float]()
    if warm_up:
        work()
    while not times or (len(times) < most and time.monotonic() + times[-1] < end):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return times


def as_many(number: float, most: int) -> int:
    """The whole number below, but at least 1 and not more than `most`."""
    return max(1, min(most, int(number)))


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
