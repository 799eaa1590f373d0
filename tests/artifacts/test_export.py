"""Exports: other tools load them and get the same outputs; what they hold says what it is and where it came from."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lives
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_dataset, create_loader, resolve_data_config
from tiny import NET, Result, TinyRun, make_folder, read_log

import gaeanet.models.registry
from gaeanet.artifacts import checkpoint
from gaeanet.artifacts.export import ONNX_FROM, export, timm_crop_pct
from gaeanet.artifacts.find import find, unique_names
from gaeanet.cells.zoo import ZOO
from gaeanet.config.experiment import Hyperparameters
from gaeanet.data.images.transforms import normalize
from gaeanet.data.sources.evaluation import open_evaluation_data
from gaeanet.data.sources.synthetic import SyntheticSource
from gaeanet.evaluation.score import Options, predictions_of
from gaeanet.models.build import build_network
from gaeanet.models.folding import fold_batch_norm
from gaeanet.models.network import CellNetwork
from gaeanet.runtime.processes import Processes

Run = Callable[..., Result]
Write = Callable[..., Path]
assert gaeanet.models.registry  # registers the networks with timm


@pytest.fixture(scope="module")
def torchrun_run(tmp_path_factory: pytest.TempPathFactory, tiny_run: TinyRun) -> TinyRun:
    """A run that two processes trained with torchrun, from another run's weights with its first cell frozen."""
    root = tmp_path_factory.mktemp("torchrun")
    data = make_folder(root / "data", classes=4)
    config = root / "tiny.yaml"
    values = {**NET, "num_classes": 4, "epochs": 1, "auxiliary": True, "drop_path_prob": 0.2, "freeze": 1}
    block = {"num_workers_train": 0, "num_workers_val": 0}
    config.write_text(json.dumps({"name": "tiny", "data": block, "hyperparameters": values}))
    command = ["torchrun", "--standalone", "--nproc_per_node", "2"]
    command += [str(Path(__file__).parents[2] / "model_def.py"), str(config), "--data", str(data)]
    command += ["--init", str(tiny_run.run)]
    code, said = lives.run([*command, "--run-dir", str(root / "run")], root / "said")
    assert code == 0, said
    return TinyRun(root / "run", data)


@pytest.mark.slow
def test_field_report_46_frozen_cells_train_with_several_processes(torchrun_run: TinyRun, tiny_run: TinyRun) -> None:
    assert len(read_log(torchrun_run.run, "validation")) == 1
    before, after = find(tiny_run.run), find(torchrun_run.run)
    weights, given = after.tensors("raw"), before.tensors(before.preferred)
    assert torch.equal(weights["cells.0.preprocess1.op.1.weight"], given["cells.0.preprocess1.op.1.weight"])
    assert not torch.equal(weights["cells.1.preprocess1.op.1.weight"], given["cells.1.preprocess1.op.1.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["raw", "ema"])
def test_field_report_56_onnx_of_a_torchrun_run_at_batch_1_and_3(
    gaeanet: Run, torchrun_run: TinyRun, tmp_path: Path, kind: str
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    result = gaeanet("export", torchrun_run.run, "net.onnx", "--format", "onnx", "--weights", kind)
    if torch.__version__ < ONNX_FROM:
        assert result.code == 2
        assert result.err.endswith(f"this is {torch.__version__}: use another, or --format torch-export\n")
        return
    assert result.code == 0, result.err
    assert f"onnx, {kind} weights" in result.out
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    assert len(session.get_outputs()) == 1
    trained = find(torchrun_run.run)
    network = trained.network(kind)
    for batch in (1, 3):
        images = torch.randn(batch, 3, 32, 32)
        (logits,) = session.run(None, {"images": images.numpy()})
        with torch.inference_mode():
            assert (torch.from_numpy(logits) - network(images)).abs().max() < 1e-4
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == [f"n{k:08d}" for k in range(4)]
    assert json.loads(about["preprocessing"])["center_crop"] == 32
    described = gaeanet("describe", "net.onnx")
    assert f"export: onnx, {kind} weights" in described.out
    assert "from random weights" in described.out


@pytest.mark.slow
def test_torch_export_has_a_dynamic_batch_and_folded_norms(gaeanet: Run, tiny_run: TinyRun, tmp_path: Path) -> None:
    result = gaeanet("export", tiny_run.run, "net", "--format", "torch-export", "--fold-batchnorm")
    assert result.code == 0, result.err
    assert "batch norms folded" in result.out
    program = torch.export.load(tmp_path / "net" / "model.pt2").module()
    trained = find(tiny_run.run)
    images = torch.randn(7, 3, 32, 32)
    with torch.no_grad():
        assert (program(images) - trained.network(trained.preferred)(images)).abs().max() < 1e-4
    assert "batch norm folded" in gaeanet("describe", "net").out
    assert sorted(path.name for path in (tmp_path / "net").iterdir()) == ["classes.csv", "model.pt2"]


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_folding_changes_no_output_and_leaves_no_batch_norm(name: str, stem: str) -> None:
    torch.manual_seed(0)
    network = CellNetwork(3, genotype=name, init_channels=4, layers=3, squeeze_excite=True, stem=stem).double()
    images = torch.randn(4, 3, 33, 33, dtype=torch.float64)
    network.train()(images)  # statistics that are not those of the start
    expected = network.eval()(images)
    assert fold_batch_norm(network) > 10
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    assert (network(images) - expected).abs().max() < 1e-10


def test_timm_builds_a_stem_of_stride_1(gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path) -> None:
    config = experiment_file(epochs=1, stem_stride=1)
    assert gaeanet("train", config, "--data", t3, "--run-dir", "fine").code == 0
    result = gaeanet("export", "fine", "out")
    assert "largest difference of a logit 0.00e+00 at batch 1" in result.out, result.err
    network = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, features_only=True)
    assert [tap.shape[2] for tap in network(torch.randn(1, 3, 64, 64))] == [64, 32, 16, 8, 4]
    assert "imagenet stem of stride 1" in gaeanet("describe", config).out


@pytest.mark.parametrize("kind", ["raw", "ema"])
def test_timm_builds_the_exported_network_with_equal_outputs(
    gaeanet: Run, tiny_run: TinyRun, tmp_path: Path, kind: str
) -> None:
    result = gaeanet("export", tiny_run.run, "out", "--weights", kind)
    assert result.code == 0, result.err
    assert "largest difference of a logit 0.00e+00 at batch 1, 0.00e+00 at batch 3" in result.out
    network = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        ours = find(tiny_run.run).network(kind).to(memory_format=torch.contiguous_format)
        assert torch.equal(network(images), ours(images))
    assert network.pretrained_cfg["label_names"] == ["n00000000", "n00000001", "n00000002"]
    assert timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, num_classes=7).num_classes == 7
    evaluated = [json.loads(gaeanet("evaluate", place, "--json").out) for place in ("out", tiny_run.run)]
    prefix = "" if kind == "raw" else "ema_"
    for metric in ("loss", "top1_accuracy", "top5_accuracy"):
        assert evaluated[0][prefix + metric] == evaluated[1][prefix + metric]
    assert "Where it came from" in gaeanet("describe", "out").out


def validated_by_timm(export_dir: Path, images: Path, batch: int = 8) -> dict[str, Any]:
    """What timm's validate.py does: its own data set, transforms and loader; right answers, each guess and its lead."""
    network = timm.create_model(f"local-dir:{export_dir}", pretrained=True).eval()
    config = resolve_data_config({}, model=network, use_test_size=True)
    dataset = create_dataset("", root=str(images), split="validation", is_training=False)
    loader = create_loader(
        dataset,
        input_size=config["input_size"],
        batch_size=batch,
        use_prefetcher=False,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        num_workers=0,
    )
    guesses, leads, top1, top5, count = [], [], 0, 0, 0
    with torch.inference_mode():
        for x, labels in loader:
            logits, found = network(x).topk(min(5, network.num_classes), dim=1)
            right = found == labels[:, None]
            leads += (logits[:, 0] - logits[:, 1]).tolist()
            guesses += found[:, 0].tolist()
            top1, top5, count = top1 + int(right[:, 0].sum()), top5 + int(right.any(1).sum()), count + len(labels)
    return {"top1": top1, "top5": top5, "count": count, "guesses": guesses, "leads": leads}


# timm's data set leaves closing its files to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_timms_validation_agrees_to_the_image(gaeanet: Run, tmp_path: Path) -> None:
    """A network that distinguishes images, though it has learnt nothing, on images of many sizes, at 48 pixels.

    Pillow, which timm resizes with, and torchvision round some pixels differently, by one level of 255: a guess whose
    logit leads by next to nothing may be another.
    """
    torch.manual_seed(0)
    images = SyntheticSource(5, 120, 90, 0)
    for index in range(len(images.catalog.val)):
        name, number = images.catalog.val.name(index).split("/")
        (tmp_path / "val" / name).mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(images.read("val", index)).resize((60 + 3 * (index % 17), 110 - 5 * (index % 11)))
        picture.save(tmp_path / "val" / name / f"{number.zfill(2)}.JPEG", quality=90)
    hp = Hyperparameters(num_classes=5, init_channels=8, layers=3, image_size=48)
    network = build_network(hp).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # plain means of all batches
    pixels = [torch.from_numpy(images.read("val", k)[21:69, 21:69]).permute(2, 0, 1) for k in range(60)]
    inputs = normalize(torch.stack(pixels))
    with torch.no_grad():
        network(inputs)
        network.eval().classifier.bias -= network(inputs).mean(0)  # no class is the favourite
    state = {"hyperparameters": hp.model_dump(), "classes": list(images.catalog.classes), "batches": 0}
    checkpoint.write(tmp_path / "checkpoint", 0, {"model": network.state_dict()}, state)

    assert gaeanet("export", "checkpoint", "out").code == 0
    theirs = validated_by_timm(tmp_path / "out", tmp_path / "val")
    ours = json.loads(gaeanet("evaluate", "checkpoint", "--data", "val", "--json").out)
    assert (theirs["top5"], theirs["count"]) == (ours["top5_correct"], 60)
    trained = find(tmp_path / "checkpoint")
    source, _ = open_evaluation_data(trained.state, trained.hyperparameters, "val")
    found = predictions_of(trained, source, Options(["raw"], workers=0), Processes())["raw"]
    other = [k for k, guess in enumerate(found.guesses[:, 0].tolist()) if guess != theirs["guesses"][k]]
    assert abs(theirs["top1"] - ours["top1_correct"]) <= len(other) <= 1
    assert all(theirs["leads"][k] < 0.01 for k in other), [theirs["leads"][k] for k in other]
    assert len(set(theirs["guesses"])) > 2, "a network that always says the same would prove nothing"


def test_onnx_is_refused_where_pytorchs_exporter_is_too_old(
    gaeanet: Run, tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gaeanet.artifacts.export.ONNX_FROM", "999.0")
    result = gaeanet("export", tiny_run.run, "net.onnx", "--format", "onnx")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "--format onnx needs PyTorch 999.0 or later, this is " in result.err
    assert list(tmp_path.iterdir()) == []


def test_timm_resizes_to_the_same_pixel() -> None:
    for size in range(32, 600):
        resize = round(size / 0.875)
        assert math.floor(size / timm_crop_pct(size, resize)) == resize


def test_field_report_56_the_network_stays_in_its_mode_and_nothing_is_left_of_a_failure(
    gaeanet: Run, tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gaeanet.artifacts.export.TOLERANCE", -1.0)
    result = gaeanet("export", tiny_run.run, "out")
    assert result.code == 1
    assert "out: not written, since its outputs differ" in result.err
    assert result.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_field_report_56_without_the_package_the_install_line_is_said(
    gaeanet: Run, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else real(name))
    result = gaeanet("export", tiny_run.run, "out", "--format", "onnx")
    assert result.code == 2
    assert "needs the package onnxruntime: pip install 'gaeanet[export]'" in result.err


def test_each_wrong_request_gets_one_clear_line(gaeanet: Run, tiny_run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for arguments, message in [
        (["nowhere", "out"], "nowhere: no such file or directory"),
        ([tiny_run.run, "there"], "there exists already"),
        ([tiny_run.run, "out", "--fold-batchnorm"], "use onnx or torch-export"),
        ([tiny_run.run, "out", "--format", "tflite"], "invalid choice: 'tflite'"),
        ([tiny_run.run / "config.yaml", "out"], "not a checkpoint"),
    ]:
        result = gaeanet("export", *arguments)
        assert result.code == 2, arguments
        assert message in result.err
        assert result.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_field_report_25_two_classes_of_one_name_stay_two(tmp_path: Path) -> None:
    keys = ["n02012849", "n03126707", "n03710637", 'n0,"1"']
    names = ["crane", "crane", "maillot", 'tank suit, "maillot"']
    assert unique_names(tuple(keys), names) == ("crane (n02012849)", "crane (n03126707)", *names[2:])
    hp = Hyperparameters(num_classes=4, init_channels=4, layers=3, image_size=32)
    network = CellNetwork(4, init_channels=4, layers=3, activation="swish", squeeze_excite=True)
    state = {"hyperparameters": hp.model_dump(), "classes": keys, "class_names": names, "batches": 0}
    checkpoint.write(tmp_path / "checkpoint", 0, {"model": network.state_dict()}, state)
    export(find(tmp_path / "checkpoint"), tmp_path / "out", "timm", "raw")
    with open(tmp_path / "out" / "classes.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == keys
    assert [row["name"] for row in rows] == ["crane (n02012849)", "crane (n03126707)", *names[2:]]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["label_names"] == keys
    assert len(config["label_descriptions"]) == 4
    assert find(tmp_path / "out").classes == tuple(keys)


def test_an_export_of_generated_images_says_so(
    gaeanet: Run, experiment_file: Callable[..., Path], tmp_path: Path
) -> None:
    config = experiment_file(data={"generated_per_class": 10}, epochs=1, global_batch_size=15)
    assert gaeanet("train", config).code == 0
    assert "trained on GENERATED IMAGES" in gaeanet("export", "runs/tiny", "out").out
    assert "GENERATED IMAGES" in gaeanet("describe", "out").out
