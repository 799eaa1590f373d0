"""A trial of a cell: its genotype in a file of its own, and the changes that train it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gaeanet.cells.genotype import Genotype
from gaeanet.runs.trials import Trial, settings
from gaeanet.search.genotype_file import write_genotype

Train = Callable[[Sequence[Trial], int, int], Iterator[tuple[Trial, float]]]
"""`runs.trials.train_all` for the trials of one directory, with the epochs before and after them: yields each trial
with its accuracy.
"""


def cell_trial(
    name: str, cell: str, genotype: Genotype, directory: Path, changes: Mapping[str, Any], epochs: int
) -> Trial:
    """The trial called `name`, after writing `genotype` to `cells/<cell>.json` in `directory` unless it is there.

    Args:
        changes: Hyperparameters besides the genotype.
        epochs: Of its schedule.
    """
    file = directory / "cells" / f"{cell}.json"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_genotype(file, genotype, {})
    return Trial(name, settings({"genotype": str(file), **changes}), epochs)
