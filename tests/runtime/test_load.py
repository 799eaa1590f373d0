"""What keeps the machine's cores busy beside this process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gaeanet.runtime import load
from gaeanet.runtime.host import usable_cores
from gaeanet.runtime.load import Sample, busy_elsewhere


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
    monkeypatch.setattr(load, "_children", lambda: 7.0)
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
    assert busy_elsewhere(None) is None


@pytest.mark.skipif(sys.platform != "linux", reason="the system's own count of what processes do")
def test_what_children_do_counts_as_this_process_s_own() -> None:
    def own() -> float:
        sample = Sample.now()
        assert sample is not None
        return sample.own

    before = own()
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    end = time.monotonic() + 60
    while own() < before + 0.5 and time.monotonic() < end:
        time.sleep(0.05)
    child.kill()
    running = own()
    child.wait()
    assert before + 0.5 <= running <= own()


@pytest.mark.skipif(sys.platform != "linux", reason="the system's own count of what cores do")
def test_what_runs_beside_a_command_is_noticed() -> None:
    code = (
        "import os\nfrom gaeanet.runtime.load import Sample, busy_elsewhere\nbefore = Sample.now()\n"
        "import torch\nprint(busy_elsewhere(before))\n"
    )
    cores = usable_cores()
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    assert float(done.stdout) > cores / 4, done.stderr
