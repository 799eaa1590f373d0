"""Successive halving (Jamieson & Talwalkar 2016, arXiv 1502.07943): many short trainings, then fewer and longer ones.

Each rung trains its cells from the start over a schedule of its own length: a training that is cut off in the middle of
its schedule says less about its end than a whole one that is short, and costs no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

ETA = 3
"""Of a rung's cells, one in so many advances to a training so many times as long."""

Name = TypeVar("Name")


class Rung(NamedTuple):
    """How many cells are trained, and for how many epochs."""

    cells: int
    epochs: int


def rungs(cells: int, epochs: int) -> list[Rung]:
    """The rungs for a number of cells, the last of which trains for `epochs`; the best of the last one wins.

    No rung trains for less than an epoch: where so many cells would need that, the first rung keeps fewer of them.
    """
    sizes = [cells]
    while sizes[-1] > ETA:
        sizes.append(-(-sizes[-1] // ETA))
    plan = [Rung(size, max(1, round(epochs / ETA**later))) for later, size in zip(range(len(sizes))[::-1], sizes)]
    longer = [rung for rung, before in zip(plan[1:], plan) if rung.epochs > before.epochs]
    return [plan[0], *longer]


def best(accuracies: Mapping[Name, float], count: int) -> list[Name]:
    """The `count` best, best first; of equal ones the earlier."""
    return sorted(accuracies, key=lambda name: -accuracies[name])[:count]
