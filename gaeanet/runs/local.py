"""The execution context of a run: its processes and its directory.

The training loop sees its environment through `LocalContext` alone; on a cluster, `DeterminedContext`
(`determined.py`) takes its place.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from gaeanet.artifacts import checkpoint
from gaeanet.artifacts.directory import CHECKPOINTS, CONFIG, CURVE, GENOTYPE, METRICS, REPORT, log_beside, read_log
from gaeanet.config.experiment import Experiment
from gaeanet.errors import RequestError, RunError, Stopped
from gaeanet.runs.mirror import Mirror
from gaeanet.runtime.files import replace_text
from gaeanet.runtime.processes import Processes
from gaeanet.runtime.strict_json import dumps

Checkpoint = tuple[Path, dict[str, dict[str, Tensor]], checkpoint.State]


class LocalContext:
    """The execution context of processes on one machine or on several, started by torchrun or `srun`.

    Attributes:
        run_dir: The run's directory.
        processes: The processes of the run; only the first one writes.

    Args:
        mirror: The bucket to which the first process copies checkpoints and log.
        start: A checkpoint to continue from as long as the run has none of its own.
    """

    def __init__(self, run_dir: Path, mirror: Mirror | None = None, start: Path | None = None) -> None:
        self.run_dir = run_dir
        self._mirror = mirror
        self.processes = Processes()
        self._start = start

    def __enter__(self) -> LocalContext:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.processes.leave()

    @property
    def metrics_path(self) -> Path:
        return self.run_dir / METRICS

    @property
    def checkpoints(self) -> Path:
        return self.run_dir / CHECKPOINTS

    def begin(self, experiment: Experiment, batches: int) -> None:
        """Writes the resolved experiment file, and truncates the log to the first `batches` steps."""
        if not self.processes.is_first:
            return
        self.run_dir.mkdir(parents=True, exist_ok=True)
        _write(self.run_dir / CONFIG, experiment.to_yaml())
        lines = [line for line in read_log(self.metrics_path) if line["batches"] <= batches]
        _write(self.metrics_path, "".join(dumps(line) + "\n" for line in lines))

    def report(self, line: dict[str, Any]) -> None:
        """Appends one line to the log of record."""
        if self.processes.is_first:
            with open(self.metrics_path, "a", encoding="utf-8") as log:
                log.write(dumps(line) + "\n")

    def save(
        self,
        step: int,
        tensors: dict[str, dict[str, Tensor]],
        state: checkpoint.State,
        *,
        best: int | None,
        keep: set[int],
        keep_latest: int,
        note: Callable[[str], None],
    ) -> None:
        """Saves a checkpoint on the first process; the others wait until it is there.

        Args:
            step, tensors, state: See `checkpoint.save`.
            best: The step that the link `best` is to point to.
            keep: Steps whose checkpoints must stay.
            keep_latest: How many of the newest stay beside them.
            note: Receives a message if a copy to the bucket failed; the next one is tried all the same.

        Raises:
            RunError: On every process, where the first one could not write.
        """
        failure = None
        if self.processes.is_first:
            if self._mirror and (problem := self._mirror.wait()):
                note(f"the last copy to the bucket failed: {problem}; the checkpoint itself is intact")
            try:
                path = checkpoint.save(self.checkpoints, step, tensors, state)
                checkpoint.point(self.checkpoints, "latest", path)
                # The best may have been of the run that this one continues.
                if best is not None and (target := path.with_name(checkpoint.name_of(best))).exists():
                    checkpoint.point(self.checkpoints, "best", target)
                checkpoint.prune(self.checkpoints, keep_latest, keep)
                if self._mirror:
                    names = [entry.name for entry in checkpoint.checkpoints(self.checkpoints)]
                    self._mirror.copy(path, self.metrics_path, names)
            except RunError as error:
                failure = str(error)
        self._raise_on_all(failure)

    def finish(self) -> None:
        """Waits for the last copy to the bucket; raises `RunError` on every process where it failed."""
        problem = self._mirror.wait() if self._mirror else None
        self._raise_on_all(problem and f"everything is in {self.run_dir}, but its mirror is incomplete: {problem}")

    def latest(self, note: Callable[[str], None]) -> Checkpoint | None:
        """The newest intact checkpoint, loaded and verified; `note` receives a message for each damaged one skipped.

        The first process reads it and hands it to the others: machines need not share the run directory, and what one
        has left there from another run is never read.

        Raises:
            RunError: The first process cannot read the mirror.
            RequestError: The first process cannot read the checkpoint to continue from.
        """
        newest: Checkpoint | None = None
        failure = None
        if self.processes.is_first:
            try:
                self._fetch(note)
            except RunError as error:
                failure = str(error)
        self._raise_on_all(failure)
        if self.processes.is_first:
            for path in reversed(checkpoint.checkpoints(self.checkpoints)):
                try:
                    newest = path, *checkpoint.load(path)
                    break
                except RequestError as error:
                    note(f"skipped a damaged checkpoint: {error}")
            if newest is None and self._start is not None:
                newest = self._start, *checkpoint.load(self._start)
        newest = self.processes.from_first(newest)
        if newest is not None and newest[0] == self._start:
            self._restore_log(newest[0])
            note(f"resumes from {newest[0]}")
        return newest

    def _raise_on_all(self, failure: str | None) -> None:
        """Raises `RunError` on every process where the first one has failed."""
        if failure := self.processes.from_first(failure):
            raise RunError(failure)

    def _fetch(self, note: Callable[[str], None]) -> None:
        if self._mirror and (names := self._mirror.fetch(self.run_dir)):
            note(f"downloaded {', '.join(names)} from {self._mirror.location}")

    def asked_to_stop(self) -> bool:
        """Whether this process has been asked to stop other than by a signal."""
        return False

    def stopped(self, step: int, signal: str) -> Stopped:
        """The exception that ends a stopped run, once it is saved; `signal` names what stopped it."""
        return Stopped(f"stopped by {signal} after step {step}, state saved in {self.run_dir}: run again with --resume")

    def describe_outputs(self) -> str:
        """A message that says where the run's outputs are."""
        names = (GENOTYPE, METRICS, CURVE, REPORT, f"{CHECKPOINTS}/best", f"{CHECKPOINTS}/latest")
        there = [name for name in names if (self.run_dir / name).exists()]
        if f"{CHECKPOINTS}/latest" not in there:  # a file system without links
            there.append(CHECKPOINTS)
        return f"everything is in {self.run_dir}: {', '.join(there[:-1])} and {there[-1]}"

    def describe_next(self) -> str:
        """A message that says how to train the cell that a search has found."""
        return f"train it: gaeanet train CONFIG --set hyperparameters.genotype={self.run_dir / GENOTYPE}"

    def _restore_log(self, path: Path) -> None:
        """Copies the log stored with a checkpoint into the run directory, so that it has no gap."""
        log = log_beside(path)
        if self.processes.is_first and log is not None:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(log, self.metrics_path)


def _write(path: Path, text: str) -> None:
    """Replaces a file of the run in one step; an error names the file, not the draft of it."""
    try:
        replace_text(path, text)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
