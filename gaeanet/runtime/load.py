"""How busy other processes keep the cores that this one may use, and how threads wait there. Needs no torch.

Threads that have done their part of an operation wait for the others. On a quiet machine it is fastest to look again
and again; on a busy one that takes the cores from those that are waited for, and a step takes many times as long.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from gaeanet.runtime.host import usable_cores

STAT = Path("/proc/stat")
BUSY = 0.25
"""Fraction of the cores that others use from which on the machine counts as busy."""
_SHORTEST = 0.2
"""Seconds to look at least; the kernel counts hundredths."""
_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@dataclass(frozen=True)
class Sample:
    """Seconds since some moment: by the clock, of all processes on the usable cores, and of this process."""

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
        return cls(time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), time.process_time())

    def others(self, end: Sample) -> float:
        """Cores that other processes kept busy from here to `end`."""
        busy = end.busy - self.busy - (end.own - self.own)
        return max(0.0, busy / max(1e-9, end.clock - self.clock))


_start: Sample | None = None
_others: float | None = None


def begin() -> None:
    """Begins to look at the machine's load."""
    global _start
    _start = Sample.now()


def busy_elsewhere() -> float | None:
    """Cores that other processes kept busy while this one started; None where that is not known."""
    return _others


def adapt() -> None:
    """Lets threads wait without taking a core where other processes are at work, unless the environment sets how.

    Before PyTorch is imported, since its OpenMP reads the setting once. Results do not depend on it.
    """
    global _others
    if _start is None:
        return
    time.sleep(max(0.0, _start.clock + _SHORTEST - time.monotonic()))
    if (end := Sample.now()) is not None:
        _others = _start.others(end)
        alone = os.environ.get("OMP_NUM_THREADS") == "1" or usable_cores() == 1
        if _others > BUSY * usable_cores() and not alone and not any(name in os.environ for name in _SETTINGS):
            os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
