"""The state of a search: the architecture, its genotype, and for how long that has not changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gaeanet.cells.genotype import Genotype
from gaeanet.cells.read import from_dict
from gaeanet.search.architecture import Architecture
from gaeanet.search.discretize import changed_edges
from gaeanet.training.learner import Tensors


@dataclass
class Findings:
    """The state of a search beside the supernet's, as checkpoints keep it (`training.state.Extra`).

    Attributes:
        genotype: The discretized architecture at the end of the last epoch; None in the first.
        settled: Epochs since it last changed.
    """

    architecture: Architecture
    genotype: Genotype | None = None
    settled: int = 0

    def note_epoch(self, genotype: Genotype) -> int:
        """Records an epoch's genotype; returns how many edges have changed since the last one."""
        changed = changed_edges(self.genotype, genotype)
        self.settled = 0 if changed else self.settled + 1
        self.genotype = genotype
        return changed

    def tensors(self) -> Tensors:
        return {"architecture": self.architecture.saved()}

    def values(self) -> dict[str, Any]:
        return {"settled": self.settled, "genotype": self.genotype.to_dict() if self.genotype else None}

    def load(self, tensors: Tensors, state: Mapping[str, Any]) -> None:
        self.architecture.load(tensors["architecture"])
        self.settled = state["settled"]
        self.genotype = from_dict(state["genotype"]) if state["genotype"] else None
