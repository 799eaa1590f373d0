"""Work on the images of a source in several processes: each reads, hashes and writes parts of them.

Threads would wait for each other's turn in Python at every image. The processes are forked, so they share the catalog
and what the work has found out so far.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gaeanet.data.formats import Unreadable
from gaeanet.data.sources.source import Source
from gaeanet.errors import RunError
from gaeanet.runtime.host import keep_freed_memory, usable_cores

_PROCESSES = 3
"""At most: each may hold a hundred megabytes of a parquet file, and a disk is not faster for more."""
_FETCHED = 256
"""Images asked for at a time: a bucket has that many to choose its requests from."""
_DIES_WITH_PARENT = 1
"""Linux's PR_SET_PDEATHSIG."""

Part = TypeVar("Part")
Result = TypeVar("Result")


def read_images(source: Source, split: str, order: NDArray[np.int64]) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each image, in this order; raises `RunError` naming the first that cannot be read."""
    for start in range(0, len(order), _FETCHED):
        indices = order[start : start + _FETCHED].tolist()
        for index, data in zip(indices, source.fetch(split, indices)):
            if isinstance(data, Unreadable):
                raise RunError(f"{source.path(split, index)}: {data.reason}")
            assert isinstance(data, bytes)
            yield index, data


def worked_on(source: Source, parts: Sequence[Part], work: Callable[[Part], Result]) -> Iterator[Result]:
    """What `work` returns for each part, in order; some are worked on at a time where the source lives through a fork.

    Raises:
        RunError: A process was killed; and what `work` raises.
    """
    processes = min(_PROCESSES, usable_cores() + 1, len(parts))  # one more, since some wait for the disk
    if source.start_method or sys.platform != "linux" or processes < 2 or usable_cores() < 2:
        yield from map(work, parts)
        return
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(parts, work, os.getpid()))
    try:
        yield from pool.map(_work_on, range(len(parts)))
    except BrokenProcessPool:
        raise RunError("a process that wrote images was killed (out of memory?): run again, it continues") from None
    finally:
        pool.shutdown(cancel_futures=True)


_parts: Sequence[Any] = ()
_work: Callable[[Any], Any] = len
"""What a forked process works on."""


def _begin(parts: Sequence[Any], work: Callable[[Any], Any], parent: int) -> None:
    global _parts, _work
    _parts, _work = parts, work
    keep_freed_memory()  # an image's bytes are as many as the last one's
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent ends the others
    ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)  # none may write beside a new attempt
    if os.getppid() != parent:
        os._exit(1)


def _work_on(number: int) -> Any:
    return _work(_parts[number])
