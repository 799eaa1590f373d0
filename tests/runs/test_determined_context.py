"""What the cluster's context makes of a master's moods, with a determined that only remembers."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gaeanet.config.experiment import experiment_from
from gaeanet.errors import Ended, Preempted, RequestError, RunError, Stopped
from gaeanet.runs import determined as determined_context
from gaeanet.runs import watch
from gaeanet.runs.determined import DeterminedContext, read_experiment


class Core:
    """Stands for determined.core's context; every part of it is this."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.train = self.preempt = self.checkpoint = self
        self.told: list[Any] = []
        self.trouble: dict[str, Exception] = {}
        self.stop = self.ended = False

    def __getattr__(self, name: str) -> Any:
        def remember(*arguments: Any, **_: Any) -> Any:
            if name in self.trouble:
                raise self.trouble[name]
            self.told.append((name, *arguments))

        return remember

    def should_preempt(self, auto_ack: bool) -> bool:
        assert not auto_ack, "the master may hear of it only when the state is saved"
        return self.stop

    def get_tensorboard_path(self) -> Path:
        return self.folder / "tensorboard"

    def upload(self, path: Path, metadata: dict[str, Any]) -> str:
        if "upload" in self.trouble:
            raise self.trouble["upload"]
        self.told.append(("upload", sorted(file.name for file in path.iterdir()), metadata["steps_completed"]))
        return "uuid-1"


@pytest.fixture
def core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Core:
    core = Core(tmp_path)
    trial = SimpleNamespace(trial_id=7, hparams={"epochs": 4, "genotype": "darts-v2"})
    info = SimpleNamespace(trial=trial, user_data={"num_workers_val": 1}, latest_checkpoint=None)
    modes = SimpleNamespace(ChiefOnly=1, MANUAL=2)
    module = SimpleNamespace(init=lambda **_: core, PreemptMode=modes, TensorboardMode=modes)
    determined = SimpleNamespace(get_cluster_info=lambda: info, core=module)
    monkeypatch.setattr(determined_context, "_determined", lambda: determined)
    monkeypatch.setattr(determined_context, "_search_has_ended", lambda: core.ended)
    monkeypatch.setattr(determined_context, "_fair_threads", lambda: 1)
    monkeypatch.setattr(watch.Watch.__init__, "__defaults__", (0.01,))
    core.info = info
    return core


@pytest.fixture
def context(core: Core, tmp_path: Path) -> Iterator[DeterminedContext]:
    with DeterminedContext(tmp_path / "run") as context:
        context.begin(read_experiment(), 0)
        yield context


def line(batches: int, kind: str = "train", **values: float) -> dict[str, Any]:
    return {"kind": kind, "data": "generated", "epoch": batches / 10, "batches": batches, "loss": 1.0, **values}


def told(core: Core, name: str) -> list[Any]:
    return [arguments for known, *arguments in core.told if known == name]


def test_the_experiment_is_the_clusters(core: Core) -> None:
    experiment = read_experiment()
    assert (experiment.name, experiment.hyperparameters.epochs, experiment.data.num_workers_val) == ("trial-7", 4, 1)
    core.info.trial.hparams = {"epohcs": 4}
    with pytest.raises(RequestError, match=r"hyperparameters\.epohcs: unknown key; did you mean epochs\?"):
        read_experiment()
    core.info.trial.hparams = {"checkpoint_bucket": "gs://b/c"}
    with pytest.raises(RequestError, match="a cluster stores checkpoints in checkpoint_storage"):
        read_experiment()


def test_only_finite_numbers_are_told(
    context: DeterminedContext, core: Core, capsys: pytest.CaptureFixture[str]
) -> None:
    context.report(line(1, loss=math.nan, top1_accuracy=50.0))
    assert told(core, "report_training_metrics") == [
        [1, {"epoch": 0.1, "batches": 1, "top1_accuracy": 50.0, "epochs": 0.1}]
    ]
    assert "step 1: loss not finite, not reported" in capsys.readouterr().err


def test_after_a_rewind_a_step_is_told_once(context: DeterminedContext, core: Core) -> None:
    for batches in (1, 2, 3):
        context.report(line(batches))
    context.report(line(3, "validation"))
    context.begin(experiment_from({}), 1)
    for batches in (2, 3, 4):
        context.report(line(batches))
    context.report(line(3, "validation"))
    assert [step for step, _ in told(core, "report_training_metrics")] == [1, 2, 3, 4]
    assert [step for step, _ in told(core, "report_validation_metrics")] == [3]
    assert len(context.metrics_path.read_text().splitlines()) == 5, "the log of record has what happened"


def test_a_master_that_refuses_metrics_ends_the_run_and_one_that_refuses_progress_does_not(
    context: DeterminedContext, core: Core, capsys: pytest.CaptureFixture[str]
) -> None:
    core.trouble["report_progress"] = ValueError("gone")
    context.report(line(1))
    context._background.submit(int).result()
    assert "the master does not show progress: gone; training continues" in capsys.readouterr().err
    core.trouble["report_training_metrics"] = RuntimeError("500 Server Error")
    with pytest.raises(RunError, match="did not accept metrics reported before step 2: RuntimeError: 500 Server Error"):
        context.report(line(2))


def save(context: DeterminedContext, step: int) -> None:
    context.save(step, {}, {"batches": step}, best=None, keep=set(), keep_latest=1, note=print)


def test_a_checkpoint_carries_log_and_experiment(context: DeterminedContext, core: Core) -> None:
    context.report(line(1))
    save(context, 1)
    assert told(core, "upload") == [[["config.yaml", "manifest.json", "metrics.jsonl"], 1]]
    assert "det checkpoint download uuid-1" in context.describe_outputs()
    core.trouble["upload"] = OSError(28, "No space left on device")
    with pytest.raises(RunError, match="did not store the checkpoint of step 2: OSError: no space left on device"):
        save(context, 2)


def test_a_stop_is_acknowledged_if_and_only_if_the_cluster_asked(context: DeterminedContext, core: Core) -> None:
    save(context, 1)
    stopped = context.stopped(1, "SIGTERM")
    assert (type(stopped), stopped.exit_code) == (Stopped, 75)
    assert "stopped by SIGTERM after step 1, saved as checkpoint uuid-1: the cluster starts the trial again" in str(
        stopped
    )
    assert told(core, "acknowledge_preemption_signal") == []
    core.stop = True
    assert context.asked_to_stop()
    preempted = context.stopped(1, "")
    assert (type(preempted), preempted.exit_code) == (Preempted, 0)
    assert told(core, "acknowledge_preemption_signal") == [[]]


def test_a_run_that_the_search_has_ended_is_complete(context: DeterminedContext, core: Core) -> None:
    save(context, 4)
    assert not context.asked_to_stop()
    core.ended = True
    end = time.monotonic() + 10
    while not context.asked_to_stop():
        assert time.monotonic() < end
        time.sleep(0.01)
    ended = context.stopped(4, "")
    assert (type(ended), ended.exit_code) == (Ended, 0)
    assert str(ended) == "ended by the search after step 4, saved as checkpoint uuid-1"
    assert told(core, "acknowledge_preemption_signal") == []


def test_metrics_lost_at_the_very_end_are_a_failure(core: Core, tmp_path: Path) -> None:
    """Such a run has ended well for itself, but the master must not take it for complete."""
    lost = pytest.raises(RunError, match="did not accept the last metrics: RuntimeError: 500")
    with lost, DeterminedContext(tmp_path / "run"):
        core.trouble["close"] = RuntimeError("500")


def test_a_missing_master_is_one_line(tmp_path: Path, core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    core.trouble["start"] = ConnectionError("connection refused")
    with pytest.raises(
        RunError, match="cannot join the cluster as a trial: connection refused; is its master reachable"
    ):
        DeterminedContext(tmp_path / "run")
