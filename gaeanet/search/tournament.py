"""A tournament of cells: short trainings choose among candidates, on images held out of the training split."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from gaeanet import __version__
from gaeanet.artifacts.directory import GENOTYPE
from gaeanet.cells.genotype import Genotype
from gaeanet.cells.read import read_genotype
from gaeanet.config.experiment import Experiment, Hyperparameters
from gaeanet.errors import RequestError, counted
from gaeanet.runs.trials import Trial, settle_on
from gaeanet.runtime.files import is_directory, replace_text
from gaeanet.search.candidates import average_weights, candidates
from gaeanet.search.cell_trial import Train, cell_trial
from gaeanet.search.costs import cost_of
from gaeanet.search.genotype_file import write_genotype
from gaeanet.search.halving import Rung, best, rungs
from gaeanet.search.random_cells import random_cells

RESULTS = "tournament.json"


def entrants(origins: Sequence[str], cells: int, seed: int, most: float | None) -> dict[str, Genotype]:
    """The cells of a tournament by name.

    Args:
        origins: Genotypes, as `read_genotype` takes them, and run directories of searches.
        cells: How many in all. Those named come first, each search's own cell among them; cells drawn from the searches
            in turn fill up the number, or random ones where no search is named.
        seed: Of what is drawn.
        most: Largest number of multiply-adds of a drawn cell's ImageNet network; None for no limit.

    Raises:
        RequestError: Something named is neither, or there are more than `cells`.
    """
    named: dict[str, Genotype] = {}
    drawing = []
    for number, origin in enumerate(origins, 1):
        if is_directory(origin):
            source = candidates(average_weights(Path(origin)), seed + number, most)
            named[f"search-{number}"] = next(source)
            drawing.append(source)
        else:
            named[f"named-{number}"] = read_genotype(origin)
    if len(named) > cells or cells < 2:
        raise RequestError(f"--cells {cells}: must be 2 or more, and at least the {len(named)} that are named")
    drawn = "drawn" if drawing else "random"
    drawing = drawing or [random_cells(seed, most)]
    seen = set(named.values())
    while len(named) < cells:
        source = drawing[len(named) % len(drawing)]
        genotype = next(genotype for genotype in source if genotype not in seen)
        seen.add(genotype)
        named[f"{drawn}-{len(named) + 1}"] = genotype
    return named


def hold(
    experiment: Experiment, cells: dict[str, Genotype], directory: Path, train: Train, report: Callable[[str], None]
) -> Genotype:
    """Trains the cells rung by rung, writes the winner's genotype.json and all results, and returns the winner.

    Args:
        experiment: What each cell is trained by; its epochs are those of the last rung.
        directory: Of the tournament; the same call continues what is there.
        report: Takes messages.

    Raises:
        RequestError: The directory holds another tournament.
        RunError, Stopped: As `train_all`.
    """
    hp = experiment.hyperparameters
    plan = rungs(len(cells), hp.epochs)
    settle_on(
        {
            "experiment": experiment.to_yaml(),
            "cells": {name: cell.to_dict() for name, cell in cells.items()},
            "rungs": [list(rung) for rung in plan],
        },
        directory,
    )
    left, results = list(cells), []
    for number, rung in enumerate(plan, 1):
        report(f"rung {number} of {len(plan)}: {counted(rung.cells, 'cell')}, {counted(rung.epochs, 'epoch')} each")
        trials = {_trial(number, rung, name, hp, directory, cells[name]): name for name in left}
        accuracies = dict.fromkeys(left, 0.0)
        for trial, accuracy in train(list(trials)):
            accuracies[trials[trial]] = accuracy
        left = best(accuracies, plan[number].cells if number < len(plan) else 1)
        results.append({"epochs": rung.epochs, "top1": accuracies})
        report("  best: " + ", ".join(f"{name} {accuracies[name]:.2f} %" for name in best(accuracies, 3)))
    winner = cells[left[0]]
    facts = {
        "cost": cost_of(winner).facts,
        "lineage": {"gaeanet": __version__, "tournament": {"winner": left[0], "cells": len(cells), "rungs": results}},
    }
    write_genotype(directory / GENOTYPE, winner, facts)
    listed = {name: {"genotype": cell.to_dict(), **cost_of(cell)._asdict()} for name, cell in cells.items()}
    replace_text(
        directory / RESULTS, json.dumps({"winner": left[0], "rungs": results, "cells": listed}, indent=1) + "\n"
    )
    return winner


def _trial(number: int, rung: Rung, name: str, hp: Hyperparameters, directory: Path, cell: Genotype) -> Trial:
    changes = {
        "epochs": rung.epochs,
        "warmup_epochs": round(hp.warmup_epochs * rung.epochs / hp.epochs),  # the same fraction of the schedule
        "validate_every": rung.epochs,
    }
    return cell_trial(f"rung-{number}/{name}", name, cell, directory, changes, rung.epochs)
