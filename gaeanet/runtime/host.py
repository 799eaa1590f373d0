"""CPU cores and memory of the host that this process may use. Nothing here needs torch."""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile

from gaeanet.runtime.slurm import cores_of_task


def usable_cores() -> int:
    """Number of CPU cores for this process: those of its affinity mask, or of the machine where there is none.

    Under Slurm at most those allocated to its task, which the mask need not show.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, cores_of_task(os.environ) or cores)


LONGEST_TEMPORARY = 60
"""Characters that the temporary directory's name may have: worker processes keep sockets there, whose whole name the
system limits to some hundred."""


def shorten_temporary_directory() -> None:
    """Lets this process and its children use a shorter temporary directory where TMPDIR is too long for sockets.

    Batch systems make such names. What is not a socket would be as well off there, but there is one setting for both.
    """
    if len(tempfile.gettempdir()) <= LONGEST_TEMPORARY:
        return
    for directory in ("/tmp", "/var/tmp", "/dev/shm"):  # noqa: S108 (the system's own)
        if os.access(directory, os.W_OK | os.X_OK):
            os.environ["TMPDIR"] = tempfile.tempdir = directory
            return


def keep_freed_memory() -> None:
    """Makes malloc keep freed memory instead of returning it: a step's maps are as large as the last step's.

    glibc hands large blocks back to the system and has them made anew, page by page and filled with zeros: a tenth of
    the time of a step on a CPU. Nothing happens with another C library.
    """
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
