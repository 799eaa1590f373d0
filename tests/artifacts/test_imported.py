"""Weights from elsewhere: prefixes, recognition of the cell, and refusal of what would execute code."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import Result

from gaeanet.artifacts import checkpoint
from gaeanet.cells.zoo import ZOO
from gaeanet.config.experiment import Hyperparameters
from gaeanet.models.build import build_network
from gaeanet.models.network import CellNetwork

Run = Callable[..., Result]


def network(genotype: str = "gaea-imagenet", **options: Any) -> CellNetwork:
    return CellNetwork(**{"num_classes": 7, "genotype": genotype, "init_channels": 4, "layers": 5, **options})


@pytest.mark.parametrize("name", ZOO)
def test_every_published_cell_is_recognised_from_names_and_shapes(gaeanet: Run, tmp_path: Path, name: str) -> None:
    original = network(name, auxiliary=True)
    torch.save(original.state_dict(), tmp_path / "w.pt")
    result = gaeanet("import", "w.pt", "out")
    assert result.code == 0, result.err
    assert ZOO[name].genotype.fingerprint in result.out
    tensors, state = checkpoint.load(tmp_path / "out")
    assert Hyperparameters(**state["hyperparameters"]).cell == ZOO[name].genotype
    for key, value in original.state_dict().items():
        assert torch.equal(tensors["model"][key], value)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module."])
@pytest.mark.parametrize("container", [None, "state_dict", "model"])
def test_prefixes_in_any_nesting_are_dropped(gaeanet: Run, tmp_path: Path, prefix: str, container: str | None) -> None:
    original = network()
    weights: Any = {prefix + key: value for key, value in original.state_dict().items()}
    weights = {key.replace("cells.1.", "cells.1._orig_mod."): value for key, value in weights.items()}
    torch.save({container: weights, "epoch": 3} if container else weights, tmp_path / "w.pt")
    assert gaeanet("import", "w.pt", "out").code == 0
    tensors, _ = checkpoint.load(tmp_path / "out")
    assert tensors["model"].keys() == original.state_dict().keys()


def test_what_old_scripts_keep_beside_the_weights_is_read(gaeanet: Run, tmp_path: Path) -> None:
    extras = {"best_acc_top1": np.float64(74.2), "args": argparse.Namespace(lr=0.5), "optimizer": {"state": {}}}
    torch.save({**extras, "state_dict": network().state_dict()}, tmp_path / "w.pth.tar")
    result = gaeanet("import", "w.pth.tar", "out")
    assert result.code == 0, result.err


@pytest.mark.parametrize(
    "options", [{"stem": "cifar"}, {"squeeze_excite": True}, {"auxiliary": True, "auxiliary_second_norm": False}]
)
def test_the_shape_of_the_network_is_read_from_the_weights(
    gaeanet: Run, tmp_path: Path, options: dict[str, Any]
) -> None:
    original = network(**options)
    weights = {
        key.replace("stem0.", "stem.") if "stem" in options else key: v for key, v in original.state_dict().items()
    }
    save_file(weights, tmp_path / "w.safetensors")
    result = gaeanet("import", "w.safetensors", "out", "--genotype", "gaea-imagenet", "--activation", "swish")
    assert result.code == 0, result.err
    tensors, state = checkpoint.load(tmp_path / "out")
    rebuilt = build_network(Hyperparameters(**state["hyperparameters"]))
    rebuilt.load_state_dict(tensors["model"])
    assert state["hyperparameters"]["activation"] == "swish"
    assert state["hyperparameters"]["layers"] == 5
    assert state["hyperparameters"]["stem"] == options.get("stem", "imagenet")


class _Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("executed"),)


def test_a_file_that_would_execute_code_is_refused(gaeanet: Run, tmp_path: Path) -> None:
    torch.save({"state_dict": network().state_dict(), "extra": _Evil()}, tmp_path / "evil.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(_Evil()))
    torch.save(network(), tmp_path / "whole.pt")
    for name in ("evil.pt", "raw.pt", "whole.pt"):
        result = gaeanet("import", name, "out")
        assert result.code == 2
        assert "refused, since reading it would execute code" in result.err
        assert result.err.count("\n") == 1
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "out").exists()


def test_each_wrong_file_gets_one_clear_line(gaeanet: Run, tmp_path: Path) -> None:
    weights = network().state_dict()
    (tmp_path / "junk.pt").write_bytes(b"hello")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "junk.safetensors").write_bytes(b"hello")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pt")
    torch.save({k: v for k, v in weights.items() if "cells.2._ops.2" not in k}, tmp_path / "lacking.pt")
    torch.save({**weights, "module.classifier.bias": weights["classifier.bias"]}, tmp_path / "twice.pt")
    torch.save(weights, tmp_path / "good.pt")
    (tmp_path / "there").mkdir()
    for arguments, message in [
        (["nowhere.pt", "out"], "cannot be read: no such file or directory"),
        (["junk.pt", "out"], "junk.pt: "),
        (["empty.pt", "out"], "empty.pt: "),
        (["junk.safetensors", "out"], "not a file of weights, or damaged"),
        (["list.pt", "out"], "holds no state dict"),
        (["resnet.pt", "out"], "no classifier.weight: not a network of the DARTS family"),
        (["lacking.pt", "out"], "no published cell has its names and shapes: give the cell with --genotype"),
        (["lacking.pt", "out", "--genotype", "gaea-imagenet"], "not the cell gaea-imagenet: lacks cells.2._ops.2"),
        (["good.pt", "out", "--genotype", "darts-v2"], "not the cell darts-v2: lacks"),
        (["good.pt", "out", "--genotype", "dart-v2"], "did you mean darts-v2"),
        (["twice.pt", "out"], "both mean classifier.bias"),
        (["good.pt", "there"], "there exists already"),
    ]:
        result = gaeanet("import", *arguments)
        assert result.code == 2, arguments
        assert message in result.err
        assert result.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def odd_weights() -> dict[str, tuple[dict[str, torch.Tensor], str]]:
    whole = dict(network().state_dict())

    def without(*names: str) -> dict[str, torch.Tensor]:
        return {key: value for key, value in whole.items() if not key.startswith(names)}

    def changed(name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
        return {**whole, name: value}

    head = whole["classifier.weight"]
    return {
        "no second stem": (without("stem1.1.weight"), "no stem1.1.weight"),
        "no first stem": (without("stem0."), "no stem0.3.weight"),
        "no head": (without("classifier"), "no classifier.weight"),
        "one class": (changed("classifier.weight", head[:1]), "has 1 output"),
        "no classes": (changed("classifier.weight", head[:0]), "classifier.weight has shape [0,"),
        "flat head": (changed("classifier.weight", head[0]), "classifier.weight has shape"),
        "scalar stem": (changed("stem0.3.weight", torch.tensor(1.0)), "stem0.3.weight has shape []"),
        "odd width": (changed("stem0.3.weight", torch.ones(7, 3, 3, 3)), "init_channels"),
        "a hole": (without("cells.2."), "no cells.2..."),
        "no cells": (without("cells."), "no cells.0..."),
        "cell 20000": (changed("cells.20000.x", head), "no cells."),
        "cell without end": (changed(f"cells.{'9' * 500}.x", head), "no cells."),
        "an empty tensor": (changed("cells.0.preprocess0.op.1.weight", torch.ones(0)), "is empty"),
        "201 cells": ({**whole, **{f"cells.{k}.x": head for k in range(201)}}, "more than 200 cells"),
    }


@pytest.mark.parametrize("name", odd_weights())
def test_field_report_94_weights_that_lack_something_are_one_line(gaeanet: Run, tmp_path: Path, name: str) -> None:
    weights, message = odd_weights()[name]
    torch.save(weights, tmp_path / "odd.pt")
    for command in (("import", "odd.pt", "out", "--genotype", "gaea-imagenet"), ("evaluate", "odd.pt", "--data", ".")):
        result = gaeanet(*command)
        assert result.code == 2
        assert message in result.err
        assert result.err.count("\n") == 1
        assert "Traceback" not in result.err
