"""Starting from a trained network: heads alone start anew, all else must match, frozen parts stay as they are."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from steps import interrupted_at
from timm.optim._param_groups import param_groups_layer_decay, param_groups_weight_decay
from tiny import NET, Result, TinyRun, make_folder, read_log, same_checkpoints

from gaeanet.artifacts import checkpoint
from gaeanet.artifacts.find import find
from gaeanet.config.experiment import Hyperparameters, experiment_from
from gaeanet.data.sources.synthetic import SyntheticSource
from gaeanet.models.build import build_network
from gaeanet.optim.groups import freeze, learning_groups
from gaeanet.runtime.processes import Processes
from gaeanet.training.learner import build_learner

Run = Callable[..., Result]
Write = Callable[..., Path]
TOWER = {"auxiliary": True, "epochs": 1}


@pytest.fixture
def t4(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "t4", classes=4)


def at_the_start(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of the checkpoint before the first step."""
    return checkpoint.load(run / "checkpoints" / "step-000000000")[0]


@pytest.mark.parametrize("kind", ["raw", "ema"])
def test_field_report_57_other_classes_replace_the_heads_only_and_say_so(
    gaeanet: Run, experiment_file: Write, tiny_run: TinyRun, t4: Path, tmp_path: Path, kind: str
) -> None:
    config = experiment_file(num_classes=4, keep_latest=9, init_weights=kind, **TOWER)
    result = gaeanet("train", config, "--data", t4, "--init", tiny_run.run)
    assert result.code == 0, result.err
    heads = {
        "classifier.weight",
        "classifier.bias",
        "auxiliary_head.classifier.weight",
        "auxiliary_head.classifier.bias",
    }
    assert f"{kind} weights (3 classes there, 4 here)" in result.out
    assert f"starts anew: {', '.join(sorted(heads))}; everything else is loaded" in result.out
    given = find(tiny_run.run).tensors(kind)
    tensors = at_the_start(tmp_path / "runs" / "tiny")
    fresh = build_network(Hyperparameters(**{**find(tmp_path / "runs" / "tiny").hyperparameters.model_dump()}))
    for group in ("model", "ema"):
        for name, value in tensors[group].items():
            assert torch.equal(value, fresh.state_dict()[name] if name in heads else given[name]), name


def test_the_same_classes_take_the_classifier_too(
    gaeanet: Run, experiment_file: Write, tiny_run: TinyRun, tmp_path: Path
) -> None:
    config = experiment_file(keep_latest=9, **TOWER)
    result = gaeanet("train", config, "--data", tiny_run.data, "--init", tiny_run.run)
    assert "(the same classes: the classifier too)" in result.out
    assert "starts anew" not in result.out
    given = find(tiny_run.run)
    for name, value in at_the_start(tmp_path / "runs" / "tiny")["model"].items():
        assert torch.equal(value, given.tensors(given.preferred)[name])
    untowered = experiment_file(name="untowered", epochs=1)
    out = gaeanet("train", untowered, "--data", tiny_run.data, "--init", tiny_run.run).out
    assert "the checkpoint's auxiliary tower is left out" in out


def test_weights_trained_with_the_published_stem_start_one_of_stride_1(
    gaeanet: Run, experiment_file: Write, tiny_run: TinyRun, tmp_path: Path
) -> None:
    config = experiment_file(keep_latest=9, stem_stride=1)
    result = gaeanet("train", config, "--data", tiny_run.data, "--init", tiny_run.run)
    assert result.code == 0, result.err
    given = find(tiny_run.run)
    for name, value in at_the_start(tmp_path / "runs" / "tiny")["model"].items():
        assert torch.equal(value, given.tensors(given.preferred)[name])


def test_field_report_57_as_many_but_other_classes_are_refused(
    gaeanet: Run, experiment_file: Write, tiny_run: TinyRun, tmp_path: Path
) -> None:
    data = shutil.copytree(tiny_run.data, tmp_path / "renamed")
    for split in ("train", "val"):
        (data / split / "n00000001").rename(data / split / "n00000009")
    config = experiment_file(**TOWER)
    result = gaeanet("train", config, "--data", data, "--init", tiny_run.run)
    assert result.code == 2
    assert "has as many classes, but others or in another order (it lacks n00000009)" in result.err
    assert "would be wrong: --set hyperparameters.new_head=true replaces it" in result.err
    assert not (tmp_path / "runs" / "tiny" / "checkpoints").exists()
    accepted = gaeanet(
        "train", config, "--data", data, "--init", tiny_run.run, "--set", "hyperparameters.new_head=true"
    )
    assert accepted.code == 0, accepted.err
    assert "starts anew: auxiliary_head.classifier.bias" in accepted.out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 4}, "hyperparameters.layers is 4, but"),
        ({"activation": "relu"}, "has 'swish': --set hyperparameters.activation=swish"),
        ({"do_SE": False}, "has True: --set hyperparameters.do_SE=true"),
        ({"genotype": "darts-v2"}, "has ef704e9bcfbf: --set hyperparameters.genotype=gaea-imagenet"),
        ({"stem": "cifar"}, "hyperparameters.stem is 'cifar'"),
        ({"freeze": "head"}, "hyperparameters.freeze: must be nothing or stem or cells or a whole number"),
        ({"layer_decay": 0}, "hyperparameters.layer_decay: must be a number > 0 and <= 1"),
    ],
)
def test_all_else_must_match(
    gaeanet: Run, experiment_file: Write, tiny_run: TinyRun, changes: dict[str, Any], message: str
) -> None:
    result = gaeanet("train", experiment_file(**changes), "--data", tiny_run.data, "--init", tiny_run.run)
    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1


def test_a_wrong_start_is_one_line_without_torch(
    gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path
) -> None:
    config = experiment_file()
    assert "gone: no such file" in gaeanet("train", config, "--data", t3, "--init", "gone").err
    alone = gaeanet("train", experiment_file(new_head=True), "--data", t3)
    assert (alone.code, "go with init_checkpoint" in alone.err) == (2, True)
    arguments = ["train", str(config), "--data", str(t3), "--init", str(tmp_path / "gone")]
    code = f"import sys\nfrom gaeanet.cli.main import main\nassert main({arguments!r}) == 2\n"
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("what", ["stem", "cells", 2])
def test_frozen_parts_keep_weights_and_statistics(
    gaeanet: Run, experiment_file: Write, tiny_run: TinyRun, t4: Path, tmp_path: Path, what: Any
) -> None:
    config = experiment_file(num_classes=4, freeze=what, epochs=1, layer_decay=0.8)
    assert gaeanet("train", config, "--data", t4, "--init", tiny_run.run).code == 0
    tensors, _ = checkpoint.load(tmp_path / "runs" / "tiny" / "checkpoints" / "latest")
    given = find(tiny_run.run)
    cells = {"stem": 0, "cells": 3, 2: 2}[what]
    frozen = ("stem0.", "stem1.", *(f"cells{kind}.{k}." for kind in ("", "_SE") for k in range(cells)))
    for group in ("model", "ema"):
        for name, value in tensors[group].items():
            same = torch.equal(value, given.tensors(given.preferred).get(name, torch.zeros(0)))
            if name.startswith(frozen):
                assert same, name
            elif name.endswith(("weight", "running_mean")):
                assert not same, name
    assert not any(name.startswith(frozen) for name in tensors["optimizer"])
    assert tensors["optimizer"]["classifier.weight"].shape == (4, given.tensors("raw")["classifier.weight"].shape[1])


def test_layer_wise_rates_are_timms() -> None:
    network = build_network(Hyperparameters(num_classes=3, init_channels=4, layers=4))
    hp = Hyperparameters(layer_decay=0.7)
    ours = {name: group.factor for group in learning_groups(network, hp) for name, _ in group.parameters}
    groups = param_groups_layer_decay(network, layer_decay=0.7, weight_decay_exclude_1d=False)
    theirs = {id(value): group["lr_scale"] for group in groups for value in group["params"]}
    assert ours == pytest.approx({name: theirs[id(value)] for name, value in network.named_parameters()})
    assert ours["classifier.weight"] == 1.0
    assert ours["cells.3.preprocess1.op.1.weight"] == pytest.approx(0.7)
    assert ours["stem0.0.weight"] == pytest.approx(0.7**5)
    assert [group.factor for group in learning_groups(network, Hyperparameters())] == [1.0]
    freeze(network, 4)
    assert {name for group in learning_groups(network, hp) for name, _ in group.parameters} == {
        "classifier.weight",
        "classifier.bias",
    }


@pytest.mark.parametrize("layer_decay", [1.0, 0.7])
def test_norms_and_biases_without_decay_are_timms_and_stay_where_no_gradient_moves_them(layer_decay: float) -> None:
    values = {**NET, "auxiliary": True, "layer_decay": layer_decay, "freeze": "stem", "weight_decay": 0.1}
    experiment = experiment_from({"hyperparameters": {**values, "decay_norms_and_biases": False}})
    state = build_learner(experiment.hyperparameters, Processes())
    groups = state.optimizer.param_groups
    ours = {id(value): group["weight_decay"] for group in groups for value in group["params"]}
    theirs = param_groups_weight_decay(state.network, weight_decay=0.1)
    assert ours == {id(value): group["weight_decay"] for group in theirs for value in group["params"]}
    before = {name: value.clone() for name, value in state.network.named_parameters()}
    for group in groups:
        group["lr"] = 0.5 * group["factor"]
    for value in state.network.parameters():
        value.grad = torch.zeros_like(value)
    state.optimizer.step()
    for name, value in state.network.named_parameters():
        still = value.ndim == 1 or name.startswith(("stem0.", "stem1."))
        assert torch.equal(value, before[name]) is still, name
    norms = {n for n, module in state.network.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    free = {name for name, value in state.network.named_parameters() if value.ndim == 1}
    assert {name for name in free if not name.endswith(".bias")} == {f"{norm}.weight" for norm in norms}


def test_law_2_a_fine_tuned_run_resumes_without_its_parent_and_tells_the_chain(
    gaeanet: Run, experiment_file: Write, tiny_run: TinyRun, t4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = shutil.copytree(tiny_run.run, tmp_path / "parent", symlinks=True)
    options = {"num_classes": 4, "freeze": 1, "layer_decay": 0.5, "decay_norms_and_biases": False, "epochs": 2}
    config = experiment_file(**options)
    assert gaeanet("train", config, "--data", t4, "--init", "parent", "--run-dir", "straight").code == 0
    with monkeypatch.context() as patch:
        patch.setattr("gaeanet.training.recorded.step", interrupted_at(7))
        assert gaeanet("train", config, "--data", t4, "--init", "parent", "--run-dir", "broken").code == 130
    shutil.rmtree(parent)
    again = gaeanet("train", config, "--data", t4, "--init", "parent", "--run-dir", "broken", "--resume")
    assert again.code == 0, again.err
    same_checkpoints(tmp_path / "straight", tmp_path / "broken")
    told = gaeanet("describe", "broken").out
    assert f"parent: {parent / 'checkpoints'}" in told
    assert told.index("parent: ") < told.index("from random weights")
    lineage = json.loads(gaeanet("describe", "broken", "--json").out)["lineage"]
    assert lineage["parent"]["lineage"]["data"]["fingerprint"] != lineage["data"]["fingerprint"]
    assert lineage["revision"] is None or len(lineage["revision"].removesuffix("-dirty")) == 40


@pytest.mark.slow
def test_fine_tuning_beats_training_from_scratch_on_imagenette(
    gaeanet: Run, evaluation_data: Path, tmp_path: Path
) -> None:
    """Ten classes, then three others, with the same steps and the same rate with and without the start.

    Imagenette has ten in all: seven of them and three generated ones make the parent's ten.
    """
    source = evaluation_data / "imagenette"
    if not source.is_dir():
        pytest.skip(f"{source} is absent")
    names = sorted(path.name for path in (source / "train").iterdir())
    _slice(source, tmp_path / "ten", names[:7], 50, 10)
    _generated(tmp_path / "ten", 3, 50, 10)
    _slice(source, tmp_path / "three", names[7:], 40, 40)
    common = {"init_channels": 8, "layers": 4, "image_size": 48, "global_batch_size": 20}
    config = Path(__file__).parents[2] / "benchmarks" / "imagenette.yaml"

    def train(name: str, data: str, *extra: Any, **values: Any) -> float:
        overrides = [f"hyperparameters.{key}={value}" for key, value in {**common, **values}.items()]
        sets = [word for value in overrides for word in ("--set", value)]
        result = gaeanet("train", config, "--data", data, "--run-dir", name, *sets, *extra)
        assert result.code == 0, result.err
        lines = read_log(tmp_path / name, "validation")
        return max(max(line["top1_accuracy"], line.get("ema_top1_accuracy", 0.0)) for line in lines)

    train("parent", "ten", num_classes=10, epochs=4)
    scratch = train("scratch", "three", num_classes=3, epochs=2)
    tuned = train("tuned", "three", "--init", "parent", num_classes=3, epochs=2)
    print(f"from scratch {scratch:.1f} %, fine-tuned {tuned:.1f} %")
    assert tuned > scratch


def _generated(target: Path, classes: int, train: int, val: int) -> None:
    source = SyntheticSource(classes, train, 64, 0)
    for split, count in (("train", train), ("val", val)):
        for index in range(len(source.catalog.split(split))):
            name, number = source.catalog.split(split).name(index).split("/")
            if int(number) < count:
                (target / split / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(source.read(split, index)).save(target / split / name / f"{number}.png")


def _slice(source: Path, target: Path, names: list[str], train: int, val: int) -> None:
    for split, count in (("train", train), ("val", val)):
        for name in names:
            (target / split / name).mkdir(parents=True)
            for image in sorted((source / split / name).iterdir())[:count]:
                (target / split / name / image.name).symlink_to(image)
