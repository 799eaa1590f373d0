"""One-line messages, with a remedy, for failures of the environment. Anything not recognised is a bug."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from gaeanet.errors import RunError, reason

_HINTS = (
    (
        r"too many open files|ancdata",
        "too many open files: raise the limit (ulimit -n 4096) or lower data.num_workers_train",
    ),
    (
        r"out of memory|can.t allocate memory",
        "out of memory: set hyperparameters.max_batch_per_slot, or lower it; or take a smaller network or image_size",
    ),
    (
        r"bus error|insufficient shared memory|/dev/shm|no space left on device.*shm|torch_shm",
        "shared memory is full: enlarge /dev/shm (docker: --shm-size) or lower data.num_workers_train",
    ),
    (
        r"dataloader worker.*(killed|exited unexpectedly)",
        "a worker process was killed, perhaps for lack of memory: lower data.num_workers_train and run again with "
        "--resume",
    ),
    (
        r"connection (closed|reset) by peer|connection was likely closed|connection refused|\bgloo\b|\bnccl\b|"
        r"socket timeout|timed out waiting|wait timeout|^Dist(Network|Store|Backend)Error\b",
        "lost the other processes of this run: the message of the one that failed first says why",
    ),
)


def explained(error: Exception) -> RunError | None:
    """The error as a `RunError` with a remedy; None for an error that is not recognised."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return RunError(f"{error.filename or 'a file'}: {reason(error)}: the disk is full; free space and --resume")
    if isinstance(error, OSError) and error.filename is not None:
        return RunError(f"{error.filename}: {reason(error)}; a run continues with --resume")
    if isinstance(error, (RuntimeError, OSError)):
        text = f"{type(error).__name__}: {error}"  # torch.distributed words its messages otherwise in each release
        for pattern, hint in _HINTS:
            if re.search(pattern, text, re.IGNORECASE | re.DOTALL):
                return RunError(hint)
    return None


@contextmanager
def diagnosed() -> Iterator[None]:
    """Around work that the environment can fail: what is recognised is raised as a `RunError`."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        raise explained(error) or error from error
