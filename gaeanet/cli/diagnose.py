"""Failures of the machine, told in one line with a remedy. What is not recognised here is a fault of the program."""

from __future__ import annotations

import errno
import re

from gaeanet.errors import RunError, reason

_HINTS = (
    (
        r"too many open files|ancdata",
        "too many open files: raise the limit (ulimit -n 4096) or lower data.num_workers_train",
    ),
    (
        r"out of memory",
        "out of memory on the device: set hyperparameters.max_batch_per_slot, or lower it",
    ),
    (
        r"bus error|insufficient shared memory|/dev/shm|no space left on device.*shm|torch_shm",
        "shared memory is full: enlarge /dev/shm (docker: --shm-size) or lower data.num_workers_train",
    ),
    (
        r"dataloader worker.*(killed|exited unexpectedly)",
        "a worker process was ended from outside, for lack of memory perhaps: lower data.num_workers_train",
    ),
    (
        r"connection (closed|reset) by peer|connection refused|\bgloo\b|\bnccl\b|socket timeout|timed out waiting",
        "lost the other processes of this run: the message of the one that failed first says why",
    ),
)


def explained(error: Exception) -> RunError | None:
    """The error as a `RunError` with a remedy, or None where nothing is known about it."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return RunError(f"{error.filename or 'a file'}: {reason(error)}: the disk is full; make room and --resume")
    if isinstance(error, (RuntimeError, OSError)):
        for pattern, hint in _HINTS:
            if re.search(pattern, str(error), re.IGNORECASE | re.DOTALL):
                return RunError(hint)
    return None
