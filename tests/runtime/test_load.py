"""Field report 75: beside other jobs a run slows down about as its share of the machine does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gaeanet.runtime import load
from gaeanet.runtime.load import Sample


def stat(tmp_path: Path, busy: list[float]) -> Path:
    """A /proc/stat of cores that were busy for so many seconds."""
    tick = os.sysconf("SC_CLK_TCK")
    lines = ["cpu  9999999 0 0 0 0 0 0 0 0 0"]
    for core, seconds in enumerate(busy):
        each = round(seconds * tick) // 6
        lines.append(f"cpu{core} {each} {each} {each} 123456 123456 {each} {each} {each} 777 888")
    path = tmp_path / "stat"
    path.write_text("\n".join([*lines, "intr 1 2 3"]) + "\n")
    return path


def test_only_other_processes_on_the_usable_cores_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 2}, raising=False)
    clock, own = iter((10.0, 14.0)), iter((2.0, 5.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(time, "process_time", lambda: next(own))
    samples = []
    for busy in ([0.0, 6.0, 6.0, 0.0], [90.0, 12.0, 9.0, 90.0]):
        monkeypatch.setattr(load, "STAT", stat(tmp_path, busy))
        samples.append(Sample.now())
    first, second = samples
    assert first is not None
    assert second is not None
    assert first.others(second) == pytest.approx((6 + 3 - 3) / 4, abs=0.1)


def test_where_the_system_does_not_say_nothing_is_assumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "STAT", tmp_path / "nothing")
    assert Sample.now() is None


@pytest.mark.parametrize(
    ("others", "environment", "policy"),
    [
        (0.0, {}, None),
        (0.2, {}, None),
        (0.6, {}, "PASSIVE"),
        (2.0, {}, "PASSIVE"),
        (2.0, {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        (2.0, {"GOMP_SPINCOUNT": "100"}, None),
        (2.0, {"OMP_NUM_THREADS": "1"}, None),
    ],
)
def test_field_report_75_threads_wait_passively_where_others_are_at_work(
    monkeypatch: pytest.MonkeyPatch, others: float, environment: dict[str, str], policy: str | None
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "restored after the test")
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(load, "usable_cores", lambda: 2)
    monkeypatch.setattr(load, "_start", Sample(time.monotonic() - 1, 5.0, 1.0))
    monkeypatch.setattr(load, "_others", None)
    monkeypatch.setattr(Sample, "now", lambda: Sample(time.monotonic(), 5.0 + others + 0.5, 1.5))
    load.adapt()
    assert load.busy_elsewhere() == pytest.approx(others, abs=0.05)
    assert os.environ.get("OMP_WAIT_POLICY") == policy


@pytest.mark.skipif(sys.platform != "linux", reason="the system's own count of what cores do")
def test_field_report_75_a_command_notices_what_runs_beside_it() -> None:
    code = (
        "import json, os, sys\nfrom gaeanet.cli.main import main\nfrom gaeanet.runtime import load\n"
        "from gaeanet.runtime.imports import importing\nload.begin()\n"
        "with importing(torch=True):\n    pass\n"
        "print(json.dumps([load.busy_elsewhere(), os.environ.get('OMP_WAIT_POLICY')]))\n"
    )
    cores = load.usable_cores()
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP", "GOMP"))}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    others, policy = json.loads(done.stdout)
    assert others > load.BUSY * cores, done.stderr
    assert policy == (None if cores == 1 else "PASSIVE")
