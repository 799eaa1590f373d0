"""Runs of one and of several processes, started and waited for."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lives
from lives import Life


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def together(processes: int, arguments: list[Any], output: Path, homes: list[Path] | None = None) -> list[Life]:
    """`gaeanet ARGUMENTS` in so many processes that find each other as torchrun's do, without its start.

    With `homes`, each process has a working directory of its own, as on machines that share none.
    """
    port = str(free_port())
    return [
        lives.start(
            [str(word) for word in arguments],
            output.with_name(f"{output.name}-{rank}"),
            {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            },
            homes[rank] if homes else None,
        )
        for rank in range(processes)
    ]


def joined(processes: list[Life], output: Path, code: int = 0, timeout: float = 150) -> str:
    """What the first process said, when all have ended."""
    for process in processes:
        process.join(timeout)
    said = output.with_name(f"{output.name}-0").read_text()
    assert [process.exitcode for process in processes] == [code] * len(processes), said[-3000:]
    return said


def alone(arguments: list[Any], output: Path) -> Life:
    return lives.start([str(word) for word in arguments], output)


def wait_for(condition: Callable[[], Any], process: Any, timeout: float = 90) -> None:
    end = time.monotonic() + timeout
    while not condition():
        ended = not process.is_alive() if isinstance(process, Life) else process.poll() is not None
        assert not ended, "ended too early"
        assert time.monotonic() < end, "took too long"
        time.sleep(0.005)


def logged(run_dir: Path) -> int:
    """Batches that the log speaks of."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    complete = [line for line in lines if line.endswith("}")]
    return json.loads(complete[-1])["batches"] if complete else 0
