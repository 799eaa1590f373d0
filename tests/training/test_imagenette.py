"""Real photographs: a small slice of Imagenette can be learnt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import Result, read_log

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_slice_of_imagenette_is_learnt(gaeanet: Callable[..., Result], evaluation_data: Path, tmp_path: Path) -> None:
    source = evaluation_data / "imagenette"
    if not source.is_dir():
        pytest.skip(f"{source} is absent")
    classes = sorted(path.name for path in (source / "train").iterdir())[1:4:2]  # springer spaniels and chain saws
    for split, count in (("train", 200), ("val", 100)):
        for name in classes:
            (tmp_path / "slice" / split / name).mkdir(parents=True)
            for image in sorted((source / split / name).iterdir())[:count]:
                (tmp_path / "slice" / split / name / image.name).symlink_to(image)
    values = {
        "hyperparameters.num_classes": 2,
        "hyperparameters.image_size": 64,
        "hyperparameters.train_image_size": 64,
        "hyperparameters.learning_rate": 0.05,
        "hyperparameters.epochs": 6,
        "hyperparameters.global_batch_size": 20,
        "hyperparameters.init_channels": 8,
        "hyperparameters.layers": 4,
    }
    overrides = [argument for key, value in values.items() for argument in ("--set", f"{key}={value}")]
    result = gaeanet(
        "train", ROOT / "benchmarks" / "imagenette.yaml", "--data", tmp_path / "slice", "--run-dir", "run", *overrides
    )
    assert result.code == 0, result.err
    last = read_log(tmp_path / "run", "validation")[-1]
    assert max(last["top1_accuracy"], last["ema_top1_accuracy"]) > 60  # of two classes: chance is 50, give or take 3.5
