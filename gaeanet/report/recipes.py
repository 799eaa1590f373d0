"""The published recipes, how an experiment departs from them, and how a run compares with the original."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from gaeanet.config.experiment import OPERATIONAL, Hyperparameters, experiment_from
from gaeanet.config.recipes import read_recipe
from gaeanet.report.series import PUBLISHED_EPOCHS, PUBLISHED_TOP5, Line, beside_the_published
from gaeanet.runtime.yaml import parse

PUBLISHED = {
    "distributed": "the original example's (distributed.yaml)",
    "paper": "the paper's own evaluation (paper.yaml)",
}
"""The recipes with a published result, and what the report calls them."""

_NOT_RECIPE = OPERATIONAL | {"precision", "compile", "seed", "validate_every"}
_ALSO = ("init_checkpoint", "new_head")

LEAVES = 3.0
"""Points of top-5 below the original at which a run has left it; its figure was read off to half a point."""


def nearest_recipe(hp: Hyperparameters) -> tuple[str, list[tuple[str, Any, Any]]]:
    """The recipe with the fewest differences: its name, and key, value here and value there of each difference."""
    rows = {title: differences(hp, published(name)) for name, title in PUBLISHED.items()}
    nearest = min(rows, key=lambda title: len(rows[title]))
    return nearest, rows[nearest]


def published(name: str) -> Hyperparameters:
    """The hyperparameters of a recipe; its data are a location that each user fills in."""
    tree = parse(read_recipe(name), name)
    return experiment_from({"hyperparameters": tree["hyperparameters"]}, name).hyperparameters


def differences(hp: Hyperparameters, other: Hyperparameters) -> list[tuple[str, Any, Any]]:
    """Key, value of `hp` and value of `other` wherever two recipes differ; the cell by its fingerprint."""
    rows: list[tuple[str, Any, Any]] = []
    if hp.cell != other.cell:
        rows.append(("genotype", hp.cell.fingerprint, other.cell.fingerprint))
    for key in Hyperparameters.model_fields:
        if key == "genotype" or (key in _NOT_RECIPE and key not in _ALSO):
            continue
        here, there = getattr(hp, key), getattr(other, key)
        if here != there:
            rows.append((key, here, there))
    return rows


def original_top5(epoch: float) -> float | None:
    """The original run's validation top-5 in percent, between its published points; None outside them."""
    if not PUBLISHED_EPOCHS[0] <= epoch <= PUBLISHED_EPOCHS[-1] + 1e-9:
        return None
    right = min(bisect_right(PUBLISHED_EPOCHS, epoch), len(PUBLISHED_EPOCHS) - 1)
    x0, x1 = PUBLISHED_EPOCHS[right - 1], PUBLISHED_EPOCHS[right]
    fraction = min(1.0, (epoch - x0) / (x1 - x0))
    return PUBLISHED_TOP5[right - 1] + fraction * (PUBLISHED_TOP5[right] - PUBLISHED_TOP5[right - 1])


def against_original(lines: Sequence[Line]) -> str | None:
    """A sentence on a run on ImageNet beside the original one; None for other data or nothing to compare."""
    gaps = []
    for line in lines:
        if line["kind"] == "validation" and beside_the_published(line):
            expected = original_top5(line["epoch"])
            if expected is not None and math.isfinite(line["top5_accuracy"]):
                gaps.append((line["epoch"], line["top5_accuracy"], expected))
    if not gaps:
        return None
    below = [entry for entry in gaps if entry[2] - entry[1] > LEAVES]
    last = gaps[-1]
    if not below:
        widest = max(gaps, key=lambda entry: abs(entry[1] - entry[2]))
        return (
            f"The run follows the original one up to epoch {last[0]:g}: its top-5 is never more than {LEAVES:g} points "
            f"below; the widest gap is {widest[1] - widest[2]:+.1f} points at epoch {widest[0]:g}."
        )
    # Where it began to stay below, or, if it has come back since, the first time.
    came_back = last[2] - last[1] <= LEAVES
    first = below[0]
    if not came_back:
        for entry in reversed(gaps):
            if entry[2] - entry[1] <= LEAVES:
                break
            first = entry
    text = (
        f"The run leaves the original one at epoch {first[0]:g}: its top-5 is {first[1]:.1f} % there, the original's "
        f"{first[2]:.1f} %, {first[2] - first[1]:.1f} points more"
    )
    now = f"{last[1] - last[2]:+.1f} points at epoch {last[0]:g}"
    return f"{text}. It is back within {LEAVES:g} points since ({now})." if came_back else f"{text}. Now: {now}."
