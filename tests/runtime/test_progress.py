"""How far work has come: live on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from gaeanet.runtime.progress import LiveLine, WorkProgress, duration

ROOT = Path(__file__).parents[2]


def test_plain_lines_say_how_much_is_done_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("gaeanet.runtime.progress.time.monotonic", lambda: now[0])
    progress = WorkProgress(148_000_000_000)
    for now[0] in (5.0, 60.0, 65.0, 120.0):
        progress.add(1_000_000_000)
    assert capsys.readouterr().out.splitlines() == [
        "2.0 of 148.0 GB (1 %), 73 min left",
        "4.0 of 148.0 GB (3 %), 72 min left",
    ]
    again = WorkProgress(148_000_000_000)  # what an earlier attempt has written is no measure of speed
    again.add(100_000_000_000, earlier=True)
    now[0] += 60
    again.add(2_000_000_000)
    assert capsys.readouterr().out == "102.0 of 148.0 GB (69 %), 23 min left\n"
    images = WorkProgress(13_394, "images", 1)
    now[0] += 60
    images.add(9_469)
    assert capsys.readouterr().out == "9,469 of 13,394 images (71 %), 25 s left\n"


def test_without_a_terminal_there_is_no_live_line(capsys: pytest.CaptureFixture[str]) -> None:
    with LiveLine() as line:
        line.update("facts", description="x", done=1, total=2)
        line.log("[red]said :smile:[/red]")
    assert capsys.readouterr().out == "[red]said :smile:[/red]\n"
    with LiveLine(silent=True) as silent:
        silent.log("nothing")
    assert capsys.readouterr().out == ""


def test_on_a_terminal_the_line_is_live_and_names_are_text() -> None:
    code = """
from gaeanet.runtime.progress import LiveLine, WorkProgress
with WorkProgress(4, "images", 1) as progress:
    progress.add(3)
with LiveLine() as line:
    line.update("[bold]loss[/bold]", description="[generated images] epoch 1/2", done=1, total=2)
    line.log("stays [x]")
"""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.run([sys.executable, "-c", code], stdout=theirs, stderr=subprocess.PIPE, env=environment)
    os.close(theirs)
    said = os.read(ours, 100_000).decode()
    os.close(ours)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "3 of 4 images (75 %)" in said
    assert "[generated images] epoch 1/2" in said
    assert "[bold]loss[/bold]" in said
    assert "stays [x]" in said


def test_durations_are_in_the_unit_that_suits_them() -> None:
    assert [duration(seconds) for seconds in (0, 89, 90, 5280, 5400, 3600 * 47, 3600 * 60)] == [
        "0 s", "89 s", "2 min", "88 min", "1 h 30 min", "47 h 00 min", "2.5 days"
    ]  # fmt: skip
