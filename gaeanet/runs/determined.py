"""The execution context of a Determined trial. Only this file imports determined, and only on a cluster."""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from gaeanet import __version__
from gaeanet.artifacts import checkpoint, manifest
from gaeanet.artifacts.directory import CONFIG, GENOTYPE, METRICS, TENSORBOARD, read_log
from gaeanet.config.experiment import Experiment, experiment_from
from gaeanet.errors import Ended, GaeanetError, Preempted, RequestError, RunError, Stopped, reason
from gaeanet.runs.local import Checkpoint, LocalContext
from gaeanet.runs.watch import Watch
from gaeanet.runtime.host import usable_cores

TIME_METRIC = "epochs"
"""The name of a searcher's `time_metric`; Determined's web UI also plots against it."""


def read_experiment() -> Experiment:
    """The experiment of this trial: its `data` block, and the hyperparameters as the searcher chose them.

    Raises:
        RequestError: determined is missing, or a key or value is wrong.
    """
    info = _determined().get_cluster_info()
    if info is None:
        raise RequestError("DET_TASK_TYPE is TRIAL, but there is no trial in /run/determined: unset it")
    experiment = experiment_from(
        {"name": f"trial-{info.trial.trial_id}", "data": info.user_data, "hyperparameters": info.trial.hparams}
    )
    if experiment.hyperparameters.checkpoint_bucket is not None:
        raise RequestError(
            "experiment: hyperparameters.checkpoint_bucket: a cluster stores checkpoints in checkpoint_storage: "
            "set that, and this to null"
        )
    return experiment


def metrics_of(line: dict[str, Any]) -> dict[str, float]:
    """The metrics reported to the master for a line of the log: its finite numbers by name, and `TIME_METRIC`."""
    numbers = {key: value for key, value in line.items() if isinstance(value, (int, float)) and math.isfinite(value)}
    return {**numbers, TIME_METRIC: line["epoch"]}


class DeterminedContext(LocalContext):
    """The execution context of a trial: the master receives its metrics and decides when it stops.

    The run directory is lost with the container.

    Checkpoints go to the experiment's `checkpoint_storage`, in the usual format and with the log and the experiment
    file beside them, so that a downloaded one serves as a run directory.
    """

    def __init__(self, run_dir: Path, start: Path | None = None) -> None:
        super().__init__(run_dir, start=start)
        determined = _determined()
        core = determined.core
        self._newest: str | None = determined.get_cluster_info().latest_checkpoint
        self._resumed = False
        self._reported: dict[str, int] = {}
        self._epochs = 1
        self._background = ThreadPoolExecutor(1, thread_name_prefix="progress")
        try:
            self._core = core.init(
                distributed=core.DistributedContext.from_torch_distributed() if "WORLD_SIZE" in os.environ else None,
                # The loop agrees on stopping after each step; asking determined on every process would cost more.
                preempt_mode=core.PreemptMode.ChiefOnly,
                # Without it determined writes files of its own, with a package (tensorboard) that it does not install.
                tensorboard_mode=core.TensorboardMode.MANUAL,
            )
            self._core.start()
        except Exception as error:
            raise RunError(f"cannot join the cluster as a trial: {reason(error)}; is its master reachable?") from error
        self._ended_by_search: Watch | None = None
        if self.processes.is_first:
            self._ended_by_search = Watch(_search_has_ended)
        if (
            self.processes.world_size == 1
            and self.processes.device.type == "cpu"
            and "OMP_NUM_THREADS" not in os.environ
        ):
            torch.set_num_threads(_fair_threads())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._ended_by_search is not None:
                self._ended_by_search.close()
            self._background.shutdown()
            if self.processes.is_first and any(self._core.train.get_tensorboard_path().glob("*")):
                time.sleep(1)  # determined copies once a second at most, and ignores requests in between
                self._core.train.upload_tensorboard_files()
            self._core.close(kind, error, trace)
        except Exception as cause:
            message = (
                f"the master did not accept the last metrics: {_describe(cause)}; a restarted trial reports them again"
            )
            if error is None or isinstance(error, (Preempted, Ended)):
                raise RunError(message) from cause
            _note(message)
        finally:
            super().__exit__(kind, error, trace)

    def begin(self, experiment: Experiment, batches: int) -> None:
        super().begin(experiment, batches)
        self._epochs = experiment.hyperparameters.epochs
        failure = None
        if self.processes.is_first:
            self._link_tensorboard()
            for line in self._unreported(batches):
                failure = failure or self._report_line(line)
        self._raise_on_all(failure)

    def report(self, line: dict[str, Any]) -> None:
        super().report(line)
        failure = None
        if self.processes.is_first:
            failure = self._report_line(line)
            # In the background, since it waits for a reply: a master that is down for minutes must not stall training.
            fraction = min(1.0, line["epoch"] / self._epochs)
            self._background.submit(self._core.train.report_progress, fraction).add_done_callback(_note_failed_progress)
            self._core.train.upload_tensorboard_files()
        self._raise_on_all(failure)

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
        """Stores a checkpoint from the first process; the policy of `checkpoint_storage` decides which ones stay."""
        failure = None
        if self.processes.is_first:
            try:
                self._newest = self._store(step, tensors, state)
            except RunError as error:
                failure = str(error)
            except Exception as error:
                failure = (
                    f"the cluster did not store the checkpoint of step {step}: {_describe(error)}; earlier ones "
                    "are intact"
                )
        self._raise_on_all(failure)
        self._newest = self.processes.from_first(self._newest)

    def latest(self, note: Callable[[str], None]) -> Checkpoint | None:
        if self._newest is None:
            return super().latest(note)
        try:
            with self._core.checkpoint.restore_path(self._newest) as path:
                tensors, state = checkpoint.load(path)
                self._restore_log(path)
        except GaeanetError:
            raise
        except Exception as error:
            raise RunError(f"checkpoint {self._newest} cannot be fetched: {_describe(error)}") from error
        self._resumed = True
        note(f"resumes from checkpoint {self._newest}")
        return Path(self._newest), tensors, state

    def asked_to_stop(self) -> bool:
        return self.processes.is_first and (self._is_preempted() or self._is_ended())

    def stopped(self, step: int, signal: str) -> Stopped:
        """Acknowledges a preemption, so that the master resumes the trial later; only once the state is saved."""
        failure = None
        ended = self.processes.from_first(self._is_ended())
        preempted = self.processes.is_first and self._is_preempted()
        if preempted:
            try:
                self._core.preempt.acknowledge_preemption_signal()
            except Exception as error:
                failure = (
                    f"the master could not be notified that step {step} is saved as checkpoint {self._newest}: "
                    f"{_describe(error)}"
                )
        self._raise_on_all(failure)
        if ended:
            return Ended(f"ended by the search after step {step}, saved as checkpoint {self._newest}")
        if self.processes.from_first(preempted):
            return Preempted(f"stopped by the cluster after step {step}, saved as checkpoint {self._newest}")
        return Stopped(
            f"stopped by {signal} after step {step}, saved as checkpoint {self._newest}: the cluster starts the trial "
            "again from there while max_restarts allows it"
        )

    def _is_preempted(self) -> bool:
        return self._core.preempt.should_preempt(auto_ack=False) is True

    def _is_ended(self) -> bool:
        return self._ended_by_search is not None and self._ended_by_search.answered_yes

    def describe_outputs(self) -> str:
        return f"the last checkpoint, with log and experiment file: det checkpoint download {self._newest}"

    def describe_next(self) -> str:
        return (
            f"train it: det checkpoint download {self._newest} -o found, then gaeanet train CONFIG --set "
            f"hyperparameters.genotype=found/{GENOTYPE}; on the cluster: copy it to cells/found.json, then det "
            "experiment create --config hyperparameters.genotype=cells/found.json FILE ."
        )

    def _report_line(self, line: dict[str, Any]) -> str | None:
        """Reports a line to the master; returns a message if an earlier one was not accepted."""
        kind, step = line["kind"], line["batches"]
        if step <= self._reported.get(kind, -1):  # after a rewind: the master accepts a step once
            return None
        metrics, train = metrics_of(line), self._core.train
        if omitted := [key for key, value in line.items() if isinstance(value, float) and key not in metrics]:
            _note(f"step {step}: {', '.join(omitted)} not finite, not reported to the master")
        try:
            (train.report_validation_metrics if kind == "validation" else train.report_training_metrics)(step, metrics)
        except Exception as error:
            return (
                f"the master did not accept metrics reported before step {step}: {_describe(error)}; a restarted "
                "trial reports them again from its last checkpoint"
            )
        self._reported[kind] = step
        return None

    def _unreported(self, batches: int) -> list[dict[str, Any]]:
        """Lines of the log, up to that step, that the master may not have.

        It has none of another run's. It may have rejected the trial's own last ones: reports are sent in the
        background, and a rejection can show as late as after the next checkpoint.
        """
        log = read_log(self.metrics_path)
        validated = [line["batches"] for line in log if line["kind"] == "validation" and line["batches"] < batches]
        since = max(validated, default=0) if self._resumed else 0
        return [line for line in log if line["batches"] >= since]

    def _store(self, step: int, tensors: dict[str, dict[str, Tensor]], state: checkpoint.State) -> str:
        draft = self.run_dir / "checkpoint"
        checkpoint.write(draft, step, tensors, state)
        for name in (METRICS, CONFIG, GENOTYPE):
            if (self.run_dir / name).exists():
                shutil.copyfile(self.run_dir / name, draft / name)
        metadata = {"steps_completed": step, "format": f"gaeanet-{manifest.FORMAT}", "gaeanet": __version__}
        uuid = str(self._core.checkpoint.upload(draft, metadata))
        shutil.rmtree(draft)
        return uuid

    def _link_tensorboard(self) -> None:
        """Makes the run's tensorboard directory the one that determined uploads to the checkpoint storage."""
        link, target = self.run_dir / TENSORBOARD, Path(self._core.train.get_tensorboard_path())
        target.mkdir(parents=True, exist_ok=True)
        if link.is_dir() and not link.is_symlink():
            shutil.copytree(link, target, dirs_exist_ok=True, copy_function=shutil.copyfile)
            shutil.rmtree(link)
        link.unlink(missing_ok=True)
        link.symlink_to(target, target_is_directory=True)


def _determined() -> Any:
    try:
        import determined
        import determined.core
    except ImportError as error:
        raise RequestError(
            f"a cluster runs this as a trial, but its task image has no package determined ({reason(error)}): install "
            "gaeanet[determined] there, or do not set DET_SKIP_PIP_INSTALL"
        ) from None
    return determined


def _search_has_ended() -> bool:
    """Whether the search has ended this trial; the master (0.38.1) only changes its state, and sends no signal."""
    bindings, info = _bindings(), _determined().get_cluster_info()
    with _session() as session:
        trial = bindings.get_GetTrial(session, trialId=info.trial.trial_id).trial
    return bool(trial.state == bindings.trialv1State.STOPPING_COMPLETED)


def _fair_threads() -> int:
    """Threads of a trial of one process on CPUs: its slots' fraction of the machine, where other trials have the rest.

    Trials that all take every core spend their time in waiting for each other.
    """
    info = _determined().get_cluster_info()
    if not info.slot_ids:
        return usable_cores()
    try:
        with _session() as session:
            slots = len(_bindings().get_GetAgent(session, agentId=info.agent_id).agent.slots or {})
    except Exception as error:
        _note(f"the master does not report how many slots this machine has: {reason(error)}; takes all its cores")
        return usable_cores()
    return max(1, usable_cores() * len(info.slot_ids) // max(slots, len(info.slot_ids)))


def _session() -> Any:
    """A session of this trial with the master, for one thread."""
    from determined.common.api import authentication, certs

    info = _determined().get_cluster_info()
    return authentication.login_from_task(info.master_url, certs.default_load(info.master_url))


def _bindings() -> Any:
    from determined.common.api import bindings

    return bindings


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {reason(error)}"


def _note(text: str) -> None:
    print(f"gaeanet: {text}", file=sys.stderr, flush=True)


def _note_failed_progress(future: Future[None]) -> None:
    if error := future.exception():
        _note(f"the master does not show progress: {reason(error)}; training continues")
