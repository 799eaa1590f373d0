"""Field report 83: what may not be entered or read is one line with the path and whose it is."""

from __future__ import annotations

import concurrent.futures.process
import errno
import os
import pwd
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny import Result, TinyRun

import gaeanet.data.prepare.prepare
import gaeanet.evaluation.score
import gaeanet.report.gather
from gaeanet.errors import RequestError, reason
from gaeanet.runtime.files import entries_of, exists, is_directory, is_file, read_text

Run = Callable[..., Result]

NOBODY = 65534
IMPORTED = (concurrent.futures.process, gaeanet.data.prepare.prepare, gaeanet.evaluation.score, gaeanet.report.gather)
"""By root, who may read the packages wherever they are."""


@contextmanager
def as_nobody() -> Iterator[None]:
    """Gives up root's right to read everything, where these tests have it."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(was)


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that everybody may enter, which pytest's own are not."""
    path = Path(tempfile.mkdtemp(prefix="gaeanet-test-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    for folder in [path, *path.rglob("*")]:
        if folder.is_dir():
            folder.chmod(0o755)
    shutil.rmtree(path)


@pytest.mark.parametrize("ask", [exists, is_file, is_directory])
def test_field_report_83_what_may_not_be_looked_at_is_not_taken_for_missing(
    open_place: Path, ask: Callable[[Path], bool]
) -> None:
    closed = open_place / "closed"
    closed.mkdir()
    (closed / "file").touch()
    closed.chmod(0)
    owner = pwd.getpwuid(closed.stat().st_uid).pw_name
    with as_nobody(), pytest.raises(RequestError) as refused:
        ask(closed / "file")
    assert str(refused.value) == (
        f"{closed}/file: cannot be read: permission denied ({closed} belongs to {owner}, mode 0)"
    )


@pytest.mark.parametrize("ask", [exists, is_file, is_directory])
@pytest.mark.parametrize("name", ["nothing", "file/below", "loop", "x" * 300, "a\0b", "dangling"])
def test_what_is_not_there_is_missing(tmp_path: Path, ask: Callable[[Path], bool], name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert ask(tmp_path / name) is False


def test_field_report_83_a_file_or_directory_that_may_not_be_read_says_whose_it_is(open_place: Path) -> None:
    (open_place / "file").write_text("text")
    (open_place / "file").chmod(0o600)
    (open_place / "folder").mkdir(0o700)
    with as_nobody():
        with pytest.raises(PermissionError) as refused:
            read_text(open_place / "file")
        assert "permission denied (it belongs to " in reason(refused.value)
        assert reason(refused.value).endswith(", mode 600)")
        with pytest.raises(RequestError, match=r"cannot be listed: permission denied \(it belongs to .*, mode 700\)"):
            entries_of(open_place / "folder")


def test_a_reason_without_a_file_is_the_reason_alone() -> None:
    assert reason(PermissionError(errno.EACCES, "Permission denied")) == "permission denied"
    assert reason(PermissionError(errno.EACCES, "Permission denied", 7)) == "permission denied"


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "EXPERIMENT", "--data", "CLOSED/data"],
        ["train", "EXPERIMENT", "--data", "DATA", "--run-dir", "CLOSED/run", "--resume"],
        ["train", "EXPERIMENT", "--data", "DATA", "--run-dir", "new", "--init", "CLOSED/run"],
        ["train", "EXPERIMENT", "--data", "DATA", "--run-dir", "new", "--continue-from", "CLOSED/run"],
        ["train", "CLOSED/tiny.yaml"],
        ["train", "EXPERIMENT", "--set", "hyperparameters.genotype=CLOSED/cell.json"],
        ["evaluate", "CLOSED/run"],
        ["evaluate", "RUN", "--data", "CLOSED/data"],
        ["evaluate", "RUN", "--data", "DATA", "--compare", "CLOSED/run"],
        ["predict", "CLOSED/run", "x.jpg"],
        ["predict", "RUN", "CLOSED/x.jpg"],
        ["plot", "CLOSED/run"],
        ["report", "CLOSED/run"],
        ["describe", "CLOSED/run"],
        ["describe", "CLOSED/cell.json"],
        ["export", "CLOSED/run", "new"],
        ["export", "RUN", "CLOSED/new"],
        ["prepare", "CLOSED/data", "new"],
        ["prepare", "CLOSED/data", "--verify"],
        ["prepare", "DATA", "CLOSED/new"],
        ["import", "CLOSED/weights.pt", "new"],
    ],
)
def test_field_report_83_a_closed_directory_is_one_line_in_every_command(
    gaeanet: Run,
    open_place: Path,
    tiny_run: TinyRun,
    experiment_file: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
) -> None:
    places: dict[str, Any] = {"EXPERIMENT": open_place / "tiny.yaml", "DATA": open_place / "data"}
    places |= {"RUN": open_place / "run", "CLOSED": open_place / "closed"}
    shutil.copytree(tiny_run.run, open_place / "run", symlinks=True)
    shutil.copytree(tiny_run.data, open_place / "data")
    shutil.copy(experiment_file(), open_place / "tiny.yaml")
    (open_place / "closed").mkdir()
    (open_place / "closed").chmod(0)
    for path in [open_place, *open_place.rglob("*")]:
        if os.geteuid() == 0 and path.name != "closed":
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    monkeypatch.chdir(open_place)
    words = arguments
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    with as_nobody():
        result = gaeanet(*words)
    assert result.code in (1, 2), result.out
    assert result.err.count("\n") == 1, result.err
    assert "ermission denied" in result.err
    assert f"closed belongs to {pwd.getpwuid(os.geteuid()).pw_name}, mode 0" in result.err
