"""How busy other processes keep the cores that this one may use. Needs no torch."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

STAT = Path("/proc/stat")
_TICKS = os.sysconf("SC_CLK_TCK")
_SHORTEST = 0.2
"""Seconds to look at least; the kernel counts hundredths."""


@dataclass(frozen=True)
class Sample:
    """Seconds since some moment: by the clock, of all processes on the usable cores, of this one and its children."""

    clock: float
    busy: float
    own: float

    @classmethod
    def now(cls) -> Sample | None:
        """None where the system does not report it."""
        try:
            lines = STAT.read_text().splitlines()
            mine = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        except (OSError, AttributeError):
            return None
        # user, nice, system, (idle, iowait,) irq, softirq, steal
        fields = [line.split()[1:9] for line in lines if line.partition(" ")[0] in mine]
        ticks = sum(sum(map(int, field[:3])) + sum(map(int, field[5:])) for field in fields)
        return cls(time.monotonic(), ticks / _TICKS, time.process_time() + _children())

    def others(self, end: Sample) -> float:
        """Cores that other processes kept busy from here to `end`."""
        busy = end.busy - self.busy - (end.own - self.own)
        return max(0.0, busy / max(1e-9, end.clock - self.clock))


def _children() -> float:
    """Seconds of CPU that this process's children have taken: the data workers."""
    ended = os.times()
    seconds = ended.children_user + ended.children_system
    for tasks in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread or a child that has ended meanwhile
            for child in tasks.read_text().split():
                fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                seconds += (int(fields[11]) + int(fields[12])) / _TICKS
    return seconds


def busy_elsewhere(since: Sample | None) -> float | None:
    """Cores that other processes have kept busy since then; None where that is not known."""
    if since is None:
        return None
    time.sleep(max(0.0, since.clock + _SHORTEST - time.monotonic()))
    now = Sample.now()
    return None if now is None else since.others(now)
