"""A tournament of cells: short trainings choose among candidates, on images held out of the training split."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from gaeanet import __version__
from gaeanet.artifacts.directory import GENOTYPE
from gaeanet.cells.genotype import Genotype
from gaeanet.cells.read import read_genotype
from gaeanet.cells.space import check_in_space
from gaeanet.config.experiment import Experiment, Hyperparameters
from gaeanet.errors import RequestError, counted
from gaeanet.runs.trials import Trial, settle_on
from gaeanet.runtime.files import is_directory, replace_text
from gaeanet.search.breeding import breed
from gaeanet.search.candidates import average_weights, candidates
from gaeanet.search.cell_trial import Train, cell_trial
from gaeanet.search.costs import cost_of, fits
from gaeanet.search.genotype_file import write_genotype
from gaeanet.search.halving import Rung, best, rungs
from gaeanet.search.random_cells import random_cells

RESULTS = "tournament.json"


GENERATIONS = 8
"""In so many portions cells are bred, each from the results of all before it."""


def entrants(origins: Sequence[str], cells: int, seed: int, most: float | None) -> dict[str, Genotype]:
    """The cells that a tournament starts with, by name.

    Args:
        origins: Genotypes, as `read_genotype` takes them, and run directories of searches.
        cells: How many in all. Those named come first, each search's own cell among them; cells drawn from the searches
            in turn fill up the number, or random ones where no search is named.
        seed: Of what is drawn.
        most: Largest number of multiply-adds of a drawn cell's ImageNet network; None for no limit.

    Raises:
        RequestError: Something named is neither, or no cell of the search space, or there are more than `cells`.
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
            check_in_space(named[f"named-{number}"], origin)
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
    experiment: Experiment,
    cells: dict[str, Genotype],
    directory: Path,
    train: Train,
    report: Callable[[str], None],
    *,
    bred: int = 0,
    most: float | None = None,
) -> Genotype:
    """Trains the cells rung by rung, writes the winner's genotype.json and all results, and returns the winner.

    Args:
        experiment: What each cell is trained by; its epochs are those of the last rung.
        cells: Those that the first rung starts with.
        directory: Of the tournament; the same call continues what is there.
        report: Takes messages.
        bred: How many further cells the first rung breeds from the best so far.
        most: Largest number of multiply-adds of a bred cell's ImageNet network; None for no limit.

    Raises:
        RequestError: The directory holds another tournament, or next to nothing can be bred within the limit.
        RunError, Stopped: As `train_all`.
    """
    hp = experiment.hyperparameters
    plan = rungs(len(cells) + bred, hp.epochs)
    request = {
        "experiment": experiment.to_yaml(),
        "cells": {name: cell.to_dict() for name, cell in cells.items()},
        "bred": bred,
        "most": most,
        "rungs": [list(rung) for rung in plan],
    }
    settle_on(request, directory)
    taking_part, done = dict(cells), 0
    in_all = sum(rung.cells * rung.epochs for rung in plan)

    def trained(number: int, names: Sequence[str]) -> dict[str, float]:
        nonlocal done
        rung = plan[number - 1]
        trials = {_trial(number, rung, name, hp, directory, taking_part[name]): name for name in names}
        accuracies = dict.fromkeys(names, 0.0)  # in this order, in whatever order they end
        before, done = done, done + len(names) * rung.epochs
        for trial, accuracy in train(list(trials), before, in_all - done):
            accuracies[trials[trial]] = accuracy
        return accuracies

    left, results = list(cells), []
    for number, rung in enumerate(plan, 1):
        report(f"rung {number} of {len(plan)}: {counted(rung.cells, 'cell')}, {counted(rung.epochs, 'epoch')} each")
        accuracies = trained(number, left)
        while len(accuracies) < rung.cells:
            report("  best so far: " + _listed(accuracies))
            known = {taking_part[name]: accuracy for name, accuracy in accuracies.items()}
            size = min(-(-bred // GENERATIONS), rung.cells - len(accuracies))
            taking_part |= (born := _bred(known, size, hp.seed, most))
            accuracies |= trained(number, list(born))
        left = best(accuracies, plan[number].cells if number < len(plan) else 1)
        results.append({"epochs": rung.epochs, "top1": accuracies})
        report("  best: " + _listed(accuracies))
    winner = taking_part[left[0]]
    facts = {
        "cost": cost_of(winner).facts,
        "lineage": {
            "gaeanet": __version__,
            "tournament": {"winner": left[0], "cells": len(taking_part), "rungs": results},
        },
    }
    write_genotype(directory / GENOTYPE, winner, facts)
    listed = {name: {"genotype": cell.to_dict(), **cost_of(cell)._asdict()} for name, cell in taking_part.items()}
    replace_text(
        directory / RESULTS, json.dumps({"winner": left[0], "rungs": results, "cells": listed}, indent=1) + "\n"
    )
    return winner


def _bred(trained: Mapping[Genotype, float], count: int, seed: int, most: float | None) -> dict[str, Genotype]:
    """The next `count` cells by name, bred from those trained so far."""
    rng = np.random.default_rng([seed, len(trained)])
    children = breed(trained, rng, lambda cell: fits(cell, most))
    return {f"bred-{number}": cell for number, cell in enumerate(islice(children, count), len(trained) + 1)}


def _listed(accuracies: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {accuracies[name]:.2f} %" for name in best(accuracies, 3))


def _trial(number: int, rung: Rung, name: str, hp: Hyperparameters, directory: Path, cell: Genotype) -> Trial:
    changes = {
        "epochs": rung.epochs,
        "warmup_epochs": round(hp.warmup_epochs * rung.epochs / hp.epochs),  # the same fraction of the schedule
        "validate_every": rung.epochs,
    }
    return cell_trial(f"rung-{number}/{name}", name, cell, directory, changes, rung.epochs)
