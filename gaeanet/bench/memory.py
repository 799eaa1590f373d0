"""How much memory a step takes at its peak, how much there is, and what would fit; and memory that is kept."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class StepMemory:
    """What a step takes at its peak, and what there is.

    Attributes:
        measured: Images at once that were measured, and the bytes that were taken.
        at_once: Images that one process takes at once in this experiment.
        per_image, peak: Bytes an image more takes, and that a step on `at_once` images takes.
        prepared: Bytes of the batches that wait for the step, where they lie in the same memory.
        room: Bytes that this process could have.
        fits: The most images at once, with a tenth of the room left over; 0 where not even two fit.
    """

    measured: dict[int, int]
    at_once: int
    per_image: float
    peak: int
    prepared: int
    room: int
    fits: int

    @classmethod
    def of(cls, measured: dict[int, int], before: int, at_once: int, prepared: int, room: int) -> StepMemory:
        """From two sizes, or from one and the bytes that were taken `before`."""
        few, many = min(measured), max(measured)
        growth = measured[many] - measured[few] if few < many else measured[many] - before
        per_image = max(1.0, growth / (many - few or many))
        peak = measured[many] + round(per_image * (at_once - many))
        fits = many + int((0.9 * room - prepared - measured[many]) // per_image)
        return cls(measured, at_once, per_image, peak, prepared, room, fits if fits >= 2 else 0)


def peak_of(work: Callable[[], object], device: torch.device) -> int | None:
    """Does `work` and returns the most bytes that were taken meanwhile, by all that there is and not by it alone.

    On a GPU what PyTorch has allocated on it, elsewhere this process's resident memory. None where the system does not
    tell (anything but Linux and CUDA); the work is done all the same.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    known = device.type == "cpu" and _forget_peak()
    work()
    return _status("VmHWM") if known else None


def held(device: torch.device) -> int:
    """Bytes that this process holds now, counted as `peak_of` does."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _status("VmRSS")


def room(device: torch.device) -> int:
    """Bytes that this process could hold in all: what it has and what is free, within its container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    free = _field((PROC / "meminfo").read_text(), "MemAvailable")
    return min([free, *_left_in_groups()]) + held(device)


def _forget_peak() -> bool:
    """Lets the peak of resident memory begin anew, without what is free but still held; whether the system can."""
    with contextlib.suppress(AttributeError, OSError):  # glibc alone keeps freed memory, and can be told not to
        ctypes.CDLL(None).malloc_trim(0)
    try:
        (PROC / "self" / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _left_in_groups() -> list[int]:
    """What each control group (v2) that this process is in, and limited by, leaves it."""
    left = []
    folder = CGROUPS / _own_group()
    for group in (folder, *folder.parents):
        try:
            limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
            cached = _count((group / "memory.stat").read_text(), "inactive_file")
        except (OSError, ValueError):  # no limit there reads "max"
            continue
        left.append(max(0, limit - used + cached))  # files read once are let go of first
    return left


def _own_group() -> str:
    """The path of this process's control group; empty for the root, and where there are none."""
    try:
        return (PROC / "self" / "cgroup").read_text().split("0::/", 1)[1].splitlines()[0]
    except (OSError, IndexError):
        return ""


def _status(name: str) -> int:
    return _field((PROC / "self" / "status").read_text(), name)


def _field(text: str, name: str) -> int:
    """Bytes of a `Name:   123 kB` line."""
    return int(text.split(f"{name}:")[1].split()[0]) * 1024


def _count(text: str, name: str) -> int:
    """Bytes of a `name 123` line."""
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))
