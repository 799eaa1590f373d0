"""The benchmarks of sources run; what they say is another matter."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def run(*arguments: object) -> str:
    command = [sys.executable, str(BENCHMARKS / str(arguments[0])), *map(str, arguments[1:])]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_requests_in_flight(tmp_path: Path) -> None:
    out = run("requests_in_flight.py", "--objects", 600, "--latency", 0.005, "--seconds", 0.3)
    speeds = [float(match) for match in re.findall(r": +(\d+) images/s", out)]
    assert len(speeds) == 8
    assert max(speeds) > 2 * speeds[0]
    assert out.count(" 0 retries") == 8


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "shards", "bucket"])
def test_scale(kind: str, tmp_path: Path) -> None:
    out = run("scale.py", kind, "--train", 2000, "--val", 1000, "--small", 1000, "--workers", 1, "--dir", tmp_path)
    assert len(re.findall(rf"{kind} .*: start-up .*first batch of 64 .*memory PSS / USS: main \d+ / \d+ MB", out)) == 2


@pytest.mark.slow
def test_speed_beside_the_plain_way() -> None:
    """The gate that both ways agree is passed, and every part prints its rows."""
    tiny = ["--channels", 8, "--layers", 3, "--size", 32, "--batch", 4, "--rounds", 1, "--steps", 1]
    rows = [line for line in run("speed.py", *tiny).splitlines() if "(" in line and line.startswith("| ")]
    assert len(rows) == 8
