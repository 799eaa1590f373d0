"""Writes genotype.json, the result of a search: the cell with its cost and lineage. Nothing here needs torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gaeanet.cells.genotype import Genotype
from gaeanet.errors import RunError, reason
from gaeanet.runtime.files import replace_text


def write_genotype(path: Path, genotype: Genotype, facts: dict[str, Any]) -> None:
    """Writes a genotype with further facts about it, replaced in one step; `read_genotype` reads it.

    Raises:
        RunError: It cannot be written.
    """
    values = {**genotype.to_dict(), **facts}
    text = "{\n" + ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items()) + "\n}\n"
    try:
        replace_text(path, text)
    except OSError as error:
        raise RunError(f"{path}: cannot write the genotype of the search: {reason(error)}") from None
