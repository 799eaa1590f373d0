"""What messages say is true, and what they propose is accepted."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import NET, Result, TinyRun, make_folder

from gaeanet.config.data import Data
from gaeanet.config.experiment import Hyperparameters, experiment_from, load_experiment
from gaeanet.config.schedule import Batches
from gaeanet.config.search import Search
from gaeanet.data.sources.open import _check_batches, open_source
from gaeanet.errors import RequestError, counted

Run = Callable[..., Result]
Write = Callable[..., Path]


@pytest.mark.parametrize("classes", [1, 2, 3, 4])
def test_field_report_79_the_number_of_classes_that_is_proposed_is_accepted(tmp_path: Path, classes: int) -> None:
    location = str(make_folder(tmp_path / "data", classes=classes))
    tree = {"data": {"location": location}, "hyperparameters": {**NET, "num_classes": 7}}
    with pytest.raises(RequestError) as refused:
        open_source(experiment_from(tree))
    proposed = re.search(r"--set hyperparameters.num_classes=(\d+)", str(refused.value))
    if classes == 1:
        assert proposed is None
        assert "has 1 class (n00000000), a network takes two or more" in str(refused.value)
    else:
        assert proposed
        tree["hyperparameters"]["num_classes"] = int(proposed[1])
        open_source(experiment_from(tree))


@given(
    processes=st.integers(1, 9), batch=st.integers(2, 60), most=st.integers(2, 9) | st.none(), repeats=st.integers(1, 5)
)
def test_field_report_79_the_batches_that_are_proposed_are_accepted(
    processes: int, batch: int, most: int | None, repeats: int
) -> None:
    values = {"global_batch_size": batch - batch % repeats or repeats, "max_batch_per_slot": most}
    values["repeated_augmentation"] = repeats
    if values["global_batch_size"] < 2:  # type: ignore[operator]
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", str(processes))
        for _ in range(2):  # a message for each of the two keys, at most
            try:
                return _check_batches(Batches.model_validate(values))
            except RequestError as error:
                key, proposed = re.search(r"hyperparameters\.(\w+).* make it (\d+)", str(error)).groups()  # type: ignore[union-attr]
                values[key] = int(proposed)
        _check_batches(Batches.model_validate(values))


@pytest.mark.parametrize("processes", [1, 4, 9])
@pytest.mark.parametrize("repeats", [1, 4])
def test_field_report_79_the_batch_that_fits_the_data_is_accepted(
    t3: Path, monkeypatch: pytest.MonkeyPatch, processes: int, repeats: int
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    values = {**NET, "global_batch_size": 800, "repeated_augmentation": repeats}
    with pytest.raises(RequestError) as refused:
        open_source(experiment_from({"data": {"location": str(t3)}, "hyperparameters": values}))
    proposed = re.search(r"make it (\d+) or less", str(refused.value))
    if proposed:
        values["global_batch_size"] = int(proposed[1])
        open_source(experiment_from({"data": {"location": str(t3)}, "hyperparameters": values}))
    else:
        assert (processes, repeats) == (9, 4)
        assert "there are too few" in str(refused.value)


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.99])
def test_field_report_79_a_class_of_one_image_has_no_minival(tmp_path: Path, fraction: float) -> None:
    location = str(make_folder(tmp_path / "data", train=1))
    tree = {"data": {"location": location, "minival": fraction}, "hyperparameters": NET}
    with pytest.raises(RequestError, match=r"has 1 training image, and that leaves nothing on one side: add images"):
        open_source(experiment_from(tree))


def test_field_report_79_the_network_that_a_start_proposes_is_accepted(
    gaeanet: Run, experiment_file: Write, tiny_run: TinyRun
) -> None:
    wanted: list[str] = []
    config = experiment_file(init_channels=8, layers=2, activation="relu", do_SE=False, genotype="darts-v2", epochs=1)
    for _ in range(6):
        result = gaeanet("train", config, "--data", tiny_run.data, "--run-dir", "new", "--init", tiny_run.run, *wanted)
        if result.code == 0:
            break
        wanted += shlex.split(result.err[result.err.index("--set") :])
    assert result.code == 0, result.err


KEYS = sorted({*Hyperparameters.model_fields, *Data.model_fields, *Search.model_fields})


@pytest.mark.parametrize("key", [*KEYS, "epoch", "num_clases", "lerning_rate", "nothing_like_it"])
def test_field_report_79_the_path_of_a_key_that_is_proposed_exists(key: str) -> None:
    with pytest.raises(RequestError) as refused:
        load_experiment("const", [f"{key}=null"])
    proposed = re.findall(r"\b(?:data|hyperparameters)\.[\w.]+", str(refused.value))
    assert proposed
    messages = []
    for path in proposed:
        try:
            load_experiment("const", [f"{path}=null"])
        except RequestError as error:  # for the value, which the key may not take
            messages.append(str(error))
    assert not any("unknown key" in message or "--set" in message for message in messages)


def test_a_key_of_the_cluster_can_be_set() -> None:
    assert load_experiment("const", ["name=another"]).name == "another"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"freeze": 99}, "freeze 99 exceeds the 3 cells of layers"),
        ({"freeze": 2, "layers": 1}, "freeze 2 exceeds the 1 cell of layers"),
        ({"search": {"settled_epochs": 3}, "init_channels": 8, "ema_decay": 0.0}, "settled_epochs 3 exceeds epochs 2"),
    ],
)
def test_field_report_85_values_that_cannot_apply_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        experiment_from({"hyperparameters": {**NET, **values}})


def test_field_report_85_the_last_line_names_what_is_there(
    gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> None:
        raise RequestError("no")

    for run, missing in (("a", ["report.html"]), ("b", ["report.html", "curve.png"]), ("c", [])):
        with monkeypatch.context() as patch:
            if "report.html" in missing:
                patch.setattr("gaeanet.report.gather.write_page", failing)
            if "curve.png" in missing:
                patch.setattr("gaeanet.training.loop.draw_curves", failing)
            result = gaeanet("train", experiment_file(epochs=1), "--data", t3, "--run-dir", run)
        last = result.out.splitlines()[-1]
        named = last.removeprefix(f"everything is in {run}: ").replace(" and ", ", ").split(", ")
        assert all((tmp_path / run / name).exists() for name in named), last
        assert {"metrics.jsonl", "curve.png", "report.html", "checkpoints/best", "checkpoints/latest"} == {
            *named,
            *missing,
        }


def test_field_report_85_plurals(gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path) -> None:
    assert [counted(n, "class") for n in (0, 1, 2, 1200)] == ["0 classes", "1 class", "2 classes", "1,200 classes"]
    assert [counted(2, noun) for noun in ("batch", "epoch", "process")] == ["2 batches", "2 epochs", "2 processes"]
    config = experiment_file(epochs=1, layers=1, global_batch_size=18)
    shutil.rmtree(t3 / "val" / "n00000000")
    (t3 / "val" / "n00000000").mkdir()
    outputs = [gaeanet("train", config, "--data", t3)]
    make_folder(tmp_path / "one", classes=2, train=9, val=1)
    config = experiment_file(epochs=1, layers=1, global_batch_size=18, num_classes=2)
    outputs += [gaeanet("train", config, "--data", "one", *resume) for resume in ([], ["--resume"])]
    outputs += [gaeanet("describe", "runs/tiny"), gaeanet("describe", "--lineage", "runs/tiny")]
    text = "\n".join(result.out + result.err for result in outputs)
    wrong = r"\b1 (classes|images|steps|epochs|cells|workers|threads|processes|files|validation images)\b"
    assert not re.search(rf"(?<![\d.,x] ){wrong}", text), text
    assert "lacks 1 class (n00000000)" in text
    assert "1 step an epoch, 1 epoch," in text


def test_field_report_85_a_killed_worker_says_how_to_go_on(
    gaeanet: Run, experiment_file: Write, t3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr("gaeanet.training.recorded.step", killed)
    result = gaeanet("train", experiment_file(), "--data", t3)
    assert result.code == 1
    assert "a worker process was killed" in result.err
    assert "run again with --resume" in result.err
