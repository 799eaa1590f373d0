"""How recipes stand beside each other: means over seeds, differences seed by seed, and the tables that show them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ingredients import REFERENCE

from gaeanet.search.halving import ETA, best, rungs

Scores = Mapping[str, Mapping[int, float]]
"""Top-1 in percent of each recipe by seed."""


class Gain(NamedTuple):
    """The mean difference to the unchanged recipe over the seeds that both have, its standard error, and their number.

    The error is NaN for a single seed.
    """

    mean: float
    error: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:+.2f}" + ("" if math.isnan(self.error) else f" ± {self.error:.2f}")


def gain(scores: Mapping[int, float], reference: Mapping[int, float]) -> Gain | None:
    """The gain of a recipe over the reference; None where they have no seed in common."""
    gains = [scores[seed] - reference[seed] for seed in scores if seed in reference]
    if not gains:
        return None
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
    return Gain(statistics.mean(gains), error, len(gains))


def means(scores: Scores, names: Sequence[str], seeds: int) -> dict[str, float]:
    """Mean top-1 over the seeds below `seeds`, of those recipes that have them all."""
    wanted = range(seeds)
    return {
        name: statistics.mean(scores[name][seed] for seed in wanted)
        for name in names
        if name in scores and all(seed in scores[name] for seed in wanted)
    }


def spread(values: Sequence[float]) -> str:
    """A mean with the standard deviation over seeds, where there are two or more."""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}" if values else "-"


def changed(changes: Mapping[str, Any]) -> str:
    """Changes as a table's cell."""
    return ", ".join(f"`{key}: {value}`" for key, value in changes.items())


def ranking(recipes: Mapping[str, Mapping[str, Any]], scores: Scores, raw: Scores) -> list[str]:
    """Lines of the table of all recipes with a result: those with more seeds first, then the larger gain.

    Args:
        raw: The same of the raw weights.
    """
    lines = [
        "| | changed | top-1 % | n | difference to the recipe | raw weights % |",
        "|---|---|---|---|---|---|",
    ]
    reference = scores.get(REFERENCE, {})

    def order(name: str) -> tuple[bool, int, float]:
        own = gain(scores[name], reference)
        return name != REFERENCE, -(own.seeds if own else 0), -(own.mean if own else 0.0)

    for name in sorted((name for name in recipes if scores.get(name)), key=order):
        values, own = list(scores[name].values()), gain(scores[name], reference)
        difference = str(own) if own and name != REFERENCE else ""
        lines.append(
            f"| {name} | {changed(recipes[name])} | {spread(values)} | {len(values)} | {difference} | "
            f"{spread(list(raw[name].values()))} |"
        )
    return lines


class Standing(NamedTuple):
    """Where a choice by successive halving is.

    Attributes:
        rung, rungs: The number of the rung, from 1, and how many there are.
        left: The recipes in it; the unchanged one always is.
        missing: What it has yet to train, a recipe and a seed each: all recipes once before any a second time.
        means: Mean top-1 of the recipes that are compared, over `seeds` seeds.
        seeds: How many all of them have.
    """

    rung: int
    rungs: int
    left: list[str]
    missing: list[tuple[str, int]]
    means: dict[str, float]
    seeds: int

    @property
    def leader(self) -> str | None:
        """The best so far, of equal ones the earlier in the list; None where nothing was trained."""
        return next(iter(best(self.means, 1)), None)


def standing(names: Sequence[str], scores: Scores) -> Standing:
    """The rung of the halving that the scores lead to: each trains a third of the recipes with three times the seeds.

    A rung's score is the mean over all seeds so far. Of the last rung, and of one that is not complete, the recipes are
    compared over the seeds that all have; in the first rung, those without any are not compared.
    """
    plan, left = rungs(len(names), 1), list(names)
    for number, _ in enumerate(plan):
        wanted = range(ETA**number)
        missing = [(name, seed) for seed in wanted for name in left if seed not in scores.get(name, {})]
        seeds = max(1, min((seed for _, seed in missing), default=len(wanted)))
        compared = means(scores, left, seeds)
        if missing or number + 1 == len(plan):
            break
        kept = {REFERENCE, *best(compared, plan[number + 1].cells)}
        left = [name for name in left if name in kept]
    return Standing(number + 1, len(plan), left, missing, compared, seeds)
