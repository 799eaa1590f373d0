"""A written list of ingredients: named changes of a recipe, each with the reason to try it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gaeanet.config.experiment import Experiment
from gaeanet.errors import RequestError, did_you_mean, reason
from gaeanet.runtime.files import read_text
from gaeanet.runtime.yaml import parse

REFERENCE = "recipe"
"""Name of the recipe without any change."""
SIZE_STEP = 16
"""Sizes of training images are multiples of it, as those of progressive resizing are."""


def read_ingredients(path: Path) -> dict[str, dict[str, Any]]:
    """The changes of each ingredient of a list, as written there.

    Raises:
        RequestError: The file cannot be read, or an entry is not a reason and changes.
    """
    try:
        tree = parse(read_text(path), str(path))
    except (OSError, ValueError) as error:
        raise RequestError(f"{path}: {reason(error)}: name a list of ingredients") from None
    if not isinstance(tree, dict) or not tree:
        raise RequestError(f"{path}: a list of ingredients maps names to `why` and `changes`")
    for name, entry in tree.items():
        if not isinstance(entry, dict) or set(entry) != {"why", "changes"} or not isinstance(entry["changes"], dict):
            raise RequestError(f"{path}: {name}: must have `why`, one line, and `changes`, keys and values, alone")
        if name == REFERENCE or not name.replace("_", "").isalnum():  # it becomes a directory's name
            raise RequestError(f"{path}: {name}: call it otherwise: letters, digits and _, and not `{REFERENCE}`")
    return {name: entry["changes"] for name, entry in tree.items()}


def recipes_of(
    ingredients: dict[str, dict[str, Any]], experiment: Experiment, only: list[str] | None
) -> dict[str, dict[str, Any]]:
    """What becomes different in each recipe's hyperparameters, the unchanged one first.

    Args:
        only: Names of ingredients to take; None takes all. Those that the experiment already has are left out.

    Raises:
        RequestError: An ingredient is not in the list, or does not fit the experiment.
    """
    for name in only or []:
        if name not in ingredients:
            raise RequestError(f"--only {name}: no such ingredient: {did_you_mean(name, ingredients)}")
    hp = experiment.hyperparameters
    found: dict[str, dict[str, Any]] = {REFERENCE: {}}
    for name, changes in ingredients.items():
        if only is None or name in only:
            values = {key: _resolved(name, key, value, hp) for key, value in changes.items()}
            # A multiple is always a change, but not where it only goes with one that is made already.
            plain = {key: value for key, value in values.items() if value == changes[key]} or values
            if any(getattr(hp, key) != value for key, value in plain.items()):
                found[name] = values
    return found


def _resolved(name: str, key: str, value: Any, hp: Any) -> Any:
    """The value that a change gives a key: `x0.7` is a multiple of what the recipe has.

    A multiple of the training images' size is one of `image_size`, and one of `ema_decay` is one of its window in
    steps, 1 / (1 - decay).
    """
    if not hasattr(hp, key):
        raise RequestError(f"ingredient {name}: {key} is no hyperparameter: {did_you_mean(key, type(hp).model_fields)}")
    if isinstance(value, list):
        return [_resolved(name, key, part, hp) for part in value]
    if not (isinstance(value, str) and value.startswith("x")):
        return value
    try:
        factor = float(value[1:])
        if key == "train_image_size":
            return SIZE_STEP * round(factor * hp.image_size / SIZE_STEP)
        if key == "ema_decay":
            return round(1 - (1 - hp.ema_decay) / factor, 6)
        return float(f"{factor * getattr(hp, key):.4g}")
    except (TypeError, ValueError, ZeroDivisionError):
        raise RequestError(f"ingredient {name}: {key}: {value} is no multiple: write x and a number, x0.7") from None
