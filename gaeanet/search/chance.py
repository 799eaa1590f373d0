"""A cell against chance: trains it and random cells of its cost alike, interleaved, and compares (`comparison`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import NamedTuple

from gaeanet.artifacts.directory import REPORT
from gaeanet.cells.genotype import Genotype
from gaeanet.config.experiment import Experiment, Hyperparameters
from gaeanet.report.describe import Subject, count_subject
from gaeanet.report.distribution import Shown, distribution_page
from gaeanet.runs.trials import Trial, settle_on
from gaeanet.runtime.files import replace_text
from gaeanet.search.cell_trial import Train, cell_trial
from gaeanet.search.comparison import Comparison, compare
from gaeanet.search.random_cells import of_equal_cost

RESULTS = "comparison.json"


class Entry(NamedTuple):
    """A cell to train: `found` or `random-1`, ..., with the seed of its training."""

    name: str
    genotype: Genotype
    seed: int


def against_chance(
    experiment: Experiment,
    found: Genotype,
    directory: Path,
    train: Train,
    report: Callable[[str], None],
    *,
    cells: int,
    seeds: int,
    within: float,
) -> Comparison:
    """Trains a cell with several seeds and random cells of its cost with one seed each; writes results and a page.

    Args:
        experiment: What each is trained by; its seed is the first.
        directory: Of the comparison. The same call continues what is there, and one with more `cells` or `seeds` trains
            only what is new.
        cells: How many random cells, at least 2.
        within: How far their multiply-adds may be from those of `found`, as a fraction.

    Raises:
        RequestError: The directory holds another comparison, or no random cell costs as much.
        RunError, Stopped: As `train_all`.
    """
    hp = experiment.hyperparameters

    @cache
    def multiply_adds(genotype: Genotype) -> int:
        return _multiply_adds(genotype, hp)

    settle_on({"experiment": experiment.to_yaml(), "found": found.to_dict(), "within": within}, directory)
    random = islice(of_equal_cost(found, multiply_adds, hp.seed, within), cells)
    mine = [Entry("found", found, hp.seed + number) for number in range(seeds)]
    others = [Entry(f"random-{number}", cell, hp.seed + number) for number, cell in enumerate(random, 1)]
    entries = {_trial(entry, hp, directory): entry for pair in zip_longest(mine, others) for entry in pair if entry}
    accuracies: dict[str, list[float]] = {}
    for trial, accuracy in train(list(entries), 0, 0):
        entry = entries[trial]
        accuracies.setdefault(entry.name, []).append(accuracy)
        report(f"{trial.name}: top-1 {accuracy:.2f} %")
    comparison = compare(accuracies["found"], [accuracies[entry.name][0] for entry in others])
    rows = [
        Shown(name, genotype, accuracies[name], multiply_adds(genotype))
        for name, genotype in {entry.name: entry.genotype for entry in chain(mine, others)}.items()
    ]
    facts = {
        **comparison._asdict(),
        "verdict": comparison.verdict,
        "cells": [
            {"name": row.name, "top1": row.top1, "multiply_adds": row.multiply_adds, "genotype": row.genotype.to_dict()}
            for row in rows
        ],
    }
    replace_text(directory / RESULTS, json.dumps(facts, indent=1) + "\n")
    sentence = comparison.sentence(cells)
    replace_text(
        directory / REPORT, distribution_page(rows, comparison.mean, comparison.deviation, sentence, experiment)
    )
    return comparison


def _multiply_adds(genotype: Genotype, hp: Hyperparameters) -> int:
    of_cell = hp.model_copy(update={"genotype": genotype.to_dict()})
    return count_subject(Subject(genotype.fingerprint, of_cell)).multiply_adds


def _trial(entry: Entry, hp: Hyperparameters, directory: Path) -> Trial:
    name = f"{entry.name}-seed-{entry.seed}"
    return cell_trial(name, entry.name, entry.genotype, directory, {"seed": entry.seed}, hp.epochs)
