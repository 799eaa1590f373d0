"""What a command leaves behind: processes of its session, shared memory."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any


def members(process: subprocess.Popen[Any]) -> list[int]:
    """Living processes of the session that a command was started in."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == process.pid and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def assert_nothing_left(process: subprocess.Popen[Any], shared_memory: int) -> None:
    end = time.monotonic() + 10
    while members(process):
        assert time.monotonic() < end, members(process)
        time.sleep(0.1)
    assert len(list(Path("/dev/shm").iterdir())) <= shared_memory
