"""What a command leaves behind: processes, shared memory. Processes are known by a mark in their environment."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

_MARK = "GAEANET_TEST_COMMAND"


def mark() -> dict[str, str]:
    """An environment variable that all processes which a command starts inherit, in whatever session they are."""
    return {_MARK: uuid.uuid4().hex}


def members(marked: dict[str, str], *others: str) -> list[int]:
    """Living processes with the mark, and with each of the other `NAME=value` entries, in their environment."""
    wanted = {f"{_MARK}={marked[_MARK]}", *others}
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                environment = set((entry / "environ").read_bytes().decode(errors="replace").split("\0"))
            except OSError:
                continue
            if state != "Z" and wanted <= environment:
                found.append(int(entry.name))
    return sorted(found)


def shared_memory() -> int:
    """How many segments there are."""
    return len(list(Path("/dev/shm").iterdir()))


def assert_nothing_left(marked: dict[str, str], segments: int) -> None:
    """Within ten seconds no process with the mark is left, and no more shared memory than there was."""
    end = time.monotonic() + 10
    while members(marked):
        assert time.monotonic() < end, members(marked)
        time.sleep(0.1)
    assert_shared_memory_left(segments)


def assert_shared_memory_left(segments: int) -> None:
    """Within ten seconds there are no more segments than that: tests beside this one have some for a moment."""
    end = time.monotonic() + 10
    while shared_memory() > segments:
        assert time.monotonic() < end, "shared memory is left behind"
        time.sleep(0.1)
