"""Peak memory of a training step, memory available, and the largest micro-batch that fits."""

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
    """Peak memory of a step, and the memory available.

    Attributes:
        measured: Peak bytes by size of the micro-batch, for the sizes that were measured.
        micro_batch: Images of a micro-batch in this experiment.
        per_image, peak: Bytes for each further image, and of a step on `micro_batch` images.
        prepared: Bytes of prefetched batches, where they are in the same memory.
        available: Bytes that this process can allocate in all.
        fits: The largest micro-batch that leaves a tenth of that free; 0 where not even two images fit.
    """

    measured: dict[int, int]
    micro_batch: int
    per_image: float
    peak: int
    prepared: int
    available: int
    fits: int

    @classmethod
    def of(cls, measured: dict[int, int], before: int, micro_batch: int, prepared: int, available: int) -> StepMemory:
        """Estimates from two sizes, or from one and the bytes that were in use `before`."""
        few, many = min(measured), max(measured)
        growth = measured[many] - measured[few] if few < many else measured[many] - before
        per_image = max(1.0, growth / (many - few or many))
        peak = measured[many] + round(per_image * (micro_batch - many))
        fits = many + int((0.9 * available - prepared - measured[many]) // per_image)
        return cls(measured, micro_batch, per_image, peak, prepared, available, fits if fits >= 2 else 0)


def peak_of(work: Callable[[], object], device: torch.device) -> int | None:
    """Runs `work` and returns the peak memory in bytes, including what was allocated before.

    On a GPU the memory that PyTorch has allocated, elsewhere this process's resident memory. None where the system does
    not report it (anything but Linux and CUDA); the work is run all the same.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    can_reset = device.type == "cpu" and _reset_peak()
    work()
    return _status("VmHWM") if can_reset else None


def allocated(device: torch.device) -> int:
    """Bytes that this process has allocated now, as `peak_of` measures them."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _status("VmRSS")


def available(device: torch.device) -> int:
    """Bytes that this process can allocate in all: allocated and free memory, within its container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    free = _field((PROC / "meminfo").read_text(), "MemAvailable")
    return min([free, *_free_in_groups()]) + allocated(device)


def _reset_peak() -> bool:
    """Resets the peak of resident memory, after returning freed memory; returns whether the system supports it."""
    with contextlib.suppress(AttributeError, OSError):  # only glibc has it, and only it keeps freed memory
        ctypes.CDLL(None).malloc_trim(0)
    try:
        (PROC / "self" / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _free_in_groups() -> list[int]:
    """Free memory of each control group (v2) that limits this process."""
    left = []
    folder = CGROUPS / _own_group()
    for group in (folder, *folder.parents):
        try:
            limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
            cached = _count((group / "memory.stat").read_text(), "inactive_file")
        except (OSError, ValueError):  # no limit there reads "max"
            continue
        left.append(max(0, limit - used + cached))  # the page cache is reclaimed first
    return left


def _own_group() -> str:
    """The path of this process's control group; empty for the root, or without control groups."""
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
