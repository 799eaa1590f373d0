"""The search space of the DARTS family: which operations may stand where in a cell. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

CANDIDATES = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
"""The operations that compete on every edge, in the order of the DARTS repositories."""

NODES = 4
CELLS = ("normal", "reduce")
CONCAT = tuple(range(2, NODES + 2))
EDGES = tuple((source, node) for node in CONCAT for source in range(node))
"""All edges of a cell as (input state, node), those into one node next to each other."""

INTO = tuple(tuple(number for number, (_, node) in enumerate(EDGES) if node == into) for into in CONCAT)
"""The numbers of the edges into each node."""


class CellWeights(NamedTuple):
    """What the search thinks of one cell, in plain numbers.

    Attributes:
        operations: For each edge the weights of its candidates, summing to 1.
        edges: The weight of each edge among those into the same node, summing to 1 for each node (or all 1 where the
            method has no edge weights).
    """

    operations: Sequence[Sequence[float]]
    edges: Sequence[float]


Weights = dict[str, CellWeights]
"""Of both cells, by their names in `CELLS`."""
