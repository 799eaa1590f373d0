"""The board: recipes are chosen without the validation split and in time; a stopped choice ends as any other."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lives
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_folder

from gaeanet.config.experiment import load_experiment
from gaeanet.errors import RequestError, Stopped
from gaeanet.optim.schedules import learning_rate
from gaeanet.runs.trials import Trial

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import board  # noqa: E402
import trainings  # noqa: E402
from family import MEAN_RATE, keys  # noqa: E402
from ingredients import REFERENCE, read_ingredients, recipes_of  # noqa: E402
from standings import gain, means, ranking, spread, standing  # noqa: E402

sys.path.remove(str(BENCHMARKS))

Write = Callable[..., Path]


@pytest.mark.parametrize("epochs", [5, 20, 80, 200])
def test_the_four_recipes_follow_one_rule(epochs: int) -> None:
    hp = load_experiment(BENCHMARKS / f"imagenette-{epochs}.yaml", data="somewhere").hyperparameters
    rule = type(hp)(**keys(epochs))
    assert hp == rule


def test_the_small_recipe_is_that_of_five_epochs_at_another_size() -> None:
    hp = load_experiment(BENCHMARKS / "board-small.yaml", data="somewhere").hyperparameters
    size = {"init_channels": 16, "layers": 8, "stem_stride": 2, "image_size": 96, "train_image_size": 64}
    assert hp == type(hp)(**{**keys(5), **size})


def test_regularisation_grows_with_epochs_and_the_measured_recipes_have_none() -> None:
    family = [keys(epochs) for epochs in (5, 20, 40, 80, 200, 400)]
    for key in ("drop_path_prob", "mixup_alpha", "cutmix_alpha", "ema_decay", "randaugment"):
        values = [recipe[key] for recipe in family]
        assert values == sorted(values)
        if key != "ema_decay":
            assert not any(values[:2])
    areas = [recipe["crop_min_area"] for recipe in family]
    assert areas == sorted(areas, reverse=True)


@pytest.mark.parametrize("epochs", [5, 20, 80, 200])
def test_the_rate_has_one_mean(epochs: int) -> None:
    recipe = keys(epochs)
    rates = [
        learning_rate(
            (step + 0.5) / 100,
            scheduler=recipe["lr_scheduler"],
            base=recipe["learning_rate"],
            epochs=epochs,
            warmup_epochs=recipe["warmup_epochs"],
        )
        for step in range(100 * epochs)
    ]
    assert sum(rates) / len(rates) == pytest.approx(MEAN_RATE, rel=0.01)


# The list


@pytest.mark.parametrize("name", ["imagenette-5", "imagenette-20", "imagenette-80", "imagenette-200", "board-small"])
def test_every_ingredient_fits_every_recipe(name: str) -> None:
    base = load_experiment(BENCHMARKS / f"{name}.yaml", data="somewhere")
    recipes = recipes_of(read_ingredients(BENCHMARKS / "ingredients.yaml"), base, None)
    assert next(iter(recipes)) == REFERENCE
    assert not {"muon", "gamma", "light", "no_warmup"} & set(recipes)  # the family has them
    for changes in recipes.values():
        load_experiment(BENCHMARKS / f"{name}.yaml", trainings.settings(changes), "somewhere")


def test_every_ingredient_fits_the_recipe_of_imagenet() -> None:
    base = load_experiment(BENCHMARKS / "ablation.yaml", data="somewhere")
    recipes = recipes_of(read_ingredients(BENCHMARKS / "ingredients.yaml"), base, None)
    assert recipes["muon"] == {"optimizer": "muon", "momentum": 0.8, "learning_rate": 0.04}
    assert recipes["light"] == {"color_jitter": False, "autoaugment": False, "cutout": False}
    for changes in recipes.values():
        load_experiment(BENCHMARKS / "ablation.yaml", trainings.settings(changes), "somewhere")


def test_multiples_are_of_what_the_recipe_has() -> None:
    base = load_experiment(BENCHMARKS / "imagenette-5.yaml", data="somewhere")
    written = {
        "rate": {"learning_rate": "x2"},
        "average": {"ema_decay": "x2"},
        "sizes": {"train_image_size": ["x0.67", "x1"]},
        "same": {"optimizer": "muon", "learning_rate": "x3"},
    }
    assert recipes_of(written, base, None) == {
        REFERENCE: {},
        "rate": {"learning_rate": 0.05},
        "average": {"ema_decay": 0.99},  # a window of 100 steps in place of 50
        "sizes": {"train_image_size": [80, 128]},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a]", "maps names to `why` and `changes`"),
        ("a: {changes: {}}", "a: must have `why`, one line, and `changes`"),
        ("recipe: {why: it, changes: {momentum: 0.9}}", "recipe: call it otherwise"),
        ("../a: {why: it, changes: {momentum: 0.9}}", "call it otherwise"),
        ("a: {why: it, changes: {momentun: 0.9}}", "momentun is no hyperparameter: did you mean momentum"),
        ("a: {why: it, changes: {momentum: xx}}", "momentum: xx is no multiple"),
    ],
)
def test_a_list_that_is_wrong_is_refused_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text(text)
    base = load_experiment(BENCHMARKS / "imagenette-5.yaml", data="somewhere")
    with pytest.raises(RequestError) as refused:
        recipes_of(read_ingredients(tmp_path / "list.yaml"), base, None)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


# The arithmetic

accuracies = st.floats(0, 100)


@given(pairs=st.lists(st.tuples(accuracies, accuracies), min_size=2, max_size=9))
def test_differences_are_made_seed_by_seed(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = np.array(pairs).T
    found = gain(dict(enumerate(ours)), {**dict(enumerate(theirs)), 99: 3.0})
    assert found is not None
    assert found.seeds == len(pairs)
    assert np.isclose(found.mean, (ours - theirs).mean())
    assert np.isclose(found.error, (ours - theirs).std(ddof=1) / np.sqrt(len(pairs)))


def test_the_table_by_hand() -> None:
    scores = {REFERENCE: {0: 60.0, 1: 62.0, 2: 61.0}, "a": {0: 61.0, 1: 64.0, 2: 64.0}, "b": {0: 70.0}, "c": {}}
    lines = ranking({REFERENCE: {}, "b": {"momentum": 0.9}, "a": {"cutmix_alpha": 1}, "c": {}}, scores, scores)
    assert lines[2:] == [
        "| recipe |  | 61.00 ± 1.00 | 3 |  | 61.00 ± 1.00 |",
        "| a | `cutmix_alpha: 1` | 63.00 ± 1.73 | 3 | +2.00 ± 0.58 | 63.00 ± 1.73 |",
        "| b | `momentum: 0.9` | 70.00 | 1 | +10.00 | 70.00 |",
    ]
    assert spread([]) == "-"
    assert gain({1: 2.0}, {2: 1.0}) is None
    assert means({"a": {0: 1.0, 1: 3.0}, "b": {1: 9.0}}, ["a", "b"], 1) == {"a": 1.0}


@given(true=st.lists(accuracies, min_size=1, max_size=40), data=st.data())
def test_halving_ends_with_the_best_and_whatever_order_trainings_end_in(true: list[float], data: Any) -> None:
    """Without noise the best recipe wins; nothing is trained twice; the unchanged recipe has as many seeds as any."""
    names = [REFERENCE, *(f"r{k}" for k in range(1, len(true)))]
    worth = dict(zip(names, true))
    scores: dict[str, dict[int, float]] = {}
    trained = 0
    while (now := standing(names, scores)).missing:
        assert REFERENCE in now.left
        name, seed = data.draw(st.sampled_from(now.missing))
        assert seed not in scores.get(name, {})
        scores.setdefault(name, {})[seed] = worth[name]
        trained += 1
        assert standing(names, scores).leader in scores or not standing(names, scores).means
    assert now.leader is not None
    assert worth[now.leader] == max(true)
    assert len(scores[REFERENCE]) == max(map(len, scores.values())) == now.seeds == 3 ** (now.rungs - 1)
    assert trained <= len(names) + 4 * len(names) * now.rungs


# The command, with trainings that are made up


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Trainings take a minute of a clock that is made up, two at a time; `cutmix` helps; returns what was trained."""
    trained: list[str] = []
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def train_all(
        config: Path, arguments: Any, trials: Sequence[Trial], out: Path, jobs: int, gpus: int, admit: Any
    ) -> Iterator[tuple[Trial, float]]:
        assert jobs == 1
        for trial in trials:
            accuracy = trial.accuracy(out)
            if accuracy is None:
                if not admit(trial):
                    continue
                now[0] += 60
                trained.append(trial.name)
                held_out = "data.minival=null" not in trial.changes
                assert held_out == trial.name.startswith("held-out/")
                accuracy = 50.0 + 5 * any("cutmix" in change for change in trial.changes) + len(trained) % 2
                line = {"kind": "validation", "epoch": trial.epochs, "batches": 1, "images": 1, "loss": 1.0}
                line |= {"top1_accuracy": 99.0 if "no_smoothing" in trial.name else 40.0, "ema_top1_accuracy": accuracy}
                (out / trial.name).mkdir(parents=True)
                (out / trial.name / "metrics.jsonl").write_text(json.dumps(line) + "\n")
            yield trial, accuracy

    monkeypatch.setattr(trainings, "train_all", train_all)
    return trained


@pytest.fixture
def command(experiment_file: Write, t3: Path, tmp_path: Path) -> Callable[..., None]:
    def run(phase: str, minutes: float | None = None, **options: Any) -> None:
        defaults = {"data": str(t3), "out": tmp_path / "out", "only": "no_smoothing,cutmix,muon,repeated", "jobs": 1}
        defaults |= {"ingredients": BENCHMARKS / "ingredients.yaml", "seeds": None, "set": []}
        values = {"recipe": experiment_file(), **defaults, **options}
        board.run(argparse.Namespace(phase=phase, minutes=minutes, **values))

    return run


def test_all_chooses_proves_and_keeps_to_what_was_chosen(
    made_up: list[str], command: Callable[..., None], tmp_path: Path
) -> None:
    command("all", seeds=2)
    proof = ["validation/seed-1000", "validation/seed-1001"]
    assert made_up[-2:] == proof
    assert sum(name.startswith("validation") for name in made_up) == 2
    tree = json.loads((tmp_path / "out" / "board.json").read_text())
    assert tree["chosen"]["recipe"] == tree["leader"] == "cutmix"  # no_smoothing's raw weights are no score
    table = (tmp_path / "out" / "board.md").read_text()
    assert "| cutmix | 2 | 55.50 ± 0.71 | 2 | 40.00 ± 0.00 |" in table
    assert "--set hyperparameters.cutmix_alpha=0.5 --set hyperparameters.seed=N" in table
    before = list(made_up)
    command("all", seeds=2)
    assert made_up == before
    command("all", seeds=3)  # one seed more is trained; what was proved stays
    assert made_up == [*before, "validation/seed-1002"]
    with pytest.raises(RequestError, match="has chosen cutmix"):
        command("choose")


def test_time_that_is_up_leaves_out_what_does_not_fit_and_says_so(
    made_up: list[str], command: Callable[..., None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(Stopped, match="4 trainings left out for lack of time: the same command goes on"):
        command("rank", minutes=11.5)
    assert len(made_up) == 11
    assert "wrote" in capsys.readouterr().out
    assert "| 3 |" in (tmp_path / "out" / "board.md").read_text()  # what was trained counts
    command("rank")
    assert len(made_up) == len(set(made_up)) == 15
    trained = [name.split("/")[1:] for name in made_up]
    assert [seed for _, seed in trained] == [f"seed-{seed}" for seed in range(3) for _ in range(5)]


def test_a_choice_that_was_cut_short_is_still_proved_in_time(made_up: list[str], command: Callable[..., None]) -> None:
    """Two proofs of 1.2 minutes are kept free: they fit, and trainings that choose do not take their time."""
    with pytest.raises(Stopped):
        command("all", minutes=6.5, seeds=2)
    assert made_up == [f"held-out/{name}/seed-0" for name in ("recipe", "cutmix", "repeated", "no_smoothing")] + [
        "validation/seed-1000",
        "validation/seed-1001",
    ]


def test_a_choice_is_proved_on_other_images(made_up: list[str], command: Callable[..., None], tmp_path: Path) -> None:
    """Without any comparison it is the recipe as it is that is proved; with a copy of a choice, that choice."""
    command("prove", seeds=1)
    assert json.loads((tmp_path / "out" / "chosen.json").read_text())["recipe"] == REFERENCE
    others = str(make_folder(tmp_path / "others", train=9))
    with pytest.raises(RequestError, match="holds trainings for another request"):
        command("prove", seeds=1, data=others)
    command("choose", out=tmp_path / "first")
    command("prove", out=tmp_path / "first", seeds=1)
    (tmp_path / "second").mkdir()
    shutil.copy(tmp_path / "first" / "chosen.json", tmp_path / "second")
    command("all", out=tmp_path / "second", seeds=1, data=others)
    assert "| cutmix | 2 | " in (tmp_path / "second" / "board.md").read_text()
    assert not list((tmp_path / "second" / "held-out").rglob("seed-*"))
    (tmp_path / "second" / "chosen.json").write_text("{}")
    with pytest.raises(RequestError, match="not what a choice writes"):
        command("prove", out=tmp_path / "second", data=others)


def test_a_directory_holds_trainings_of_one_recipe(made_up: list[str], command: Callable[..., None]) -> None:
    command("rank", seeds=1, only="no_smoothing")
    command("rank", seeds=1, only="cutmix")  # another ingredient may come
    command("rank", seeds=1, set=["hyperparameters.compile=false"])  # and another way on another machine
    with pytest.raises(RequestError, match="holds trainings for another request"):
        command("rank", seeds=1, set=["hyperparameters.epochs=3"])


# The command, with trainings


def poison(data: Path) -> None:
    """Damages all validation images: whoever decodes one fails."""
    for image in (data / "val").rglob("*.JPEG"):
        image.write_bytes(b"not an image")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_choosing_never_reads_the_validation_split_and_resumes_elsewhere(
    experiment_file: Write, tmp_path: Path
) -> None:
    """Stopped by its budget, moved with its images to other places, it ends as one that ran at once."""
    data = make_folder(tmp_path / "data", train=12)
    poison(data)
    file = experiment_file(epochs=1)

    def run(phase: str, out: Path, images: Path, *options: Any) -> tuple[int, str]:
        words = [
            phase,
            "--recipe",
            file,
            "--data",
            images,
            "--out",
            out,
            "--only",
            "no_smoothing",
            "--jobs",
            2,
            *options,
        ]
        command = ["python", str(BENCHMARKS / "board.py"), *map(str, words)]
        return lives.run(command, tmp_path / "said")

    code, said = run("choose", tmp_path / "a", data)
    assert code == 0, said
    code, said = run("choose", tmp_path / "b", data, "--minutes", 1e-6)
    assert code == 75, said
    assert "left out for lack of time" in said
    code, said = run("rank", tmp_path / "b", data, "--seeds", 1)
    assert code == 0, said
    shutil.move(tmp_path / "b", tmp_path / "elsewhere")
    shutil.copytree(data, tmp_path / "copy")
    shutil.rmtree(data)
    code, said = run("choose", tmp_path / "elsewhere", tmp_path / "copy")
    assert code == 0, said
    trees = [json.loads((tmp_path / name / "board.json").read_text()) for name in ("a", "elsewhere")]
    assert trees[0] == trees[1]
    assert trees[0]["leader"]
    code, said = run("prove", tmp_path / "elsewhere", tmp_path / "copy", "--seeds", 1)
    assert code == 1  # the poison works
    assert "board: validation/seed-1000: " in said
