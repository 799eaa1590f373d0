"""The search space of the DARTS family: which operations may stand where in a cell. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gaeanet.cells.genotype import Genotype
from gaeanet.errors import RequestError

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


def check_in_space(genotype: Genotype, name: str) -> None:
    """Refuses a cell that no search could find.

    Args:
        name: What the message calls it.

    Raises:
        RequestError: The cell has another number of nodes, another output or an operation that is no candidate.
    """
    for cell in CELLS:
        edges, concat = getattr(genotype, cell), getattr(genotype, f"{cell}_concat")
        operation = next((edge.operation for edge in edges if edge.operation not in CANDIDATES), None)
        if operation is None and len(edges) == 2 * NODES and concat == CONCAT:
            continue
        what = f"the operation {operation}" if operation else f"{len(edges) // 2} nodes and the output {list(concat)}"
        raise RequestError(
            f"{name}: its {cell} cell has {what}: a cell of this search space has {NODES} nodes, all of them in its "
            f"output, and operations among {', '.join(CANDIDATES[1:])}"
        )
