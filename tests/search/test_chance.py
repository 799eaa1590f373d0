"""Better than chance or not: the statistics, the trainings, and the page."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import Result

from gaeanet.cells.read import read_genotype
from gaeanet.config.experiment import load_experiment
from gaeanet.errors import RequestError
from gaeanet.report.distribution import strip_chart
from gaeanet.runs.trials import Trial
from gaeanet.search.chance import against_chance
from gaeanet.search.comparison import compare

Write = Callable[..., Path]
Run = Callable[..., Result]
Accuracies = st.lists(st.floats(1, 99), min_size=2, max_size=12)


@given(found=st.floats(0, 100), others=Accuracies, shift=st.floats(-50, 50))
def test_only_the_distance_counts(found: float, others: list[float], shift: float) -> None:
    here, there = compare([found], others), compare([found + shift], [value + shift for value in others])
    if here.deviation > 1e-6:
        assert there.probability == pytest.approx(here.probability, abs=1e-6)
    assert 0 <= here.probability <= 1
    assert here.verdict in ("better than chance", "no better than chance", "not decided")


def test_chance_itself_is_called_better_as_often_as_the_probability_says() -> None:
    """The law of a test: where the cell is one more random cell, probabilities are uniform."""
    rng = np.random.default_rng(0)
    probabilities = [compare([draw[0]], draw[1:].tolist()).probability for draw in rng.normal(70, 2, (4000, 7))]
    for level in (0.05, 0.25, 0.5, 0.9):
        share = float(np.mean(np.asarray(probabilities) <= level))
        assert abs(share - level) < 4 * math.sqrt(level * (1 - level) / 4000)


def test_the_verdict() -> None:
    others = [70.0, 71.0, 72.0, 69.0, 68.0, 70.0, 71.0, 69.5]
    assert compare([76.0], others).verdict == "better than chance"
    assert compare([71.5, 72.0], others).verdict == "not decided"
    assert compare([70.0], others).verdict == "no better than chance"
    assert compare([70.0], [70.0, 70.0]).probability == 0.5
    sentence = compare([71.5], others).sentence(8)
    assert sentence.startswith("not decided: 71.50 % beside 70.06 ± 1.27 % of 8 random cells of its cost (+1.44 points")
    assert sentence.endswith("more random cells decide it (--random)")


def test_the_chart_has_a_dot_for_each_training() -> None:
    chart = strip_chart([75.0, 76.0], [70.0, 71.0, 72.0], 71.0, 1.0)
    assert chart.count("<circle") == 5
    assert chart.count('class="dot s1"') == 2


def test_trainings_are_interleaved_and_those_that_are_there_stay(experiment_file: Write, tmp_path: Path) -> None:
    experiment, found = load_experiment(experiment_file(seed=5)), read_genotype("gaea-imagenet")
    asked: list[list[Trial]] = []

    def train(trials: Sequence[Trial], before: int, after: int) -> Iterator[tuple[Trial, float]]:
        asked.append(list(trials))
        yield from ((trial, 70.0 + len(trial.name) + number) for number, trial in enumerate(trials))

    def run(cells: int, seeds: int) -> list[str]:
        out = tmp_path / "out"
        against_chance(experiment, found, out, train, lambda _: None, cells=cells, seeds=seeds, within=0.1)
        return [trial.name for trial in asked[-1]]

    assert run(3, 2) == ["found-seed-5", "random-1-seed-6", "found-seed-6", "random-2-seed-7", "random-3-seed-8"]
    cells = {name: (tmp_path / "out" / "cells" / f"{name}.json").read_text() for name in ("found", "random-1")}
    assert run(4, 2)[-1] == "random-4-seed-9"
    assert cells == {name: (tmp_path / "out" / "cells" / f"{name}.json").read_text() for name in cells}
    results = json.loads((tmp_path / "out" / "comparison.json").read_text())
    costs = [cell["multiply_adds"] for cell in results["cells"]]
    assert all(abs(cost / costs[0] - 1) <= 0.1 for cost in costs)
    assert results["mean"] == statistics.mean(cell["top1"][0] for cell in results["cells"][1:])
    page = (tmp_path / "out" / "report.html").read_text()
    assert results["verdict"] in page.lower()
    with pytest.raises(RequestError, match="holds trainings for another request"):
        against_chance(experiment, found, tmp_path / "out", train, lambda _: None, cells=3, seeds=1, within=0.2)


@pytest.mark.slow
def test_the_command(gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path) -> None:
    file = experiment_file(epochs=1, warmup_epochs=0)
    command = (
        "compare",
        "gaea-imagenet",
        file,
        "--random",
        2,
        "--within",
        0.5,
        "--data",
        t3,
        "--run-dir",
        tmp_path / "out",
    )
    result = gaeanet(*command)
    assert result.code == 0, result.err
    assert "random cells of its cost" in result.out
    assert f"wrote {tmp_path / 'out' / 'report.html'}" in result.out


def test_wrong_requests(gaeanet: Run, experiment_file: Write, t3: Path) -> None:
    file = experiment_file()
    for options, message in (
        (["--random", 1], "--random must be 2 or more"),
        (["--seeds", 0], "--seeds 1 or more"),
        (["--within", 0], "--within 0: a fraction"),
    ):
        result = gaeanet("compare", "gaea-imagenet", file, "--data", t3, *options)
        assert result.code == 2, options
        assert message in result.err
    assert "nowhere.json" in gaeanet("compare", "nowhere.json", file, "--data", t3).err
    outside = gaeanet("compare", "nasnet-a", file, "--data", t3)
    assert outside.code == 2
    assert outside.err.startswith("gaeanet: nasnet-a: its normal cell has 5 nodes")
