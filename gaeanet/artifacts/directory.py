"""The directory that a run leaves behind: its names, and reading its log. Nothing here needs torch."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

from gaeanet.errors import RequestError, reason
from gaeanet.runtime.files import exists, is_file, read_text
from gaeanet.runtime.names import inside, shown

METRICS = "metrics.jsonl"
CONFIG = "config.yaml"
CURVE = "curve.png"
REPORT = "report.html"
GENOTYPE = "genotype.json"
"""What a search has found."""
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
MANIFEST = "manifest.json"
"""Of each checkpoint."""

_LONGEST_LOG = 1_000_000_000
"""Bytes; that of a search of a thousand epochs has 16 million."""


def run_dir_of(name: str) -> Path:
    """Where the run of an experiment of this name is unless the command line names another: `runs/<name>`.

    Raises:
        RequestError: The name leads out of runs/.
    """
    try:
        return inside(Path("runs"), name)
    except RequestError:
        raise RequestError(
            f"name: {shown(name)!r} leads out of runs/: change the experiment's name, or name with --run-dir where the "
            "run goes"
        ) from None


def holds_run(run_dir: Path) -> bool:
    """Whether a run has left its log or checkpoints in this directory."""
    return exists(run_dir / METRICS) or exists(run_dir / CHECKPOINTS)


def check_run_dir(run_dir: Path, resume: bool) -> None:
    """Raises `RequestError` where a run could not be kept in `run_dir`, or another one is there already."""
    if holds_run(run_dir) and not resume:
        raise RequestError(f"{run_dir} already holds a run: continue it with --resume, or name another with --run-dir")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(run_dir, "write the run there", error) from None
    _probe(run_dir)


def _probe(run_dir: Path) -> None:
    """Does once what a run will do with its files: some network and object-store file systems cannot.

    Links are not among it: a run does without them.

    Raises:
        RequestError: Something of it does not work; the message says what, and why.
    """
    what, probe = "write the run there", None
    try:
        probe = Path(tempfile.mkdtemp(prefix=".probe-", dir=run_dir))
        first, second = probe / "first", probe / "second"
        first.mkdir()
        (first / "file").write_bytes(b"1")
        what = "append to a file there, as to the log"
        with open(first / "file", "ab") as file:
            file.write(b"2")
        if (first / "file").read_bytes() != b"12":
            raise OSError(0, "what was written is not what is there")
        what = "rename a directory there, as a checkpoint that is complete"
        first.rename(second)
        what = "replace a file there"
        (second / "draft").write_bytes(b"3")
        (second / "draft").replace(second / "file")
    except OSError as error:
        raise _refused(run_dir, what, error) from None
    finally:
        if probe is not None:
            shutil.rmtree(probe, ignore_errors=True)


def _refused(run_dir: Path, what: str, error: OSError) -> RequestError:
    return RequestError(f"{run_dir}: cannot {what}: {reason(error)}; name another with --run-dir")


def checkpoint_to_continue(path: Path) -> Path:
    """The checkpoint directory that `path` is, or the newest of the run that `path` is; `RequestError` if neither."""
    newest = sorted((path / CHECKPOINTS).glob("step-*"))[-1:]  # where there are no links
    for candidate in (path, path / CHECKPOINTS / "latest", *newest):
        if is_file(candidate / MANIFEST):
            return candidate.resolve()
    raise RequestError(f"--continue-from {path}: neither a checkpoint (no manifest.json) nor a run with one")


def log_beside(checkpoint: Path) -> Path | None:
    """The log of a checkpoint's run, where it is known: in it (it comes from a cluster), or in its run directory."""
    candidates = [checkpoint / METRICS]
    if checkpoint.parent.name == CHECKPOINTS:
        candidates.append(checkpoint.parent.parent / METRICS)
    return next((candidate for candidate in candidates if is_file(candidate)), None)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line that a killed process left half-written is dropped.

    Numbers that were not finite, which JSON writes as null, are NaN.

    Raises:
        RequestError: It cannot be read, or another line is not what a run writes.
    """
    try:
        lines = read_text(path, _LONGEST_LOG).split("\n")
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        why = "not a text file" if isinstance(error, UnicodeDecodeError) else reason(error)
        raise RequestError(f"{path}: cannot be read: {why}") from None
    while lines and not lines[-1].strip():
        lines.pop()
    parsed = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        if _is_line(values):
            parsed.append({key: math.nan if value is None else value for key, value in values.items()})
        elif number < len(lines):
            raise RequestError(f"{path}, line {number}: not JSON that a run writes; is this a run's log?")
    return parsed


def _is_line(values: Any) -> bool:
    """Whether this is a line that a run writes, as far as its readers (resume, curves, report) rely on it."""
    return (
        isinstance(values, dict)
        and isinstance(values.get("kind"), str)
        and type(values.get("batches")) is int
        and isinstance(values.get("data", ""), str)
        and values.get("epoch") is not None
        and all(_is_number(value) for key, value in values.items() if key in _NUMBERS)
        and all(_is_drawable(value) for key, value in values.items() if key.endswith(("epoch", "loss", "accuracy")))
    )


def _is_number(value: Any) -> bool:
    """A number, or one that was not finite; whole numbers are counts."""
    return value is None or type(value) is float or (type(value) is int and abs(value) < 2**63)


def _is_drawable(value: Any) -> bool:
    """A number of a size that a chart can show, or one that was not finite."""
    return _is_number(value) and (value is None or not math.isfinite(value) or abs(value) < 1e100)


_NUMBERS = frozenset({"batches", "images", "count", "minival", "learning_rate", "images_per_second"})


def read_run(run_dir: Path) -> list[dict[str, Any]]:
    """The log of the run in `run_dir`; raises `RequestError` where there is none."""
    if not is_file(run_dir / METRICS):
        raise RequestError(f"{run_dir}: no run there ({METRICS} is missing)")
    return read_log(run_dir / METRICS)
