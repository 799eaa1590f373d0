"""Recipes: named without a path, and the same files as those in the project's root."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import Result

from gaeanet.config.experiment import load_experiment
from gaeanet.config.recipes import read_recipe, recipe_names
from gaeanet.errors import RequestError

ROOT = Path(__file__).parents[2]


def test_the_root_links_to_every_recipe_and_holds_no_copy() -> None:
    assert recipe_names() == ["adaptive", "const", "distributed", "paper", "search"]
    for name in recipe_names():
        link = ROOT / f"{name}.yaml"
        assert link.is_symlink()
        assert link.resolve() == (ROOT / "gaeanet" / "recipes" / link.name).resolve()
        assert link.read_text() == read_recipe(name)


def test_a_bare_name_is_a_recipe_unless_there_is_such_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_experiment("const") == load_experiment(ROOT / "const.yaml")
    assert load_experiment(Path("const"), ["hyperparameters.epochs=7"]).hyperparameters.epochs == 7
    (tmp_path / "search").mkdir()  # a folder is no experiment file
    assert load_experiment("search", data="somewhere").hyperparameters.search
    (tmp_path / "const").write_text("name: mine")
    assert load_experiment("const").name == "mine"


@pytest.mark.parametrize("command", ["train", "search", "bench"])
def test_an_unknown_name_says_which_recipes_there_are(gaeanet: Callable[..., Result], command: str) -> None:
    result = gaeanet(command, "cosnt")
    assert result.code == 2
    assert result.err == "gaeanet: cosnt: neither an experiment file nor a recipe; did you mean const?\n"
    known = "known: adaptive, const, distributed, paper, search"
    assert known in gaeanet(command, "zebra").err
    assert "cosnt.yaml: cannot read the experiment file: no such file" in gaeanet(command, "cosnt.yaml").err


def test_describe_takes_recipes_too(gaeanet: Callable[..., Result]) -> None:
    described = gaeanet("describe", "const")
    assert described.code == 0
    assert described.out == gaeanet("describe", ROOT / "const.yaml").out
    assert "did you mean paper?" in gaeanet("describe", "papr").err
    assert "a search, which has no cell yet" in gaeanet("describe", "search").err


def test_a_recipe_that_is_not_filled_in_says_what_to_fill_in(gaeanet: Callable[..., Result]) -> None:
    assert "distributed: data.bucket_name is '<your-bucket>'" in gaeanet("train", "distributed").err
    with pytest.raises(RequestError, match="adaptive: hyperparameters.drop_path_prob is a search space"):
        load_experiment("adaptive", data="somewhere")
