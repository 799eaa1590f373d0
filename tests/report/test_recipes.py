"""Every shipped experiment file trains (two steps, tiny), and every command in README works."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import lives
import pytest
import torch
import yaml
from tiny import Result, TinyRun

from gaeanet.artifacts.export import ONNX_FROM
from gaeanet.config.experiment import load_experiment

ROOT = Path(__file__).parents[2]
FILES = sorted([*ROOT.glob("*.yaml"), *ROOT.glob("benchmarks/*.yaml")])
FILES = [path for path in FILES if not path.name.startswith(".") and "hyperparameters" in path.read_text()]

TINY = [
    "data.bucket_name=null",
    "data.location=null",
    "data.generated_per_class=10",
    "data.num_workers_train=0",
    "data.num_workers_val=0",
    "hyperparameters.num_classes=2",
    "hyperparameters.init_channels=4",
    "hyperparameters.layers=3",
    "hyperparameters.image_size=32",
    "hyperparameters.global_batch_size=10",
    "hyperparameters.epochs=1",
]

SPACES = {"learning_rate": 0.1, "drop_path_prob": 0.1, "weight_decay": 0.0001}
"""What a cluster would choose for the search spaces of adaptive.yaml."""


SEARCHED = [
    "data.generated_per_class=20",
    "hyperparameters.init_channels=8",
    "hyperparameters.search.weights_share=0.5",
    "hyperparameters.search.architecture_share=0.5",
]
"""What makes a search tiny: half of the images for the weights, and channels that go through the candidates."""


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_a_shipped_file_trains(gaeanet: Callable[..., Result], path: Path, tmp_path: Path) -> None:
    text = path.read_text()
    assert text.startswith("#"), "says what it is for"
    if path.parent == ROOT:
        assert {"name", "entrypoint", "searcher", "resources"} <= set(yaml.safe_load(text))
    chosen = [f"hyperparameters.{key}={value}" for key, value in SPACES.items()] if "adaptive" in path.name else []
    overrides = [argument for value in [*TINY, *chosen] for argument in ("--set", value)]
    command = "train"
    if "\n  search:" in text:
        command = "search"
        overrides += [word for value in SEARCHED for word in ("--set", value)]
    result = gaeanet(command, path, *overrides, "--run-dir", tmp_path / "run")
    assert result.code == 0, result.err
    assert "2 steps an epoch" in result.out


def test_the_recipes_are_the_published_ones() -> None:
    original = load_experiment(ROOT / "distributed.yaml", data="somewhere").hyperparameters
    assert (original.init_channels, original.layers, original.epochs, original.global_batch_size) == (48, 14, 300, 1024)
    assert (original.learning_rate, original.lr_scheduler, original.warmup_epochs) == (0.5, "cosine", 5)
    assert (original.weight_decay, original.momentum, original.clip_gradients_l2_norm) == (3e-5, 0.9, 5)
    assert (original.autoaugment, original.cutout, original.cutout_length, original.ema_decay) == (
        True,
        True,
        16,
        0.999,
    )
    paper = load_experiment(ROOT / "paper.yaml", data="somewhere").hyperparameters
    assert (paper.activation, paper.do_SE, paper.auxiliary, paper.auxiliary_weight) == ("relu", False, True, 0.4)
    assert (paper.lr_scheduler, paper.epochs, paper.autoaugment, paper.cutout) == ("linear", 250, False, False)


def test_distributed_yaml_asks_for_a_bucket_before_it_starts(gaeanet: Callable[..., Result]) -> None:
    result = gaeanet("train", ROOT / "distributed.yaml")
    assert result.code == 2
    assert "data.bucket_name is '<your-bucket>': name a location" in result.err


def _readme_commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line]


@pytest.mark.slow
@pytest.mark.parametrize("command", _readme_commands())
def test_a_command_of_readme_works(command: str, tmp_path: Path, t3: Path, tiny_run: TinyRun) -> None:
    """Runs the command at tiny size, from the project's root; `make` targets are checked to exist."""
    words = shlex.split(command)
    if "onnx" in words and torch.__version__ < ONNX_FROM:
        pytest.skip(f"ONNX export needs PyTorch {ONNX_FROM}")
    if words[0] == "make":
        subprocess.run(["make", "-n", "-C", str(ROOT), *words[1:]], check=True, capture_output=True)
        return
    if words[0] in ("pip", "git"):
        return
    run = tmp_path / "runs" / "tiny"
    data = [
        "--data",
        str(t3),
        *(f for v in ("data.num_workers_train=0", "data.num_workers_val=0") for f in ("--set", v)),
    ]
    if words[1] in ("evaluate", "predict", "export", "report"):
        words = [str(tiny_run.run) if re.match(r"runs/", word) else word for word in words]
        words = [str(tmp_path / word) if word.endswith(".onnx") else word for word in words]
        words = [str(t3 / "val") if word == "photographs/" else word for word in words]
    elif words[1] == "plot":
        shutil.copytree(tiny_run.run, run)
        (run / "curve.png").unlink()
        words = [str(run) if re.match(r"runs/", word) else word for word in words]
        words = [str(tmp_path / word) if word.endswith(".png") else word for word in words]
    elif words[1] == "prepare":
        places = iter([str(t3), str(tmp_path / "out")])
        words = [next(places) if word.startswith("/path/to/") else word for word in words]
    elif words[1] == "describe":
        words = [str(tmp_path / word) if word.endswith(".svg") else word for word in words]
    elif "search" in words:
        words = [word for k, word in enumerate(words) if word != "--data" and words[k - 1] != "--data"]
        values = [*TINY, *SEARCHED, "hyperparameters.num_classes=3", "hyperparameters.global_batch_size=9"]
        words += [argument for value in values for argument in ("--set", value)] + data
        words += ["--run-dir", str(tmp_path / "run")]
    elif words[1] == "bench" or "train" in words:
        words = [word for k, word in enumerate(words) if word != "--data" and words[k - 1] != "--data"]
        words += [argument for value in [*TINY, "hyperparameters.num_classes=3"] for argument in ("--set", value)]
        words += [*data, "--set", "hyperparameters.global_batch_size=9"]
        words += ["--seconds", "2"] if words[1] == "bench" else ["--run-dir", str(tmp_path / "run")]
    else:
        pytest.fail(f"README has a command that this test does not know how to run: {command}")
    assert words[0] == "gaeanet", f"README has a command that this test does not know how to run: {command}"
    code, said = lives.run(words[1:], tmp_path / "said", cwd=ROOT)
    assert code == 0, said
    if words[1] == "plot":
        assert (run / "curve.png").stat().st_size > 5000
