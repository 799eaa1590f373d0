"""The recipes that come with gaeanet: experiment files that are named without a path, `gaeanet train const`.

They lie in gaeanet/recipes, in the wheel too; the project's root has links to them, for `det experiment create`.
"""

from __future__ import annotations

import os
import re
from importlib import resources
from pathlib import Path

from gaeanet.errors import RequestError, did_you_mean, reason
from gaeanet.runtime.files import is_file, read_text

_FOLDER = resources.files("gaeanet").joinpath("recipes")


def recipe_names() -> list[str]:
    """What there is, in alphabetical order."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _FOLDER.iterdir() if entry.name.endswith(".yaml"))


def is_bare(reference: str) -> bool:
    """Whether this is a name alone, without folder and suffix, as recipes have."""
    return re.fullmatch(r"[\w-]{1,64}", reference) is not None


def read_recipe(name: str) -> str:
    """The text of a recipe."""
    return _FOLDER.joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def read_file_or_recipe(path: str | os.PathLike[str]) -> str:
    """The text of an experiment file; of a recipe where `path` is a bare name and no file.

    Raises:
        RequestError: There is neither, or it cannot be read.
    """
    name = str(path)
    try:
        if is_bare(name) and not is_file(Path(path)):
            if name in recipe_names():
                return read_recipe(name)
            raise RequestError(f"{name}: neither an experiment file nor a recipe; {did_you_mean(name, recipe_names())}")
        return read_text(path, regular=False)  # a shell's <(...) is a pipe
    except (OSError, ValueError) as error:
        why = "not a text file" if isinstance(error, UnicodeDecodeError) else reason(error)
        raise RequestError(f"{name}: cannot read the experiment file: {why}") from None
