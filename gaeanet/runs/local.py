"""Where a run lives: its processes, and the directory that holds what it leaves behind.

`LocalContext` is all that the training loop knows of its surroundings; on a cluster, `DeterminedContext` (beside it, in
`determined_context.py`) takes its place.
"""

from __future__ import annotations

import os
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
from gaeanet.runtime.processes import Processes
from gaeanet.runtime.strict_json import dumps

Checkpoint = tuple[Path, dict[str, dict[str, Tensor]], checkpoint.State]


class LocalContext:
    """A run on one machine or on several that torchrun ties together, in a directory that all of them see.

    Attributes:
        run_dir: The run's directory.
        processes: Those that share the run; the first one alone writes.

    Args:
        mirror: Where the first process copies checkpoints and log to.
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
        """Writes the resolved experiment file, and cuts the log back to what had happened after `batches` steps."""
        if not self.processes.is_first:
            return
        self.run_dir.mkdir(parents=True, exist_ok=True)
        (self.run_dir / CONFIG).write_text(experiment.to_yaml(), encoding="utf-8")
        kept = [line for line in read_log(self.metrics_path) if line["batches"] <= batches]
        draft = self.run_dir / f".{METRICS}.{os.getpid()}"
        draft.write_text("".join(dumps(line) + "\n" for line in kept), encoding="utf-8")
        draft.replace(self.metrics_path)

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
            best: The step that `best` shall lead to.
            keep: Steps whose checkpoints must stay.
            keep_latest: How many of the newest stay beside them.
            note: Told of a copy to a bucket that failed; the next one is tried all the same.

        Raises:
            RunError: On every process, where the first one could not write.
        """
        failure = None
        if self.processes.is_first:
            if self._mirror and (problem := self._mirror.wait()):
                note(f"the last copy to the bucket failed: {problem}; the checkpoint itself is whole")
            try:
                path = checkpoint.save(self.checkpoints, step, tensors, state)
                checkpoint.point(self.checkpoints, "latest", path)
                # The best may have been of the run that this one goes on from.
                if best is not None and (target := path.with_name(checkpoint.name_of(best))).exists():
                    checkpoint.point(self.checkpoints, "best", target)
                checkpoint.prune(self.checkpoints, keep_latest, keep)
                if self._mirror:
                    left = [kept.name for kept in checkpoint.checkpoints(self.checkpoints)]
                    self._mirror.copy(path, self.metrics_path, left)
            except RunError as error:
                failure = str(error)
        self._agree(failure)

    def finish(self) -> None:
        """Waits for what is still under way; raises `RunError` on every process where it failed."""
        problem = self._mirror.wait() if self._mirror else None
        self._agree(problem and f"everything is in {self.run_dir}, but its copy is not whole: {problem}")

    def latest(self, note: Callable[[str], None]) -> Checkpoint | None:
        """The newest whole checkpoint, read and verified; `note` is told of damaged ones that were passed over.

        Raises:
            RequestError: The first process found one that this process does not see.
        """
        found: Checkpoint | None = None
        failure = None
        if self.processes.is_first:
            try:
                self._fetch(note)
            except RunError as error:
                failure = str(error)
        self._agree(failure)
        if self.processes.is_first:
            for path in reversed(checkpoint.checkpoints(self.checkpoints)):
                try:
                    found = path, *checkpoint.load(path)
                    break
                except RequestError as error:
                    note(f"passed over a damaged checkpoint: {error}")
        path = self.processes.from_first(found[0] if found else self._start)
        if path is not None and found is None:
            found = path, *checkpoint.load(path)
        if path is not None and path == self._start:
            self._bring_log(path)
            note(f"goes on from {path}")
        return found

    def _agree(self, failure: str | None) -> None:
        """Fails on every process with what the first one met."""
        if failure := self.processes.from_first(failure):
            raise RunError(failure)

    def _fetch(self, note: Callable[[str], None]) -> None:
        if self._mirror and (names := self._mirror.fetch(self.run_dir)):
            note(f"brought {', '.join(names)} from {self._mirror.location}")

    def asked_to_stop(self) -> bool:
        """Whether this process knows, other than by a signal, that the run is to be stopped."""
        return False

    def stopped(self, step: int, signal: str) -> Stopped:
        """What to end a stopped run with, once it is saved; `signal` names what stopped it."""
        return Stopped(f"stopped by {signal} after step {step}, state saved in {self.run_dir}: run again with --resume")

    def whereabouts(self) -> str:
        """Where all that the run leaves is to be found, in a sentence."""
        found = f"{GENOTYPE}, " if (self.run_dir / GENOTYPE).exists() else ""
        files = f"{found}{METRICS}, {CURVE}, {REPORT}, {CHECKPOINTS}/best and {CHECKPOINTS}/latest"
        return f"everything is in {self.run_dir}: {files}"

    def _bring_log(self, path: Path) -> None:
        """Makes the log that came with a checkpoint the run's own: it reads as if the run had never moved."""
        log = log_beside(path)
        if self.processes.is_first and log is not None:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(log, self.metrics_path)
