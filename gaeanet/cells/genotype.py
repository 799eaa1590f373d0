"""What a cell is, as data: checking and printing genotypes.

A network of the DARTS family repeats two cells, a normal one and a reduction one. A cell is a small graph. Its states
0 and 1 are the outputs of the two cells before it; every further state (a *node*) is the sum of two operations, each
applied to an earlier state. So a cell is a list of edges `(operation, input state)`, two for each node in order, and
`concat`, the states that are concatenated to form its output. Node k (from 0) is state k + 2 and owns edges 2k and
2k + 1.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from gaeanet.cells.operations import OPERATIONS
from gaeanet.errors import RequestError, did_you_mean
from gaeanet.runtime.yaml import dump

FIELDS = ("normal", "normal_concat", "reduce", "reduce_concat")


class Edge(NamedTuple):
    """One edge of a cell: `operation` applied to the state number `input`."""

    operation: str
    input: int


@dataclass(frozen=True)
class Genotype:
    """A normal and a reduction cell.

    Attributes:
        normal, reduce: Edges of the two cells, two for each node, in order.
        normal_concat, reduce_concat: States whose concatenation is the cell's output.

    Raises:
        RequestError: A cell is malformed; the message names the edge or state.
    """

    normal: tuple[Edge, ...]
    normal_concat: tuple[int, ...]
    reduce: tuple[Edge, ...]
    reduce_concat: tuple[int, ...]

    def __post_init__(self) -> None:
        for cell in ("normal", "reduce"):
            edges = _checked_edges(cell, getattr(self, cell))
            object.__setattr__(self, cell, edges)
            concat = _checked_concat(f"{cell}_concat", getattr(self, f"{cell}_concat"), len(edges) // 2)
            object.__setattr__(self, f"{cell}_concat", concat)

    def to_dict(self) -> dict[str, Any]:
        """The genotype in plain lists, as it is written to JSON and YAML and as timm keeps it."""
        return {
            "normal": [list(edge) for edge in self.normal],
            "normal_concat": list(self.normal_concat),
            "reduce": [list(edge) for edge in self.reduce],
            "reduce_concat": list(self.reduce_concat),
        }

    def to_json(self) -> str:
        """One JSON object, an edge a pair `[operation, input]`."""
        return json.dumps(self.to_dict())

    def to_yaml(self) -> str:
        """The same object as YAML, a field a line."""
        return dump(self.to_dict(), width=1000)

    def to_text(self) -> str:
        """The spelling of the DARTS repositories, `Genotype(normal=[('sep_conv_3x3', 1), ...], ...)`."""
        cells = []
        for cell in ("normal", "reduce"):
            edges = [tuple(edge) for edge in getattr(self, cell)]
            cells += [f"{cell}={edges!r}", f"{cell}_concat={list(getattr(self, f'{cell}_concat'))!r}"]
        return f"Genotype({', '.join(cells)})"

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that identify this genotype, whatever it is called."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]


def _checked_edges(cell: str, edges: Any) -> tuple[Edge, ...]:
    if isinstance(edges, str) or not hasattr(edges, "__iter__"):
        raise RequestError(f"genotype: {cell} must be a list of [operation, input] pairs, not {edges!r}")
    checked: list[Edge] = []
    for number, edge in enumerate(edges):
        where = f"genotype: {cell} edge {number}"
        if isinstance(edge, str) or not hasattr(edge, "__len__") or len(edge) != 2:
            raise RequestError(f"{where}: expected a pair [operation, input], got {edge!r}")
        operation, source = edge
        if operation not in OPERATIONS:
            hint = did_you_mean(str(operation), OPERATIONS)
            raise RequestError(f"{where}: unknown operation {operation!r}; {hint}")
        node = number // 2 + 2
        if isinstance(source, bool) or not isinstance(source, int) or not 0 <= source < node:
            raise RequestError(
                f"{where} enters state {node}: its input must be a state from 0 to {node - 1}, got {source!r}"
            )
        checked.append(Edge(operation, source))
    if not checked or len(checked) % 2:
        raise RequestError(f"genotype: {cell} has {len(checked)} edges; every node needs exactly two")
    return tuple(checked)


def _checked_concat(name: str, concat: Any, nodes: int) -> tuple[int, ...]:
    if isinstance(concat, str) or not hasattr(concat, "__iter__"):
        raise RequestError(f"genotype: {name} must be a list of states, not {concat!r}")
    states = tuple(concat)
    for state in states:
        if isinstance(state, bool) or not isinstance(state, int) or not 2 <= state < nodes + 2:
            raise RequestError(f"genotype: {name} may hold the nodes 2 to {nodes + 1}, got {state!r}")
    if not states or len(set(states)) != len(states):
        raise RequestError(f"genotype: {name} must name at least one node and none twice, got {list(states)}")
    return states
