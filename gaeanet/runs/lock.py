"""One owner of a run directory at a time. Needs no torch."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gaeanet.errors import RequestError

LOCK = ".lock"
_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
_PATIENCE = 10.0
"""Seconds to wait for the workers of a killed process to end: they hold its lock as long."""


@contextlib.contextmanager
def owned(run_dir: Path) -> Iterator[None]:
    """Owns a run directory, which must exist; the system lets go of it however the process ends, on NFS too.

    Where a file system has no locks, nothing is locked.

    Raises:
        RequestError: Another process owns it; the message says which, on what host, and since when.
    """
    try:
        file = open(run_dir / LOCK, "a+")  # noqa: SIM115 (closed below)
    except OSError:  # not writable: the next write there reports it
        yield
        return
    with file:
        end = time.monotonic() + _PATIENCE
        while not _locks(file):
            owner = _owner(file)
            if not _is_dead(owner) or time.monotonic() > end:
                who = (
                    f"process {owner.get('pid')} on {owner.get('host')} since {owner.get('since')}"
                    if owner
                    else "another"
                )
                raise RequestError(
                    f"{run_dir}: in use by {who}: wait for its end, or name another directory with --run-dir"
                )
            time.sleep(0.1)
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with contextlib.suppress(OSError):
            file.truncate(0)
            file.write(json.dumps(owner))
            file.flush()
        yield


def _locks(file: Any) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _UNSUPPORTED
    return True


def _owner(file: Any) -> dict[str, Any]:
    try:
        file.seek(0)
        owner = json.load(file)
        return owner if isinstance(owner, dict) else {}
    except (OSError, ValueError):
        return {}


def _is_dead(owner: dict[str, Any]) -> bool:
    """Whether the owner was a process of this host that has ended; its workers may not have."""
    if owner.get("host") != socket.gethostname() or not isinstance(owner.get("pid"), int):
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    return False
