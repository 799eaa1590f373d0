"""Tournaments of cells: who takes part, the rungs, the winner; and that the command continues what is there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import Result

from gaeanet.artifacts.directory import METRICS
from gaeanet.cells.genotype import Genotype
from gaeanet.cells.read import read_genotype
from gaeanet.cells.space import CANDIDATES, CELLS, EDGES, INTO, CellWeights, Weights, check_in_space
from gaeanet.cells.zoo import ZOO
from gaeanet.config.experiment import Experiment, load_experiment
from gaeanet.errors import RequestError
from gaeanet.models.counting import count
from gaeanet.models.network import CellNetwork
from gaeanet.runs.trials import Trial
from gaeanet.search.candidates import average_weights, candidates
from gaeanet.search.costs import cost_of
from gaeanet.search.discretize import discretize
from gaeanet.search.halving import ETA, rungs
from gaeanet.search.random_cells import of_equal_cost, random_cells
from gaeanet.search.tournament import entrants, hold

Write = Callable[..., Path]
Run = Callable[..., Result]


@given(cells=st.integers(2, 500), epochs=st.integers(1, 300))
def test_rungs_keep_a_third_or_fewer_and_the_last_has_all_epochs(cells: int, epochs: int) -> None:
    plan = rungs(cells, epochs)
    assert plan[0].cells == cells
    assert plan[0].epochs >= 1
    assert plan[-1].epochs == epochs
    for before, after in zip(plan, plan[1:]):
        assert (after.cells - 1) * ETA < before.cells
        assert before.epochs < after.epochs
    if epochs >= 2 * cells:  # enough for every rung to have an epoch
        assert 1 < plan[-1].cells <= ETA
        assert all(before.cells <= after.cells * ETA for before, after in zip(plan, plan[1:]))


def test_random_cells_differ_keep_to_the_limit_and_follow_the_seed() -> None:
    cells = list(islice(random_cells(3, 450e6), 20))
    assert len(set(cells)) == 20
    assert max(cost_of(cell).multiply_adds for cell in cells) <= 450e6
    assert cells == list(islice(random_cells(3, 450e6), 20))
    assert cells[0] != next(random_cells(4, 450e6))


def test_cells_of_equal_cost() -> None:
    wanted = read_genotype("gaea-imagenet")
    cost = cost_of(wanted).multiply_adds
    cells = list(islice(of_equal_cost(wanted, lambda cell: cost_of(cell).multiply_adds, 0, 0.05), 5))
    assert len({wanted, *cells}) == 6
    assert all(abs(cost_of(cell).multiply_adds / cost - 1) <= 0.05 for cell in cells)


@pytest.mark.parametrize("name", list(ZOO))
def test_a_cell_has_a_cost_or_is_refused_by_name(name: str) -> None:
    cell = read_genotype(name)
    operations = {operation for operation, _ in (*cell.normal, *cell.reduce)}
    if operations <= set(CANDIDATES) and len(cell.normal) == len(cell.reduce) == 8:
        check_in_space(cell, name)
        assert cost_of(cell).multiply_adds == counted_cost(cell)
    else:
        with pytest.raises(RequestError, match=f"^{name}: its .* cell has "):
            check_in_space(cell, name)


def counted_cost(cell: Genotype) -> int:
    """Counted layer by layer, without the table."""
    network = CellNetwork(1000, genotype=cell, init_channels=48, layers=14, device=torch.device("meta"))
    return count(network, 224).multiply_adds


def uneven(lean: float) -> Weights:
    """Weights that prefer the last operation and the last edge into each node, by a factor of e^lean."""
    operations = np.exp(lean * (np.arange(len(CANDIDATES)) == len(CANDIDATES) - 1))
    rows = [(operations / operations.sum()).tolist()] * len(EDGES)
    edges = [float(np.exp(lean * (edge == into[-1]))) for into in INTO for edge in into]
    return {cell: CellWeights(rows, edges) for cell in CELLS}


@pytest.mark.parametrize("lean", [0.01, 30.0])
def test_cells_are_drawn_from_weights_however_little_or_much_they_differ(lean: float) -> None:
    """A search that hardly moved and one that decided everything give their own cell first, then others like it."""
    weights = uneven(lean)
    drawn = list(islice(candidates(weights, 0), 200))
    assert drawn[0] == discretize(weights)
    assert len(set(drawn)) == 200
    operations = [operation for cell in drawn for operation, _ in (*cell.normal, *cell.reduce)]
    preferred = operations.count(CANDIDATES[-1]) / len(operations)
    assert 0.5 < preferred < 0.95
    assert "none" not in operations


def write_search(run: Path, weights: Sequence[Weights]) -> Path:
    """The log of a search, as far as its weights go."""
    run.mkdir()
    lines = [
        {
            "kind": "train",
            "batches": epoch,
            "epoch": epoch,
            "operation_weights": {cell: one[cell].operations for cell in CELLS},
            "edge_weights": {cell: one[cell].edges for cell in CELLS},
        }
        for epoch, one in enumerate(weights, 1)
    ]
    (run / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_the_average_is_over_the_last_half(tmp_path: Path) -> None:
    run = write_search(tmp_path / "found", [uneven(9.0), uneven(0.0), uneven(1.0)])
    mean = np.mean([uneven(lean)["normal"].operations for lean in (0.0, 1.0)], axis=0)
    assert np.allclose(average_weights(run)["normal"].operations, mean)
    (tmp_path / "started").mkdir()
    (tmp_path / "started" / METRICS).write_text("")
    with pytest.raises(RequestError, match="no search with an epoch that has ended"):
        average_weights(tmp_path / "started")


def test_who_takes_part(tmp_path: Path) -> None:
    """What is named comes first, searches fill up the number in turn, and without a search random cells do."""
    searches = [str(write_search(tmp_path / name, [uneven(lean)])) for name, lean in (("a", 2.0), ("b", 1.0))]
    cells = entrants(["gaea-imagenet", *searches], 8, 0, None)
    assert list(cells) == ["named-1", "search-2", "search-3", *(f"drawn-{number}" for number in range(4, 9))]
    # Both searches encode the same cell: it was named twice, and all that are drawn are new.
    assert len(set(cells.values())) == 7
    alone = entrants([], 5, 0, 500e6)
    assert list(alone) == [f"random-{number}" for number in range(1, 6)]
    assert list(alone.values()) == list(islice(random_cells(0, 500e6), 5))
    with pytest.raises(RequestError, match="--cells 1: must be 2 or more"):
        entrants([], 1, 0, None)


class Judge:
    """Stands in for trainings: a cell is as good as it has 5x5 convolutions, and longer training adds."""

    def __init__(self) -> None:
        self.trained, self.epochs = list[Trial](), list[tuple[int, int, int]]()

    def true(self, cell: Genotype) -> float:
        return 10.0 * sum(operation == "sep_conv_5x5" for operation, _ in (*cell.normal, *cell.reduce))

    def __call__(self, trials: Sequence[Trial], before: int, after: int) -> Iterator[tuple[Trial, float]]:
        self.epochs.append((before, sum(trial.epochs for trial in trials), after))
        for trial in reversed(trials):  # in whatever order they end
            self.trained.append(trial)
            genotype = next(change for change in trial.changes if change.startswith("hyperparameters.genotype="))
            yield trial, self.true(read_genotype(json.loads(genotype.split("=", 1)[1]))) + trial.epochs


def loaded(experiment_file: Write, **values: Any) -> Experiment:
    return load_experiment(experiment_file(epochs=9, warmup_epochs=3, **values))


def test_the_best_cell_wins(experiment_file: Write, tmp_path: Path) -> None:
    experiment, cells = loaded(experiment_file), entrants([], 9, 1, None)
    judge, messages = Judge(), list[str]()
    winner = hold(experiment, cells, tmp_path / "out", judge, messages.append)
    assert judge.true(winner) == max(judge.true(cell) for cell in cells.values())
    assert [trial.epochs for trial in judge.trained] == [3] * 9 + [9] * 3
    assert "hyperparameters.warmup_epochs=1" in judge.trained[0].changes
    assert read_genotype(str(tmp_path / "out" / "genotype.json")) == winner
    results = json.loads((tmp_path / "out" / "tournament.json").read_text())
    assert [len(rung["top1"]) for rung in results["rungs"]] == [9, 3]
    assert messages[0] == "rung 1 of 2: 9 cells, 3 epochs each"


def test_cells_are_bred_from_the_best_so_far(experiment_file: Write, tmp_path: Path) -> None:
    """In portions, each from all results before it; the same request breeds the same cells, and keeps to the limit."""
    experiment, cells = loaded(experiment_file), entrants([], 8, 1, 550e6)
    judge = Judge()
    winner = hold(experiment, cells, tmp_path / "out", judge, lambda _: None, bred=19, most=550e6)
    results = json.loads((tmp_path / "out" / "tournament.json").read_text())
    names = [*(f"random-{number}" for number in range(1, 9)), *(f"bred-{number}" for number in range(9, 28))]
    assert list(results["cells"]) == list(results["rungs"][0]["top1"]) == names
    assert max(cell["multiply_adds"] for cell in results["cells"].values()) <= 550e6
    bred = {name: top1 for name, top1 in results["rungs"][0]["top1"].items() if name.startswith("bred")}
    assert judge.true(winner) > max(judge.true(cell) for cell in cells.values())
    # The progress is that of the whole: what comes before and after each portion adds up.
    assert [before for before, _, _ in judge.epochs] == [0, *np.cumsum([epochs for _, epochs, _ in judge.epochs])[:-1]]
    assert {sum(parts) for parts in judge.epochs} == {27 * 1 + 9 * 3 + 3 * 9}
    assert np.mean(list(bred.values())[-9:]) > np.mean(list(bred.values())[:9])
    assert hold(experiment, cells, tmp_path / "again", Judge(), lambda _: None, bred=19, most=550e6) == winner
    again = json.loads((tmp_path / "again" / "tournament.json").read_text())
    assert again == results
    with pytest.raises(RequestError, match="holds trainings for another request"):
        hold(experiment, cells, tmp_path / "out", Judge(), lambda _: None, bred=18, most=550e6)


def test_a_directory_holds_one_tournament(experiment_file: Write, tmp_path: Path) -> None:
    experiment, cells = loaded(experiment_file), entrants([], 4, 1, None)
    first = hold(experiment, cells, tmp_path / "out", Judge(), lambda _: None)
    assert hold(experiment, cells, tmp_path / "out", Judge(), lambda _: None) == first
    others = entrants([], 4, 2, None)
    with pytest.raises(RequestError, match="holds trainings for another request"):
        hold(experiment, others, tmp_path / "out", Judge(), lambda _: None)


@pytest.mark.slow
def test_the_command_continues_what_is_there(gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path) -> None:
    """A tournament that has ended trains nothing again, one whose training was lost trains that again, to the same."""
    file = experiment_file(epochs=2, warmup_epochs=0)
    command = (
        "tournament",
        file,
        "--cells",
        2,
        "--data",
        t3,
        "--set",
        "data.minival=0.34",
        "--run-dir",
        tmp_path / "out",
    )
    first = gaeanet(*command)
    assert first.code == 0, first.err
    assert "rung 1 of 1: 2 cells, 2 epochs each" in first.out
    assert (tmp_path / "out" / "genotype.json").is_file()
    shutil.rmtree(tmp_path / "out" / "rung-1" / "random-1")
    printed = tmp_path / "out" / "rung-1" / "random-2.txt"
    before = printed.read_text()
    again = gaeanet(*command)
    assert again.code == 0, again.err
    assert printed.read_text() == before
    assert again.out.splitlines()[-3:] == first.out.splitlines()[-3:]


def test_wrong_requests(gaeanet: Run, experiment_file: Write, t3: Path) -> None:
    file = experiment_file()
    for options, message in (
        (["--cells", 1], "--cells 1: must be 2 or more"),
        (["--cells", 5, "--bred", 4], "--bred 4: leaves less than 2 of 5 cells to breed from"),
        (["--jobs", -1], "--jobs -1: must be 1 or more"),
        (["--multiply-adds-limit", 0], "--multiply-adds-limit 0: millions, more than 0"),
        (["nowhere.json"], "genotype 'nowhere.json': neither a file nor a known cell"),
        (["amoebanet-a"], "amoebanet-a: its normal cell has "),
        (
            ["--set", "hyperparameters.search={channel_divisor: 2}", "--set", "hyperparameters.ema_decay=0"],
            "makes this a search",
        ),
    ):
        result = gaeanet("tournament", file, *options, "--data", t3)
        assert result.code == 2, options
        assert message in result.err
        assert len(result.err.splitlines()) == 1
