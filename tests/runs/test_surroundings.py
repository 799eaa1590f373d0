"""A run survives its surroundings: signals, a lost display, another job, stalled reads, odd file systems."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from launch import together, wait_for
from tiny import Result, TinyRun, jpeg, read_log, same_but_for_speed, same_checkpoints

from gaeanet.artifacts.find import find
from gaeanet.data.sources.entries import read_image
from gaeanet.errors import RequestError
from gaeanet.kernels import build
from gaeanet.runs.lock import LOCK, owned
from gaeanet.runtime import host
from gaeanet.runtime.output import LastingOutput
from gaeanet.runtime.processes import STOP_SIGNALS, StoppedWaiting, StopRequest
from gaeanet.training.display import Display
from gaeanet.training.step import step

Run = Callable[..., Result]
Write = Callable[..., Path]


@pytest.fixture
def signalled(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sends signals to the run in its step after so many batches."""

    def at(batches: int, *numbers: int) -> None:
        def signalling(learner: Any, *arguments: Any) -> None:
            step(learner, *arguments)
            if learner.batches == batches:
                for number in numbers:
                    os.kill(os.getpid(), number)

        monkeypatch.setattr("gaeanet.training.recorded.step", signalling)

    return at


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_field_report_62_every_signal_that_asks_for_a_stop_saves_and_exits_75(
    gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path, signalled: Callable[..., None], number: int
) -> None:
    signalled(2, number)
    result = gaeanet("train", experiment_file(), "--data", t3)
    assert result.code == 75
    assert f"stopped by {signal.Signals(number).name} after step 2, state saved in runs/tiny" in result.err
    assert (tmp_path / "runs/tiny/checkpoints/latest").resolve().name == "step-000000002"


def test_field_report_62_a_closed_terminal_hangs_up_as_often_as_it_likes(
    gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path, signalled: Callable[..., None]
) -> None:
    signalled(2, signal.SIGHUP, signal.SIGHUP, signal.SIGHUP)
    config = experiment_file()
    assert gaeanet("train", config, "--data", t3, "--run-dir", "broken").code == 75
    signalled(99)
    assert gaeanet("train", config, "--data", t3, "--run-dir", "broken", "--resume").code == 0
    assert gaeanet("train", config, "--data", t3, "--run-dir", "straight").code == 0
    same_checkpoints(tmp_path / "straight", tmp_path / "broken")
    assert same_but_for_speed(read_log(tmp_path / "straight"), read_log(tmp_path / "broken"))


@pytest.fixture
def terminated_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Sends this process SIGTERM three seconds after the display has shown the beginning of a stage."""
    timers: list[threading.Timer] = []

    def stage(name: str) -> None:
        shown = getattr(Display, name)

        def begun(self: Display, *arguments: Any) -> None:
            shown(self, *arguments)
            timers.append(threading.Timer(3.0, lambda: os.kill(os.getpid(), signal.SIGTERM)))
            timers[-1].start()

        monkeypatch.setattr(Display, name, begun)

    yield stage
    for timer in timers:
        timer.cancel()


@pytest.mark.parametrize("workers", [0, 1])
def test_field_report_68_a_stop_is_followed_while_a_read_hangs(
    gaeanet: Run,
    experiment_file: Write,
    t3: Path,
    tmp_path: Path,
    terminated_in: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
) -> None:
    os.mkfifo(t3 / "train" / "n00000000" / "stalled.jpg")  # as a mount that does not answer
    monkeypatch.setattr("gaeanet.data.loading.reads.PATIENCE", 0.5)
    config = experiment_file(global_batch_size=19, data={"num_workers_train": workers})
    terminated_in("begin")
    result = gaeanet("train", config, "--data", t3)
    assert result.code == 75
    stalled = t3 / "train" / "n00000000" / "stalled.jpg"
    assert f"still reading {stalled} after 1 s: does its file system answer?" in result.out
    assert result.out.count("still reading") == 1
    assert f"gave up reading {stalled}" in result.out
    assert "stopped by SIGTERM after step 0" in result.err
    assert not multiprocessing.active_children()
    assert (tmp_path / "runs/tiny/checkpoints/latest").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_field_report_68_a_stop_is_followed_in_a_validation_that_hangs(
    gaeanet: Run,
    experiment_file: Write,
    t3: Path,
    tmp_path: Path,
    terminated_in: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
) -> None:
    stalled = t3 / "val" / "n00000000" / "stalled.jpg"
    os.mkfifo(stalled)
    config = experiment_file(epochs=1, data={"num_workers_val": workers})
    terminated_in("validating")
    stopped = gaeanet("train", config, "--data", t3, "--run-dir", "run")
    assert stopped.code == 75
    assert f"gave up reading {stalled}" in stopped.out
    assert (tmp_path / "run/checkpoints/latest").resolve().name == "step-000000004"
    stalled.unlink()
    stalled.write_bytes(jpeg((9, 9, 9), (40, 40)))  # the mount answers again
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert gaeanet("train", config, "--data", t3, "--run-dir", "run", "--resume").code == 0
    assert [line["epoch"] for line in read_log(tmp_path / "run", "validation")] == [1.0]


def test_field_report_68_a_stop_is_followed_while_the_page_of_the_run_reads_its_images(
    gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by a storm: trained to its end, the run waited for an image that it shows, deaf to SIGTERM."""
    os.mkfifo(tmp_path / "stalled.jpg")

    def stalled(*_: object) -> None:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        read_image(tmp_path / "stalled.jpg")

    monkeypatch.setattr("gaeanet.report.gather.samples", stalled)
    monkeypatch.setattr("gaeanet.training.loop.PATIENCE", 0.1)
    monkeypatch.setattr("gaeanet.training.loop._GRACE_OF_PAGE", 0.1)
    result = gaeanet("train", experiment_file(epochs=1), "--data", t3, "--run-dir", "run")
    assert result.code == 0
    assert "still writing report.html after 0 s: does the file system of the images answer?" in result.out
    assert "report.html is not written: gave up reading its images" in result.out
    assert "checkpoints/best" in result.out.splitlines()[-1]
    assert "report.html" not in result.out.splitlines()[-1]


def test_field_report_68_one_of_several_processes_gives_a_read_some_time_after_a_stop() -> None:
    handler = signal.getsignal(signal.SIGALRM)
    signal.setitimer(signal.ITIMER_REAL, 1000.0)
    with StopRequest() as stop:
        with stop.waiting(5.0):  # what is awaited comes: the stop waits for the agreement after the step
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == "SIGTERM"
        began = time.monotonic()
        with pytest.raises(StoppedWaiting), stop.waiting(0.3):
            time.sleep(30)
        assert 0.2 < time.monotonic() - began < 20
    assert signal.getsignal(signal.SIGALRM) is handler
    assert 900.0 < signal.setitimer(signal.ITIMER_REAL, 0.0)[0] <= 1000.0  # somebody else's timer goes on


def test_field_report_68_a_stop_is_not_lost_in_a_destructor() -> None:
    """What is raised there is dropped by Python, with a traceback on standard error, which pytest makes an error."""

    class Slow:
        def __del__(self) -> None:
            time.sleep(0.4)

    began = time.monotonic()
    with StopRequest() as stop, pytest.raises(StoppedWaiting), stop.waiting():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGTERM)
        while time.monotonic() < began + 1.0:
            Slow()
        time.sleep(30)
    assert 1.0 < time.monotonic() - began < 20


@pytest.mark.slow
def test_field_report_68_several_processes_end_where_one_hangs_in_a_read(
    experiment_file: Write, t3: Path, tmp_path: Path
) -> None:
    stalled = t3 / "train" / "n00000000" / "stalled.jpg"
    os.mkfifo(stalled)
    config, output = experiment_file(global_batch_size=19), tmp_path / "out"
    processes = together(2, ["train", config, "--data", t3, "--run-dir", tmp_path / "run"], output)
    wait_for(lambda: (tmp_path / "run/checkpoints/latest").exists(), processes[0])
    time.sleep(3)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        process.join(60)
    said = "".join(output.with_name(f"out-{rank}").read_text() for rank in range(2))
    assert sorted(process.exitcode or 0 for process in processes) == [1, 75], said
    assert "stopped by SIGTERM after step 0 without saving" in said
    assert "lost the other processes of this run" in said
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize("target", ["| head -1", "> /dev/full", ">&-"])
def test_field_report_63_losing_the_display_never_loses_the_run(
    experiment_file: Write, t3: Path, tmp_path: Path, target: str
) -> None:
    command = f"{sys.executable} -m gaeanet.cli train {experiment_file()} --data {t3} --run-dir run"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} {target}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == 0, done.stderr
    assert [line["epoch"] for line in read_log(tmp_path / "run", "validation")] == [1.0, 2.0]


def test_field_report_63_output_that_is_gone_is_silent() -> None:
    class Gone:
        tries = 0

        def write(self, text: str) -> int:
            Gone.tries += 1
            raise BrokenPipeError

        def flush(self) -> None:
            raise OSError(errno.EIO, "gone")

        def fileno(self) -> int:
            raise OSError

        encoding = "utf-8"

    output = LastingOutput(Gone())  # type: ignore[arg-type]
    assert output.write("text") == 4
    output.flush()
    assert output.encoding == "utf-8"


def test_field_report_67_a_run_directory_has_one_owner(
    gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path
) -> None:
    config, run = experiment_file(epochs=1), tmp_path / "run"
    run.mkdir()
    with owned(run):
        for arguments in ([], ["--resume"]):
            refused = gaeanet("train", config, "--data", t3, "--run-dir", run, *arguments)
            assert refused.code == 2
            assert f"in use by process {os.getpid()} on " in refused.err
            assert refused.err.count("\n") == 1
    assert not (run / "metrics.jsonl").exists()
    assert gaeanet("train", config, "--data", t3, "--run-dir", run).code == 0


def test_field_report_67_a_lock_of_a_dead_process_does_not_stand_in_the_way(tmp_path: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    (tmp_path / LOCK).write_text(json.dumps({"host": "here", "pid": int(dead.stdout), "since": "yesterday"}))
    with owned(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    (tmp_path / LOCK).write_text("not JSON at all")
    with owned(tmp_path), pytest.raises(RequestError, match="in use by"), owned(tmp_path):
        pass


def test_field_report_69_the_best_checkpoint_is_known_without_the_names_beside_it(
    gaeanet: Run, tiny_run: TinyRun, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_run.run, copy, ignore=shutil.ignore_patterns("latest", "best"))
    assert find(copy).path.name == find(tiny_run.run).path.name
    assert find(copy / "checkpoints").path.name == find(tiny_run.run).path.name


def test_field_report_70_a_file_system_without_links(
    gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(Path, "symlink_to", refused)
    config = experiment_file()
    assert gaeanet("train", config, "--data", t3, "--run-dir", "run").code == 0
    assert not (tmp_path / "run/checkpoints/latest").exists()
    assert gaeanet("evaluate", "run", "--data", t3).code == 0
    assert "nothing to do" in gaeanet("train", config, "--data", t3, "--run-dir", "run", "--resume").out
    result = gaeanet("train", experiment_file(), "--data", t3, "--run-dir", "more", "--continue-from", "run")
    assert result.code == 0, result.err


def refusing(number: int) -> Callable[..., Any]:
    def refused(self: Path, *_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return refused


@pytest.mark.parametrize(
    ("what", "method", "replacement"),
    [
        ("rename a directory there, as a checkpoint that is complete: operation not supported", "rename", refusing(95)),
        (
            "rename a directory there, as a checkpoint that is complete: invalid cross-device link",
            "rename",
            refusing(18),
        ),
        ("replace a file there: function not implemented", "replace", refusing(38)),
        ("append to a file there, as to the log: what was written is not what is there", "read_bytes", lambda _: b"2"),
        ("write the run there: no space left on device", "write_bytes", refusing(28)),
    ],
)
def test_field_report_70_what_a_file_system_cannot_do_is_said_at_the_start(
    gaeanet: Run,
    experiment_file: Write,
    t3: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    method: str,
    replacement: Any,
) -> None:
    monkeypatch.setattr(Path, method, replacement)
    refused = gaeanet("train", experiment_file(), "--data", t3, "--run-dir", "run")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err == f"gaeanet: run: cannot {what}; name another with --run-dir\n"
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_field_report_70_a_file_system_that_cannot_wait_for_its_disk(
    gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refused(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refused)
    assert gaeanet("train", experiment_file(epochs=1), "--data", t3, "--run-dir", "run").code == 0


def test_field_report_61_a_temporary_directory_too_long_for_sockets(
    gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 130)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setattr(tempfile, "tempdir", None)
    config = experiment_file(epochs=1, data={"num_workers_train": 1, "num_workers_val": 1})
    assert gaeanet("train", config, "--data", t3).code == 0
    assert len(tempfile.gettempdir()) <= host.LONGEST_TEMPORARY
    assert len(os.environ["TMPDIR"]) <= host.LONGEST_TEMPORARY
    assert not list(long.iterdir())


def test_field_report_84_without_a_home_kernels_have_one_place_of_this_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    first = build.cache_directory()
    assert first == build.cache_directory() == tmp_path / f"gaeanet-{os.getuid()}"
    assert first.stat().st_mode & 0o077 == 0
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [first.name]
    first.chmod(0o777)  # somebody else could put code there
    with pytest.raises(build.Unavailable, match="not this user's alone"):
        build.cache_directory()
