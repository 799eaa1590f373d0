"""`gaeanet evaluate`: the logged numbers again, to the last digit, and one clear line for what cannot be evaluated."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import NET, Result, TinyRun, jpeg, make_folder, read_log

from gaeanet.artifacts import checkpoint
from gaeanet.cli.main import main
from gaeanet.data.sources.catalog import imagenet_wnids
from gaeanet.data.sources.evaluation import real_labels
from gaeanet.evaluation.predictions import Predictions, batches_of
from gaeanet.evaluation.score import confusions, per_class, score
from gaeanet.evaluation.statistics import wilson
from gaeanet.models.network import CellNetwork

Run = Callable[..., Result]
LOGGED = ["loss", "top1_accuracy", "top5_accuracy", "ema_loss", "ema_top1_accuracy", "ema_top5_accuracy", "count"]


def evaluated(gaeanet: Run, *arguments: Any) -> dict[str, Any]:
    result = gaeanet("evaluate", *arguments, "--json")
    assert result.code == 0, result.err
    return dict(json.loads(result.out))


def test_field_report_55_a_new_process_elsewhere_finds_the_logged_numbers(tiny_run: TinyRun, tmp_path: Path) -> None:
    line = read_log(tiny_run.run, "validation")[-1]
    moved = shutil.copytree(tiny_run.run / "checkpoints" / "latest", tmp_path / "moved")
    command = [sys.executable, "-m", "gaeanet.cli", "evaluate", str(moved), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, env=environment)
    facts = json.loads(found.stdout)
    assert {key: facts[key] for key in LOGGED} == {key: line[key] for key in LOGGED}
    assert facts["changed"] == []
    assert "the data are those of the run" in facts["notes"][0]


def test_every_name_of_a_checkpoint_leads_to_it(gaeanet: Run, tiny_run: TinyRun, tmp_path: Path) -> None:
    best = (tiny_run.run / "checkpoints" / "best").resolve()
    expected = evaluated(gaeanet, best)
    shutil.copytree(tiny_run.run / "checkpoints", tmp_path / "fetched", symlinks=False)
    for name in ("latest", "best"):
        shutil.rmtree(tmp_path / "fetched" / name)
    for name in (tiny_run.run, tiny_run.run / "checkpoints", best / "manifest.json", best / "model.safetensors"):
        assert evaluated(gaeanet, name) == expected
    assert evaluated(gaeanet, tmp_path / "fetched")["count"] == 21


def test_law_3_counts_and_losses_are_equal_for_any_batch_size(gaeanet: Run, tiny_run: TinyRun) -> None:
    expected = evaluated(gaeanet, tiny_run.run)
    for size in (1, 2, 21, 100):
        facts = evaluated(gaeanet, tiny_run.run, "--batch-size", size)
        for key in LOGGED:
            assert facts[key] == pytest.approx(expected[key], abs=1e-6), (size, key)


def _as_rank(rank: int, port: int, arguments: list[str], output: str) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = str(port)
    sys.stdout = sys.stderr = open(output, "w")  # noqa: SIM115 (the process ends with it)
    sys.exit(main(arguments))


def test_law_3_several_processes_count_exactly(tiny_run: TinyRun, gaeanet: Run, tmp_path: Path) -> None:
    """Two processes as torchrun starts them, forked so that they need not import torch again."""
    expected = evaluated(gaeanet, tiny_run.run)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    outputs = [str(tmp_path / f"{rank}.txt") for rank in range(2)]
    arguments = ["evaluate", str(tiny_run.run), "--json"]
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=_as_rank, args=(k, port, arguments, outputs[k])) for k in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0, Path(outputs[0]).read_text()
    text = Path(outputs[0]).read_text()
    assert json.loads(text[text.index("{") :]) == expected
    assert "{" not in Path(outputs[1]).read_text()


def test_batches_are_cut_as_in_the_run() -> None:
    assert batches_of(10, 4) == [range(0, 4), range(4, 8), range(8, 10)]
    assert batches_of(10, 4, 3) == [range(0, 3), range(3, 6), range(6, 10)]
    for count in range(20):
        for batch in (1, 3, 7):
            for parts in (1, 2, 5):
                assert [k for picks in batches_of(count, batch, parts) for k in picks] == list(range(count))


def test_text_intervals_sizes_and_crops(gaeanet: Run, tiny_run: TinyRun) -> None:
    plain = gaeanet("evaluate", tiny_run.run).out
    assert "raw" in plain
    assert "EMA" in plain
    assert "shorter side to 37, centre 32 x 32" in plain
    assert "not as in the run" not in plain
    other = gaeanet("evaluate", tiny_run.run, "--image-size", 64, "--crop", 1, "--weights", "raw", "--per-class").out
    assert "not as in the run: size 64, 32 in the run" in other
    assert "not as in the run: resize 64, 37 in the run" in other
    assert "EMA" not in other
    assert "n00000002" in other
    facts = evaluated(gaeanet, tiny_run.run, "--weights", "raw")
    low, high = wilson(facts["top1_correct"], 21)
    assert facts["top1_interval"] == [100 * low, 100 * high]
    assert "ema_loss" not in facts


def test_compare_pairs_the_same_images(gaeanet: Run, tiny_run: TinyRun) -> None:
    same = evaluated(gaeanet, tiny_run.run, "--compare", tiny_run.run)["compare"]
    assert (same["only_first"], same["only_second"], same["p_value"]) == (0, 0, 1.0)
    first = checkpoint.checkpoints(tiny_run.run / "checkpoints")[0]
    pair = evaluated(gaeanet, tiny_run.run, "--compare", first)["compare"]
    assert pair["both"] + pair["only_first"] + pair["only_second"] + pair["neither"] == 21
    assert pair["difference"] == pytest.approx(pair["top1_accuracy"][1] - pair["top1_accuracy"][0])
    assert "McNemar p = " in gaeanet("evaluate", tiny_run.run, "--compare", first).out


def test_other_images_of_the_same_classes(gaeanet: Run, tiny_run: TinyRun, tmp_path: Path) -> None:
    some = tmp_path / "some"
    for folder, where in (("n00000002", some / "val"), ("n00000001", some / "val")):
        shutil.copytree(tiny_run.data / "val" / folder, where / folder)
    facts = evaluated(gaeanet, tiny_run.run, "--data", some)
    assert facts["count"] == 14
    assert evaluated(gaeanet, tiny_run.run, "--data", some / "val")["loss"] == facts["loss"]
    assert any("images of 2 of the 3 classes" in note for note in facts["notes"])
    whole = evaluated(gaeanet, tiny_run.run, "--data", tiny_run.data / "val")
    assert whole["loss"] == evaluated(gaeanet, tiny_run.run)["loss"]


def test_law_4_shards_give_the_same_numbers(gaeanet: Run, tiny_run: TinyRun, tmp_path: Path) -> None:
    assert gaeanet("prepare", tiny_run.data, tmp_path / "shards", "--shards").code == 0
    facts, expected = evaluated(gaeanet, tiny_run.run, "--data", tmp_path / "shards"), evaluated(gaeanet, tiny_run.run)
    assert {key: facts[key] for key in LOGGED} == {key: expected[key] for key in LOGGED}
    assert facts["data_fingerprint"] == expected["data_fingerprint"]


def test_generated_images_are_made_again(gaeanet: Run, experiment_file: Callable[..., Path], tmp_path: Path) -> None:
    config = experiment_file(data={"generated_per_class": 20}, epochs=1, num_classes=5, seed=3, ema_decay=0.0)
    assert gaeanet("train", config).code == 0
    line = read_log(tmp_path / "runs" / "tiny", "validation")[-1]
    facts = evaluated(gaeanet, "runs/tiny")
    assert (facts["loss"], facts["count"], facts["generated"]) == (line["loss"], 10, True)
    assert "[generated images]" in gaeanet("evaluate", "runs/tiny").out


def write_checkpoint(path: Path, classes: Any = ("a", "b", "c"), **changes: Any) -> CellNetwork:
    """A checkpoint of an untrained network; `changes` go into its hyperparameters, not into the network."""
    torch.manual_seed(0)
    network = CellNetwork(3, init_channels=4, layers=3, activation="swish", squeeze_excite=True)
    state = {"hyperparameters": {**NET, **changes}, "classes": classes and list(classes), "batches": 0}
    checkpoint.write(path, 0, {"model": network.state_dict()}, state)
    return network


class _Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("executed"),)


def test_each_wrong_file_gets_one_clear_line(gaeanet: Run, tiny_run: TinyRun, tmp_path: Path) -> None:
    t4 = make_folder(tmp_path / "t4", classes=4, train=1, val=1)
    write_checkpoint(tmp_path / "other", layers=4)
    write_checkpoint(tmp_path / "bare", classes=None)
    write_checkpoint(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    torch.save({"state_dict": load_file(tmp_path / "other" / "model.safetensors"), "x": _Evil()}, tmp_path / "evil.pt")
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.pt")
    torch.save(load_file(tmp_path / "other" / "model.safetensors"), tmp_path / "half.pt")
    (tmp_path / "half.pt").write_bytes((tmp_path / "half.pt").read_bytes()[:500])
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "net.onnx").write_text("hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "config.json").write_text(json.dumps({"architecture": "resnet50"}))
    save_file({"a": torch.zeros(1)}, tmp_path / "timm" / "model.safetensors")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "manifest.json").write_text("[]")
    val = ["--data", tiny_run.data]
    for arguments, message in [
        (["nowhere"], "nowhere: no such file or directory: name a checkpoint"),
        (["empty"], "empty: no checkpoint, run or export there"),
        (["text.txt"], "text.txt: not a checkpoint"),
        (["net.onnx"], "net.onnx: is an ONNX file"),
        (["evil.pt"], "evil.pt: refused, since reading it would execute code"),
        (["half.pt"], "half.pt: "),
        (["resnet.pt"], "resnet.pt: no classifier.weight: not a network of the DARTS family"),
        (["timm"], "timm: resnet50, which gaeanet did not export"),
        (["odd"], "odd: not a gaeanet checkpoint, or its manifest.json is damaged"),
        (["cut", "--data", "t4"], "t4, against the checkpoint's classes: the classes found lack 3 classes (a, b, c)"),
        (["bare"], "came without data: name images with --data"),
        (["bare", *val], "the weights came without a class table"),
        (["bare", "--data", t4], "4 classes, the network has 3 outputs"),
        ([tiny_run.run, "--data", t4], "the classes found have 1 class (n00000003) more than its table says"),
        ([tiny_run.run, "--data", t4 / "val"], "n00000003 is not in the checkpoint's table of 3 classes"),
        ([tiny_run.run, "--data", "gone"], "gone does not exist"),
        ([tiny_run.run, "--data", ""], "--data is empty"),
        ([tiny_run.run, "--image-size", "16"], "--image-size 16: the network needs 32 pixels or more"),
        ([tiny_run.run, "--crop", "1.5"], "--crop 1.5: the fraction"),
        ([tiny_run.run, "--batch-size", "0"], "--batch-size 0: must be 1 or more"),
        ([tiny_run.run, "--compare", "cut"], "cut: has other classes"),
        (["bare", "--weights", "ema", *val], "bare: holds no ema weights, only raw"),
        (["other", *val, "--assume-classes"], "against the checkpoint's classes"),
        (["bare", *val, "--assume-classes", "--compare", "nowhere"], "nowhere: no such file"),
    ]:
        result = gaeanet("evaluate", *arguments)
        assert result.code == 2, (arguments, result.out)
        assert message in result.err, (arguments, result.err)
        assert result.err.count("\n") == 1
    assert not (tmp_path / "executed").exists()
    data = make_folder(tmp_path / "abc", train=1, val=1)
    for split in ("train", "val"):
        for letter, folder in zip("abc", sorted((data / split).iterdir())):
            folder.rename(folder.with_name(letter))
    for name, message in [
        ("cut", "model.safetensors: damaged (wrong checksum)"),
        ("other", "other: its raw weights are not those of the network that it describes: missing key"),
    ]:
        result = gaeanet("evaluate", name, "--data", data)
        assert result.code == 2
        assert message in result.err
        assert result.err.count("\n") == 1
    assert gaeanet("evaluate", "bare", "--data", data, "--assume-classes").code == 0


def test_refusals_come_without_torch(tiny_run: TinyRun, tmp_path: Path) -> None:
    arguments = ["evaluate", str(tiny_run.run), "--data", str(tmp_path / "gone")]
    code = f"import sys\nfrom gaeanet.cli.main import main\nassert main({arguments!r}) == 2\n"
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_damaged_validation_image_is_named(gaeanet: Run, tiny_run: TinyRun, tmp_path: Path) -> None:
    data = shutil.copytree(tiny_run.data, tmp_path / "data")
    image = next((data / "val").rglob("*.JPEG"))
    image.write_bytes(jpeg((1, 2, 3), (40, 40))[:300])
    result = gaeanet("evaluate", tiny_run.run, "--data", data)
    assert result.code == 1
    assert f"{image}: damaged image" in result.err
    assert result.err.count("\n") == 1


LABELS = np.array([0, 0, 1, 1, 2, 2])
GUESSES = np.array([[0, 1], [1, 0], [1, 0], [0, 2], [0, 1], [0, 2]])
FOUND = Predictions(LABELS, GUESSES, np.array([0.9] * 6), np.array([0.5] * 6, np.float32))


def test_tables_by_hand() -> None:
    rows = per_class({"raw": FOUND}, ["a", "b", "c"], ["A", "B", "C"])
    assert [row["top1_correct"] for row in rows] == [1, 1, 0]
    assert [(row["taken_for"], row["taken_for_count"]) for row in rows] == [("b", 1), ("a", 1), ("a", 2)]
    assert confusions(FOUND, 2) == [(2, 0, 2), (0, 1, 1)]
    numbers = score(FOUND, real=[[0], [], [2, 1], [1, 2], [5], [2, 9]])
    assert (numbers["top1_correct"], numbers["top5_correct"], numbers["loss"]) == (2, 4, 0.5)
    assert (numbers["real_count"], numbers["real_top1_correct"], numbers["real_top5_correct"]) == (5, 2, 4)


def test_real_labels_are_timms() -> None:
    from timm.data import RealLabelsImagenet

    from gaeanet.data.sources.catalog import Catalog, Split

    names = [(f"{imagenet_wnids()[0]}/ILSVRC2012_val_{n:08d}.JPEG", 0) for n in range(1, 50_001)]
    catalog = Catalog(imagenet_wnids(), Split.of([]), Split.of(names))
    theirs = RealLabelsImagenet([name for name, _ in names]).real_labels
    assert real_labels(catalog) == [theirs[name.rsplit("/", 1)[1]] for name, _ in names]
    strange = Catalog(imagenet_wnids(), Split.of([]), Split.of([("x/cat.JPEG", 0)]))
    assert real_labels(strange) is None
    assert real_labels(Catalog(("a", "b"), Split.of([]), Split.of(names[:3]))) is None
