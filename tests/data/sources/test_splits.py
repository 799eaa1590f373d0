"""A share of the training split in place of the validation split: which images it has, and that everything says so."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from logs import write_run
from tiny import Result, make_folder, read_log

from gaeanet.artifacts.checkpoint import load
from gaeanet.config.experiment import Experiment, Hyperparameters, experiment_from
from gaeanet.data.prepare.prepare import prepare
from gaeanet.data.sources.catalog import Split
from gaeanet.data.sources.evaluation import open_evaluation_data
from gaeanet.data.sources.open import open_location, open_source
from gaeanet.data.sources.source import Source
from gaeanet.data.sources.splits import split_by_name, with_minival
from gaeanet.errors import RequestError
from gaeanet.evaluation.score import to_text
from gaeanet.report.page import RunFacts, page
from gaeanet.report.recipes import against_original

Run = Callable[..., Result]
Write = Callable[..., Path]

FROZEN = ["c0/7.jpg", "c0/21.jpg", "c0/28.jpg", "c1/5.jpg", "c1/21.jpg", "c1/28.jpg"]


def names(split: Split) -> list[str]:
    return [split.name(k) for k in range(len(split))]


def split_of(counts: list[int]) -> Split:
    return Split.of((f"c{label}/{k}.jpg", label) for label, count in enumerate(counts) for k in range(count))


@given(st.lists(st.integers(0, 60), min_size=1, max_size=6), st.floats(0.01, 0.99))
def test_a_share_of_each_class_is_held_out_and_the_rest_is_all_others(counts: list[int], share: float) -> None:
    split = split_of(counts)
    held_out, rest = split_by_name(split, len(counts), share)
    assert sorted([*held_out, *rest]) == list(range(sum(counts)))
    assert np.all(np.diff(held_out) > 0)
    assert np.all(np.diff(rest) > 0)
    found = np.bincount(split.labels[held_out], minlength=len(counts))
    assert np.all(np.abs(found - share * np.array(counts)) <= 0.5 + 1e-6)


def test_the_rule_never_changes_between_versions_and_one_image_moves_one_other_at_most() -> None:
    split = split_of([30, 30])
    held_out, _ = split_by_name(split, 2, 0.1)
    assert [split.name(k) for k in held_out] == FROZEN
    for gone in range(60):
        left = Split.of((split.name(k), int(split.labels[k])) for k in range(60) if k != gone)
        now = {left.name(k) for k in split_by_name(left, 2, 0.1)[0]}
        assert len(set(FROZEN) - {split.name(gone)} - now) <= 1
        assert len(now - set(FROZEN)) <= 1


@given(st.lists(st.integers(0, 20), min_size=1, max_size=4), st.data())
def test_some_samples_of_a_split_are_a_split(counts: list[int], data: st.DataObject) -> None:
    split = split_of(counts)
    chosen = data.draw(st.sets(st.sampled_from(range(len(split))))) if len(split) else set()
    picked = np.array(sorted(chosen), np.int64)
    taken = split.take(picked)
    assert names(taken) == [split.name(k) for k in picked]
    assert taken.labels.tolist() == split.labels[picked].tolist()


def test_law_4_folder_and_shards_hold_the_same_images_out(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", train=10)
    prepare(str(root), tmp_path / "shards", shards=True, shard_bytes=30_000)
    folder, shards = (with_minival(open_location(str(tmp_path / name)), 0.2) for name in ("data", "shards"))
    assert names(folder.catalog.val) == names(shards.catalog.val)
    assert names(folder.catalog.train) == names(shards.catalog.train)
    assert folder.epoch_order(1, 2).tolist() == shards.epoch_order(1, 2).tolist()
    for split, count in (("train", 24), ("val", 6)):
        everything = range(count)
        assert len(folder.catalog.split(split)) == count
        assert list(folder.fetch(split, everything)) == list(shards.fetch(split, everything))
        assert folder.path(split, 0) == str(root / "train" / folder.catalog.split(split).name(0))
        assert folder.size(split, 1) == shards.size(split, 1) == len(shards.read(split, 1))
    assert folder.fingerprint == open_location(str(root)).fingerprint != folder.catalog.fingerprint
    again = pickle.loads(pickle.dumps(shards))
    assert (names(again.catalog.val), again.read("val", 3)) == (names(shards.catalog.val), shards.read("val", 3))
    assert len(pickle.dumps(shards)) < len(pickle.dumps(shards.catalog))


def opened(**values: Any) -> Source:
    tree = {
        "data": {"minival": 0.1, "generated_per_class": 30},
        "hyperparameters": {"num_classes": 3, "image_size": 32, "global_batch_size": 9, **values},
    }
    return open_source(experiment_from(tree))


def test_the_seed_of_a_run_has_no_say_and_nothing_is_in_both() -> None:
    one, other = opened(seed=0), opened(seed=1)
    assert names(one.catalog.val) == names(other.catalog.val)
    assert (len(one.catalog.train), len(one.catalog.val)) == (81, 9)
    assert not set(names(one.catalog.train)) & set(names(one.catalog.val))


@pytest.mark.parametrize(
    ("data", "values", "message"),
    [
        (
            {"minival": 0.96},
            {},
            "data.minival is 0.96, but class generated-0 of generated images has 10 training images, and that leaves "
            "none to train on: lower it, or set it to null",
        ),
        ({"minival": 0.04}, {}, "has 10 training images, and that holds none of them out: raise it, or set it to null"),
        ({"minival": 1.0}, {}, "data.minival: must be a number > 0 and < 1, or null, got 1.0"),
        ({"minival": 0.5}, {"global_batch_size": 16}, "more than the 15 training images of generated images beside"),
    ],
)
def test_what_cannot_be_held_out_is_refused(data: dict[str, Any], values: dict[str, Any], message: str) -> None:
    tree = {
        "data": {"generated_per_class": 10, **data},
        "hyperparameters": {"num_classes": 3, "image_size": 32, "global_batch_size": 8, **values},
    }
    with pytest.raises(RequestError) as refused:
        open_source(experiment_from(tree))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_everything_says_what_the_validation_numbers_are_of(
    gaeanet: Run, experiment_file: Write, tmp_path: Path
) -> None:
    data = make_folder(tmp_path / "data", train=10)
    config = experiment_file(data={"minival": 0.2}, epochs=1)
    result = gaeanet("train", config, "--data", data, "--run-dir", "run")
    assert result.code == 0, result.err
    assert "3 classes, 24 training and 6 validation images" in result.out
    assert "minival: the validation images are 20 % of the training split, held out of training class by" in result.out
    assert "validation on 6 images held out of training: loss" in result.out
    assert "weights, on 20 % of the training split held out" in result.out
    run = tmp_path / "run"
    assert {line["minival"] for line in read_log(run)} == {0.2}
    _, state = load(run / "checkpoints" / "latest")
    assert state["data"]["settings"]["minival"] == state["lineage"]["data"]["minival"] == 0.2
    assert "Validated on 20 % of the training split, not on the validation split." in (run / "report.html").read_text()
    assert "but for 20 % of the training split, on which it was validated" in gaeanet("describe", "run").out

    real = json.loads(gaeanet("evaluate", "run", "--json").out)
    assert real["count"] == 9
    assert any("this is the validation split" in note for note in real["notes"])
    assert any("the data are those of the run" in note for note in real["notes"])
    logged = read_log(run, "validation")[-1]
    again = json.loads(gaeanet("evaluate", "run", "--minival", "--json").out)
    for key in ("count", "loss", "top1_accuracy", "ema_loss", "ema_top1_accuracy", "minival"):
        assert again[key] == logged[key], key
    assert "20 % of the training split, held out in the run" in next(islice(to_text(again, ["raw", "ema"]), 1, None))
    assert gaeanet("report", "run").code == 0

    refused = gaeanet("train", experiment_file(epochs=1), "--data", data, "--run-dir", "run", "--resume")
    assert refused.code == 2
    assert "data.minival is null, but the run to resume in run has 0.2" in refused.err


def test_a_minival_is_asked_for_where_there_is_none(t3: Path) -> None:
    state: dict[str, Any] = {"data": {"settings": {"location": str(t3)}}}
    with pytest.raises(RequestError, match="--minival: the run held nothing out of its training split"):
        open_evaluation_data(state, Hyperparameters(), None, minival=True)
    state["data"]["settings"]["minival"] = 0.2
    classes = [f"n{label:08d}" for label in range(3)]
    with pytest.raises(RequestError, match="no training split there to hold anything out of"):
        open_evaluation_data({**state, "classes": classes}, Hyperparameters(), str(t3 / "val"), minival=True)


def test_figures_of_the_validation_split_do_not_stand_beside_a_minivals(tmp_path: Path) -> None:
    lines = read_log(write_run(tmp_path / "run", rows=3))
    lines = [{**line, "data": "imagenet"} for line in lines]
    assert against_original(lines)
    held_out = [{**line, "minival": 0.1} for line in lines]
    assert against_original(held_out) is None
    experiment = Experiment(hyperparameters=Hyperparameters())
    text = page([RunFacts("a", lines, experiment), RunFacts("b", held_out, experiment)])
    assert "Validated on 10 % of the training split, not on the validation split: b." in text
    assert "original run, published" not in page([RunFacts("b", held_out, experiment)])
