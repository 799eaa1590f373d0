"""How long threads of an operation wait for each other before they sleep, by how busy the machine is.

Threads that have done their part look again and again whether the others have, which is fastest where they have the
cores to themselves. Where others want the cores, it takes them from the very threads that are waited for, and a step
takes many times as long. libgomp, PyTorch's OpenMP on Linux, looks some 300,000 times, but only 100 times while its
process has more OpenMP threads than cores (GOMP_SPINCOUNT in its manual). So while the machine is busy there are some
more of them, which sleep. Results do not depend on it.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from gaeanet.runtime.host import usable_cores
from gaeanet.runtime.load import STAT, Sample

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Variables by which somebody has decided how threads wait."""
BUSY, QUIET = 0.2, 0.1
"""Fraction of the time that this process waits for a core, and of the cores that others use: the machine is busy where
both are above the first, and quiet again where one of them is below the second. This process's own workers make it wait
too, and others may use the cores that it leaves free."""
_LOOK = 1.0
"""Seconds from one look to the next."""
_SCHEDULER = Path("/proc/self/schedstat")
_LOADED = Path("/proc/self/maps")


@contextmanager
def waiting_by_load() -> Iterator[None]:
    """Inside of it, threads wait as the load of the machine asks for, unless the environment says how they wait."""
    several = torch.get_num_threads() > 1  # one waits for nobody
    looks = _Looks() if several and not any(name in os.environ for name in SETTINGS) else None
    try:
        if looks is not None:
            looks.start()
        yield
    finally:
        if looks is not None:
            looks.end()


class Sleepers:
    """OpenMP threads that sleep, so many that this process has more than cores.

    Raises:
        OSError: This process has no libgomp.
    """

    def __init__(self) -> None:
        lines = [line for line in _LOADED.read_text().splitlines() if "libgomp" in line]
        if not lines:
            raise OSError("no libgomp is loaded")
        libgomp, self._libc = ctypes.CDLL(lines[0].split(maxsplit=5)[5]), ctypes.CDLL(None)
        # One of them is a thread that OpenMP has not started, and those of operations are there already.
        self._number = 2 + max(0, len(os.sched_getaffinity(0)) - torch.get_num_threads())
        self._semaphore = ctypes.create_string_buffer(64)  # a sem_t has 32 bytes
        self._libc.sem_init(self._semaphore, 0, 0)
        sleep = ctypes.cast(self._libc.sem_wait, ctypes.c_void_p)
        run = libgomp.GOMP_parallel
        run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        self._thread = threading.Thread(target=run, args=(sleep, self._semaphore, self._number, 0), daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Ends them."""
        for _ in range(self._number):
            self._libc.sem_post(self._semaphore)
        self._thread.join()


class _Looks(threading.Thread):
    """Looks every second whether the machine is busy."""

    def __init__(self) -> None:
        super().__init__(name="waiting", daemon=True)
        self._ended = threading.Event()

    def run(self) -> None:
        sleepers: Sleepers | None = None
        try:
            for load in _loads(self._ended):
                if sleepers is None and min(load) > BUSY:
                    sleepers = Sleepers()
                elif sleepers is not None and min(load) < QUIET:
                    sleepers.wake()
                    sleepers = None
        except OSError:  # another system, or another OpenMP: nothing to adapt
            return
        finally:
            if sleepers is not None:
                sleepers.wake()

    def end(self) -> None:
        self._ended.set()
        self.join()


def _loads(ended: threading.Event) -> Iterator[tuple[float, float]]:
    """Every second: the fraction of it that this process has waited for a core, and of the cores that others used.

    Raises:
        OSError: The system does not say.
    """
    before, waited = _now()
    while not ended.wait(_LOOK):
        now, waits = _now()
        yield (waits - waited) / (now.clock - before.clock), before.others(now) / usable_cores()
        before, waited = now, waits


def _now() -> tuple[Sample, float]:
    """What the cores have done, and the seconds that the main thread has been ready to run without one."""
    sample = Sample.now()
    if sample is None:
        raise OSError(f"{STAT} does not say what the cores do")
    return sample, int(_SCHEDULER.read_text().split()[1]) / 1e9
