"""Training: what a run writes, that it learns, that it learns nothing from noise, and that it continues."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from steps import interrupted_at
from tiny import Result, read_log, same_but_for_speed, same_checkpoints

from gaeanet.artifacts.checkpoint import load
from gaeanet.config.experiment import load_experiment
from gaeanet.data.sources.open import open_source
from gaeanet.data.sources.source import Source
from gaeanet.models.network import Cell
from gaeanet.runs.local import LocalContext
from gaeanet.training import recorded
from gaeanet.training.train import train

Run = Callable[..., Result]
Write = Callable[..., Path]


@pytest.mark.drawn
def test_a_run_directory_holds_what_it_should(gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path) -> None:
    result = gaeanet("train", experiment_file(), "--data", t3)
    assert result.code == 0, result.err
    run = tmp_path / "runs" / "tiny"
    assert {p.name for p in run.iterdir() if not p.name.startswith(".")} == {
        "config.yaml",
        "metrics.jsonl",
        "checkpoints",
        "curve.png",
        "report.html",
    }
    assert load_experiment(run / "config.yaml").data.location == str(t3)
    training, validation = read_log(run, "train"), read_log(run, "validation")
    assert [line["batches"] for line in training] == list(range(1, 9))
    assert [line["epoch"] for line in training] == [k / 4 for k in range(1, 9)]
    assert [line["images"] for line in training] == [4 * k for k in range(1, 9)]
    assert all(line["learning_rate"] > 0 and line["images_per_second"] > 0 for line in training)
    assert [line["epoch"] for line in validation] == [1.0, 2.0]
    for line in validation:
        assert line["count"] == 9
        assert line["data"] == "photographs"
        assert line["top5_accuracy"] == line["ema_top5_accuracy"] == 100.0  # three classes: every guess counts
        assert {"loss", "top1_accuracy", "ema_loss", "ema_top1_accuracy"} <= set(line)
    assert (run / "checkpoints" / "latest").resolve().name == "step-000000008"
    assert (run / "checkpoints" / "best").exists()
    assert (run / "curve.png").stat().st_size > 5000
    assert "best: top-1" in result.out
    assert str(Path("runs/tiny")) in result.out
    assert "generated" not in result.out


def test_field_report_8_the_cell_is_printed_in_full_and_stored(
    gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path
) -> None:
    out = gaeanet("train", experiment_file(epochs=1), "--data", t3).out
    assert "cell gaea-imagenet (fingerprint ef704e9bcfbf): Genotype(normal=[('skip_connect', 1)," in out
    _, state = load(tmp_path / "runs" / "tiny" / "checkpoints" / "latest")
    assert state["hyperparameters"]["genotype"]["normal"][0] == ["skip_connect", 1]
    assert state["classes"] == ["n00000000", "n00000001", "n00000002"]


def test_field_report_4_the_rate_inside_a_cell_follows_the_ramp(
    gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    forward = Cell.forward

    def recording(self: Cell, older: Any, newer: Any, rate: torch.Tensor) -> Any:
        if self.training:
            seen.append(rate.item())
        return forward(self, older, newer, rate)

    monkeypatch.setattr(Cell, "forward", recording)
    options = {"drop_path_prob": 0.3, "epochs": 4, "global_batch_size": 18, "precision": "bf16"}
    assert gaeanet("train", experiment_file(**options), "--data", t3).code == 0
    assert seen[::3] == pytest.approx([0, 0.075, 0.15, 0.225])
    logged = [line["drop_path_rate"] for line in read_log(tmp_path / "runs" / "tiny", "train")]
    assert logged == pytest.approx([0, 0.075, 0.15, 0.225])


def test_field_report_13_validation_loss_is_plain_cross_entropy(
    gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path
) -> None:
    losses = []
    for smoothing in (0.0, 0.1):  # at a rate that moves no weight
        config = experiment_file(label_smoothing_rate=smoothing, learning_rate=1e-30, epochs=1, momentum=0.0)
        assert gaeanet("train", config, "--data", t3, "--run-dir", str(smoothing)).code == 0
        losses.append(read_log(tmp_path / str(smoothing), "validation")[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


class _Shuffled(Source):
    """A source whose training labels have nothing to do with its images."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.generated, self.location, self.notes = inner, True, inner.location, []
        labels = np.random.default_rng(0).permutation(inner.catalog.train.labels)
        self.catalog = replace(inner.catalog, train=replace(inner.catalog.train, labels=labels))

    def read(self, split: str, index: int) -> Any:
        return self.inner.read(split, index)

    def path(self, split: str, index: int) -> str:
        return self.inner.path(split, index)


LEARNABLE = {
    "num_classes": 10,
    "init_channels": 8,
    "image_size": 32,
    "crop_min_area": 0.5,
    "global_batch_size": 20,
    "optimizer": "muon",
    "epochs": 2,
    "ema_decay": 0.0,
    "activation": "relu",
}


@pytest.mark.slow
def test_generated_images_can_be_learnt_and_shuffled_labels_cannot(experiment_file: Write, tmp_path: Path) -> None:
    experiment = load_experiment(experiment_file(data={"generated_per_class": 100}, **LEARNABLE))
    source = open_source(experiment)
    accuracies = {}
    for name, images in (("true", source), ("shuffled", _Shuffled(source))):
        train(experiment, images, LocalContext(tmp_path / name))  # type: ignore[arg-type]
        accuracies[name] = read_log(tmp_path / name, "validation")[-1]["top1_accuracy"]
    assert accuracies["true"] > 60
    assert accuracies["shuffled"] < 25  # 10 % by chance, on 100 images


def test_field_report_38_generated_images_mark_every_line_checkpoint_and_log(
    gaeanet: Run, experiment_file: Write, tmp_path: Path
) -> None:
    result = gaeanet("train", experiment_file(data={"generated_per_class": 10}, epochs=1))
    assert result.code == 0, result.err
    assert all(line.startswith("[generated images]") for line in result.out.splitlines())
    run = tmp_path / "runs" / "tiny"
    assert all(line["data"] == "generated" for line in read_log(run))
    _, state = load(run / "checkpoints" / "latest")
    assert state["data"]["generated"] is True


INGREDIENTS: dict[str, Any] = {
    "data": {"minival": 0.3},
    "epochs": 2,
    "validate_every": 2,
    "checkpoint_every": 3,
    "auxiliary": True,
    "mixup_alpha": 0.4,
    "cutmix_alpha": 1.0,
    "random_erasing": 0.5,
    "optimizer": "muon",
    "repeated_augmentation": 2,
    "decay_norms_and_biases": False,
    "initial_gamma": 0.1,
    "stem_stride": 1,
    "max_batch_per_slot": 2,
}


@pytest.mark.parametrize(("stops", "more"), [((5, 8, 11), {}), ((4,), INGREDIENTS)], ids=["plain", "ingredients"])
def test_law_2_a_resumed_run_equals_one_that_never_stopped(
    gaeanet: Run,
    experiment_file: Write,
    t3: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stops: tuple[int, ...],
    more: dict[str, Any],
) -> None:
    """Stopped within an epoch of four steps, after its last step, and within the run's last epoch."""
    options = {"epochs": 3, "drop_path_prob": 0.2, "drop_prob": 0.1, "cutout": True, "cutout_length": 8, **more}
    config = experiment_file(**options)
    straight = tmp_path / "straight"
    assert gaeanet("train", config, "--data", t3, "--run-dir", straight).code == 0
    for stop in stops:
        broken = tmp_path / f"broken-{stop}"
        with monkeypatch.context() as patch:
            patch.setattr(recorded, "step", interrupted_at(stop))
            assert gaeanet("train", config, "--data", t3, "--run-dir", broken).code == 130
        refused = gaeanet("train", config, "--data", t3, "--run-dir", broken)
        assert refused.code == 2
        assert "already holds a run: continue it with --resume" in refused.err
        assert gaeanet("train", config, "--data", t3, "--run-dir", broken, "--resume").code == 0
        assert same_but_for_speed(read_log(straight), read_log(broken))
        same_checkpoints(straight, broken)


def test_a_finished_run_has_nothing_to_do(gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path) -> None:
    config = experiment_file(epochs=1)
    assert gaeanet("train", config, "--data", t3).code == 0
    before = {p: p.read_bytes() for p in (tmp_path / "runs" / "tiny" / "checkpoints").rglob("*") if p.is_file()}
    again = gaeanet("train", config, "--data", t3, "--resume")
    assert again.code == 0
    assert "finished after 1 epoch, nothing to do" in again.out
    after = {p: p.read_bytes() for p in (tmp_path / "runs" / "tiny" / "checkpoints").rglob("*") if p.is_file()}
    assert before == after


def test_a_resumed_run_keeps_its_recipe(gaeanet: Run, experiment_file: Write, t3: Path) -> None:
    assert gaeanet("train", experiment_file(epochs=1), "--data", t3).code == 0
    result = gaeanet("train", experiment_file(epochs=1, learning_rate=0.1), "--data", t3, "--resume")
    assert result.code == 2
    assert "hyperparameters.learning_rate is 0.1, but the run to resume in runs/tiny has 0.05" in result.err


@pytest.mark.slow
def test_every_ingredient_together(gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path) -> None:
    options = {
        "auxiliary": True,
        "drop_path_prob": 0.2,
        "drop_prob": 0.1,
        "randaugment": True,
        "color_jitter": True,
        "cutout": True,
        "cutout_length": 8,
        "activation": "hswish",
        "precision": "bf16",
        "validate_every": 2,
        "epochs": 3,
    }
    for scheduler in ("linear", "efficientnet", "cosine"):
        config = experiment_file(name=scheduler, lr_scheduler=scheduler, **options)
        result = gaeanet("train", config, "--data", t3)
        assert result.code == 0, result.err
        assert [line["epoch"] for line in read_log(tmp_path / "runs" / scheduler, "validation")] == [2.0, 3.0]
        assert "in the auxiliary tower, for training only" in result.out
