"""Resuming with other images than those that the position in the data belongs to."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import Result, jpeg, read_log

from gaeanet.training.loop import _Loop

Run = Callable[..., Result]
Write = Callable[..., Path]


@pytest.fixture
def stopped(gaeanet: Run, experiment_file: Write, t3: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A run in `run` that was stopped after its first validation; returns the experiment file."""

    def run(*arguments: Any, **values: Any) -> Path:
        def stopping(self: Any) -> bool:
            self.stop.received = "SIGTERM"
            return False

        with monkeypatch.context() as patch:
            patch.setattr(_Loop, "_validate_if_due", stopping)
            config = experiment_file(**values)
            assert gaeanet("train", config, "--run-dir", "run", *arguments).code == 75
        return config

    return run


def add(root: Path) -> None:
    for number in range(4):
        (root / "train/n00000001" / f"new_{number}.JPEG").write_bytes(jpeg((9, 9, 9), (40, 40)))


def remove(root: Path) -> None:
    (root / "train/n00000002/train_3.JPEG").unlink()


def rename(root: Path) -> None:
    (root / "train/n00000000/train_0.JPEG").rename(root / "train/n00000000/another.JPEG")


def move_to_another_class(root: Path) -> None:
    (root / "train/n00000000/train_0.JPEG").rename(root / "train/n00000001/train_9.JPEG")


def add_a_validation_image(root: Path) -> None:
    (root / "val/n00000000/new.JPEG").write_bytes(jpeg((9, 9, 9), (40, 40)))


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (add, "22 training and 9 validation images, 18 training and 9 validation images before"),
        (remove, "17 training and 9 validation images, 18 training and 9 validation images before"),
        (rename, "18 training and 9 validation images as before, but with other names"),
        (move_to_another_class, "18 training and 9 validation images as before, but with other names"),
        (add_a_validation_image, "18 training and 10 validation images, 18 training and 9 validation images before"),
    ],
)
def test_field_report_66_images_that_changed_since_the_stop_are_refused(
    gaeanet: Run,
    stopped: Callable[..., Path],
    t3: Path,
    tmp_path: Path,
    change: Callable[[Path], None],
    difference: str,
) -> None:
    config = stopped("--data", t3)
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    change(t3)
    refused = gaeanet("train", config, "--data", t3, "--run-dir", "run", "--resume")
    assert refused.code == 2
    assert refused.err.count("\n") == 1
    assert f"{t3}: the images have changed since the run to resume in run was stopped: {difference}" in refused.err
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before
    assert "--run-dir and --init run" in refused.err
    if change is add:  # what the message proposes is accepted
        assert gaeanet("train", config, "--data", t3, "--run-dir", "another", "--init", "run").code == 0


def test_field_report_66_other_images_of_the_same_names_are_refused_where_sizes_are_known(
    gaeanet: Run, stopped: Callable[..., Path], t3: Path, tmp_path: Path
) -> None:
    """In an index, archive or listing they are; of folders each file would have to be looked at."""
    assert gaeanet("prepare", t3, "before", "--shards").code == 0
    config = stopped("--data", "before")
    (t3 / "train/n00000001/train_2.JPEG").write_bytes(jpeg((9, 9, 9), (41, 43)))
    assert gaeanet("prepare", t3, "after", "--shards").code == 0
    refused = gaeanet("train", config, "--data", "after", "--run-dir", "run", "--resume")
    assert refused.code == 2
    assert refused.err.count("\n") == 1
    assert "18 training and 9 validation images of the same names as before, but files of other sizes" in refused.err
    assert "restore them, or start another run" in refused.err


def test_field_report_66_images_that_have_only_moved_are_the_same(
    gaeanet: Run, stopped: Callable[..., Path], t3: Path, tmp_path: Path
) -> None:
    config = stopped("--data", t3)
    shutil.move(t3, tmp_path / "elsewhere")
    assert gaeanet("prepare", "elsewhere", "shards", "--shards").code == 0
    result = gaeanet("train", config, "--data", "shards", "--run-dir", "run", "--resume")
    assert result.code == 0, result.err
    assert [line["epoch"] for line in read_log(tmp_path / "run", "validation")] == [1.0, 2.0]


def test_field_report_66_fewer_generated_images_are_a_change_too(gaeanet: Run, stopped: Callable[..., Path]) -> None:
    config = stopped(data={"generated_per_class": 20})
    refused = gaeanet("train", config, "--run-dir", "run", "--resume", "--set", "data.generated_per_class=10")
    assert refused.code == 2
    assert "30 training and 3 validation images, 60 training and 6 validation images before" in refused.err
