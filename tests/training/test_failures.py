"""What goes wrong on the way: gradients that are not finite, full disks, damaged checkpoints, fp16, accumulation."""

from __future__ import annotations

import math
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sharing import keep_norms_in_evaluation
from steps import Trainee
from tiny import Result, read_log

from gaeanet.artifacts.checkpoint import checkpoints, load
from gaeanet.config.experiment import load_experiment
from gaeanet.data.sources.open import open_source
from gaeanet.runtime import devices
from gaeanet.training.objective import Classification
from gaeanet.training.train import Training

Run = Callable[..., Result]
Write = Callable[..., Path]


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[int]], None]:
    """Makes the loss of certain batches not a number."""

    def poison(batches: set[int], until_rate_scale: float = 0.0) -> None:
        loss, step, broken = Classification.loss, Training.step, [False]

        def noted(job: Training, *arguments: Any) -> list[str]:
            broken[0] = job.state.batches in batches and job.state.rate_scale > until_rate_scale
            return step(job, *arguments)

        def bad(self: Classification, *arguments: Any) -> torch.Tensor:
            return loss(self, *arguments) * (math.nan if broken[0] else 1.0)

        monkeypatch.setattr(Training, "step", noted)
        monkeypatch.setattr(Classification, "loss", bad)

    return poison


def test_field_report_15_a_bad_step_is_skipped_and_counted(
    gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path, poisoned: Callable[..., None]
) -> None:
    poisoned({2, 5})
    result = gaeanet("train", experiment_file(), "--data", t3)
    assert result.code == 0, result.err
    assert "2 steps skipped for a gradient that was not finite" in result.out
    log = read_log(tmp_path / "runs" / "tiny", "train")
    assert [line["skipped_steps"] for line in log] == [0, 0, 1, 1, 1, 2, 2, 2]
    # the schedule stands still on a skipped step
    assert log[2]["learning_rate"] == log[3]["learning_rate"]
    tensors, state = load(tmp_path / "runs" / "tiny" / "checkpoints" / "latest")
    assert (state["batches"], state["updates"]) == (8, 6)
    assert all(torch.isfinite(value).all() for group in tensors.values() for value in group.values())


def test_field_report_15_a_divergence_ends_the_run_and_names_step_rate_and_images(
    gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path, poisoned: Callable[..., None]
) -> None:
    poisoned(set(range(5, 100)))
    result = gaeanet("train", experiment_file(max_bad_steps=3), "--data", t3)
    assert result.code == 1
    for part in ("3 gradients in a row were not finite", "step 8", "learning rate 0.01", ".JPEG", "learning_rate"):
        assert part in result.err
    tensors, state = load(tmp_path / "runs" / "tiny" / "checkpoints" / "best")
    assert state["batches"] == 4
    assert all(torch.isfinite(value).all() for group in tensors.values() for value in group.values())


def test_a_divergence_may_rewind(
    gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path, poisoned: Callable[..., None]
) -> None:
    poisoned(set(range(5, 100)), until_rate_scale=0.5)
    result = gaeanet("train", experiment_file(max_bad_steps=2, on_divergence="rewind"), "--data", t3)
    assert result.code == 0, result.err
    assert "diverged at step 7: back to step 4, learning rate times 0.5" in result.out
    log = read_log(tmp_path / "runs" / "tiny", "train")
    assert [line["batches"] for line in log] == list(range(1, 9))
    assert log[4]["learning_rate"] == pytest.approx(log[3]["learning_rate"] / 2, rel=0.3)
    poisoned(set(range(5, 100)))
    endless = gaeanet("train", experiment_file(max_bad_steps=2, on_divergence="rewind"), "--data", t3, "--run-dir", "x")
    assert endless.code == 1


def trainee(experiment_file: Write, t3: Path, **options: Any) -> Trainee:
    experiment = load_experiment(experiment_file(data={"location": str(t3)}, **options))
    found = Trainee(experiment, open_source(experiment))
    keep_norms_in_evaluation(found.network)
    return found


IMAGES = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])


def test_field_report_16_parts_add_up_to_the_whole(experiment_file: Write, t3: Path) -> None:
    whole = trainee(experiment_file, t3)
    whole.step(IMAGES, LABELS, 0.1, 0.0)
    for at_once in (2, 3):
        parts = trainee(experiment_file, t3, max_batch_per_slot=at_once)
        parts.step(IMAGES, LABELS, 0.1, 0.0)
        for p, q in zip(whole.network.parameters(), parts.network.parameters()):
            torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-5)
        assert whole.learner.meter.totals().top1 == parts.learner.meter.totals().top1


def test_field_report_14_clipping_does_not_see_the_loss_scale(
    experiment_file: Write, t3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "precision_for", lambda asked, device: "fp16")
    monkeypatch.setitem(devices.DTYPES, "fp16", torch.float32)  # the scaler alone is looked at
    weights = []
    for scale in (1.0, 65536.0):
        state = trainee(experiment_file, t3, clip_gradients_l2_norm=0.1)
        assert state.learner.scaler.is_enabled()
        state.learner.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        state.step(IMAGES, LABELS, 0.1, 0.0)
        weights.append([p.detach().clone() for p in state.network.parameters()])
    fresh = trainee(experiment_file, t3)
    moved = [(p - q).norm() for p, q in zip(weights[0], fresh.network.parameters())]
    assert torch.stack(moved).norm().item() == pytest.approx(0.01, rel=0.05)  # rate 0.1 times a norm of 0.1
    for p, q in zip(*weights):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-6)


def test_field_report_15_the_scaler_is_saved(experiment_file: Write, t3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "precision_for", lambda asked, device: "fp16")
    monkeypatch.setitem(devices.DTYPES, "fp16", torch.float32)
    state = trainee(experiment_file, t3)
    state.learner.scaler = torch.amp.GradScaler("cpu", init_scale=float("inf"))
    state.step(IMAGES, LABELS, 0.1, 0.0)
    assert (state.learner.counts.tolist(), state.learner.batches) == ([0, 1, 1], 1)
    again = trainee(experiment_file, t3)
    again.state.load(Path("a/b/c"), *state.state.saved())
    assert again.learner.scaler.state_dict() == state.learner.scaler.state_dict()


def test_field_report_46_a_tower_of_no_weight_is_not_built(experiment_file: Write, t3: Path) -> None:
    assert trainee(experiment_file, t3, auxiliary=True, auxiliary_weight=0.0).network.auxiliary_head is None
    assert trainee(experiment_file, t3, auxiliary=True).network.auxiliary_head is not None


def test_field_report_49_a_worse_epoch_after_resume_is_not_best(experiment_file: Write, t3: Path) -> None:
    state = trainee(experiment_file, t3).state

    def line(accuracy: float, epoch: float, loss: float = 1.0) -> dict[str, Any]:
        return {"top1_accuracy": accuracy, "loss": loss, "ema_top1_accuracy": 0.0, "ema_loss": 1.0, "epoch": epoch}

    state.learner.batches = 4
    assert state.note_validation(line(60.0, 1))
    again = trainee(experiment_file, t3).state
    again.load(Path("a/b/c"), *state.saved())
    again.learner.batches = 8
    assert not again.note_validation(line(40.0, 2))
    assert not again.note_validation(line(60.0, 2))  # ties keep the older
    assert not again.note_validation(line(99.0, 2, loss=math.nan))
    assert again.best == [{"top1_accuracy": 60.0, "epoch": 1, "batches": 4, "weights": "raw"}]
    assert again.note_validation(line(70.0, 3))


def test_keep_best_keeps_the_best_checkpoints(gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path) -> None:
    config = experiment_file(epochs=6, keep_best=3, keep_latest=1)
    assert gaeanet("train", config, "--data", t3).code == 0
    folder = tmp_path / "runs" / "tiny" / "checkpoints"
    kept = {int(path.name[5:]) for path in checkpoints(folder)}
    best = {entry["batches"] for entry in load(folder / "latest")[1]["best"]}
    assert len(best) == 3
    assert kept == best | {24}


def test_field_report_48_a_damaged_newest_checkpoint_is_skipped(
    gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path
) -> None:
    config = experiment_file(epochs=3)
    assert gaeanet("train", config, "--data", t3).code == 0
    newest = (tmp_path / "runs" / "tiny" / "checkpoints" / "latest").resolve()
    data = (newest / "model.safetensors").read_bytes()
    (newest / "model.safetensors").write_bytes(data[: len(data) // 2])
    result = gaeanet("train", config, "--data", t3, "--resume")
    assert result.code == 0, result.err
    assert "skipped a damaged checkpoint" in result.out
    assert "resumed after step 8" in result.out


def test_a_checkpoint_of_another_network_is_one_line(
    gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path
) -> None:
    assert gaeanet("train", experiment_file(epochs=1), "--data", t3).code == 0
    result = gaeanet("train", experiment_file(epochs=1, layers=4), "--data", t3, "--resume")
    assert result.code == 2
    assert "hyperparameters.layers is 4, but the run to resume in runs/tiny has 3" in result.err
    assert result.err.count("\n") == 1


@pytest.mark.slow
def test_field_report_48_a_full_disk_leaves_the_older_checkpoint_whole(
    gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path
) -> None:
    config = experiment_file(epochs=2)
    assert gaeanet("train", config, "--data", t3).code == 0
    before = (tmp_path / "runs" / "tiny" / "checkpoints" / "latest").resolve()
    size = (before / "model.safetensors").stat().st_size

    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    command = [sys.executable, "-m", "gaeanet.cli", "train", str(config), "--data", str(t3), "--run-dir", "full"]
    full = subprocess.run(command, preexec_fn=little_room, capture_output=True, text=True, cwd=tmp_path)
    assert full.returncode == 1
    assert "cannot save the checkpoint: file too large; earlier ones are intact" in full.stderr
    assert full.stderr.count("\n") == 1
    assert not checkpoints(tmp_path / "full" / "checkpoints")
    load(before)
