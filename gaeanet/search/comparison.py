"""Is a cell better than chance? Its accuracy beside that of random cells of its cost. Nothing here needs torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from gaeanet.errors import counted
from gaeanet.evaluation.statistics import student_tail

BETTER = 0.05
"""Largest probability that a random cell does as well, for a cell to be called better than chance."""


class Comparison(NamedTuple):
    """A cell beside random cells of its cost, all trained alike.

    Attributes:
        found: Mean top-1 of the cell over its seeds, in percent.
        mean, deviation: Of the random cells, one training each; the deviation holds that of seeds too.
        probability: That a further random cell, trained once, does at least as well: the tail of Student's predictive
            distribution (Fisher 1935), which takes cells' accuracies for normal.
    """

    found: float
    mean: float
    deviation: float
    probability: float

    @property
    def verdict(self) -> str:
        """`better than chance`, `no better than chance` or `not decided`."""
        if self.probability <= BETTER:
            return "better than chance"
        return "no better than chance" if self.found <= self.mean else "not decided"

    def sentence(self, cells: int) -> str:
        """The verdict with its figures."""
        more = "; more random cells decide it (--random)" if self.verdict == "not decided" else ""
        gain = self.found - self.mean
        deviations = f", {gain / self.deviation:+.1f} deviations" if self.deviation else ""
        return (
            f"{self.verdict}: {self.found:.2f} % beside {self.mean:.2f} ± {self.deviation:.2f} % of "
            f"{counted(cells, 'random cell')} of its cost ({gain:+.2f} points{deviations}); a random cell does as well "
            f"with probability {_percent(self.probability)}{more}"
        )


def compare(found: Sequence[float], others: Sequence[float]) -> Comparison:
    """Compares a cell's top-1, one value a seed, with those of random cells, one value each; two of these at least."""
    mean, deviation, cells = statistics.mean(others), statistics.stdev(others), len(others)
    ours = statistics.mean(found)
    error = deviation * math.sqrt(1 + 1 / cells)
    score = (ours - mean) / error if error else math.copysign(math.inf, ours - mean) if ours != mean else 0.0
    return Comparison(ours, mean, deviation, student_tail(score, cells - 1))


def _percent(probability: float) -> str:
    return "below 0.1 %" if probability < 0.001 else f"{100 * probability:.1f} %"
