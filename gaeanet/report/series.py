"""Which series a chart of runs has: one list, which the PNG (`curves.py`) and the page (`page.py`) draw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gaeanet.config.data import describe_minival
from gaeanet.runtime.names import shown

Line = dict[str, Any]
Point = tuple[float, float]

# Validation top-5 of the original run (Determined's GAEA example, batch 1024, swish and squeeze-excite), read off its
# published figure to about half a point: one value each 0.8 epochs from 0.8 on.
PUBLISHED_TOP5 = (
    12.5, 34.0, 45.6, 55.8, 62.4, 64.3, 67.9, 70.7, 71.7, 71.3, 73.5, 75.1, 74.6, 74.8, 75.8,
    77.1, 76.7, 77.1, 76.7, 77.6, 78.6, 77.6, 79.3, 78.6, 80.2, 79.5, 79.5, 80.0, 80.0, 79.5,
)  # fmt: skip
PUBLISHED_EPOCHS = tuple(0.8 * (number + 1) for number in range(len(PUBLISHED_TOP5)))

PANELS = {
    "top1_accuracy": "top-1 accuracy, %",
    "top5_accuracy": "top-5 accuracy, %",
    "loss": "loss (cross-entropy)",
}
"""The charts that PNG and page have in common: a metric of the log and the chart's title."""


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: In the legend.
        points: (epoch, value) pairs; a value that is not finite is a gap.
        role: What it shows: the original run's published figures, training, or validation with raw or EMA weights.
        run: The number of its run among those drawn; 0 for the published figures.
    """

    name: str
    points: Sequence[Point]
    role: Literal["published", "training", "raw", "ema"]
    run: int = 0

    @property
    def has_values(self) -> bool:
        """Whether there is anything to draw."""
        return any(math.isfinite(value) for _, value in self.points)


def series_of(runs: Mapping[str, Sequence[Line]], metric: str) -> list[Series]:
    """The series of one chart, from back to front; those without a finite value are left out.

    Args:
        runs: Lines of each run's metrics.jsonl, by the run's name.
        metric: A key of `PANELS`.
    """
    series = []
    lines = [line for own in runs.values() for line in own]
    if metric == "top5_accuracy" and any(map(beside_the_published, lines)):
        end = max(PUBLISHED_EPOCHS[1], max(line["epoch"] for line in lines))
        points = [point for point in zip(PUBLISHED_EPOCHS, PUBLISHED_TOP5) if point[0] <= end]
        series.append(Series("original run, published (raw)", points, "published"))
    for number, (name, own) in enumerate(runs.items()):
        raw, averaged = "validation, raw weights", "validation, EMA weights"
        if len(runs) == 1:
            training = "training (augmented; loss smoothed)"
            series.append(Series(training, points_of(own, "train", metric), "training"))
        else:
            raw, averaged = f"{shown(name)}, raw", f"{shown(name)}, EMA"
        series.append(Series(raw, points_of(own, "validation", metric), "raw", number))
        series.append(Series(averaged, points_of(own, "validation", f"ema_{metric}"), "ema", number))
    return [one for one in series if one.has_values]


def points_of(lines: Sequence[Line], kind: str, key: str) -> list[Point]:
    """The values of one key in the lines of one kind; null, which stands for a number that is not finite, is a gap."""
    return [
        (line["epoch"], math.nan if line[key] is None else line[key])
        for line in lines
        if line["kind"] == kind and key in line
    ]


def validated_on(runs: Mapping[str, Sequence[Line]]) -> list[str]:
    """What the validation numbers are of, in sentences, wherever that is not the validation split."""
    fractions: dict[float, list[str]] = {}
    for name, lines in runs.items():
        if lines and "minival" in lines[-1]:
            fractions.setdefault(lines[-1]["minival"], []).append(shown(name))
    return [
        f"validated on {describe_minival(fraction)}, not on the validation split"
        + (f": {', '.join(names)}" if len(names) < len(runs) else "")
        for fraction, names in fractions.items()
    ]


def beside_the_published(line: Line) -> bool:
    """Whether a line's validation results can be compared with the original run's figures."""
    return line.get("data") == "imagenet" and "minival" not in line
