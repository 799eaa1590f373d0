"""Discretization: from architecture weights to a genotype, within a budget of multiply-adds if there is one.

The rule of the DARTS family (Liu et al. 2019, arXiv 1806.09055, section 2.4; Xu et al. 2020 for edge weights): a node
keeps the two incoming edges of greatest strength, the edge's weight times that of its strongest operation other than
`none`, and on each of them that operation. This is the cell whose strengths have the greatest sum, so a budget needs no
second rule: of the cells that fit it, the one of the greatest sum is taken. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

from gaeanet.cells.genotype import Edge, Genotype
from gaeanet.cells.space import CANDIDATES, CELLS, CONCAT, EDGES, INTO, CellWeights, Weights
from gaeanet.errors import RequestError


@dataclass(frozen=True)
class Budget:
    """A limit on a network's multiply-adds, and what each operation costs.

    Attributes:
        base: Multiply-adds of the network whatever its cells' operations are.
        costs: For each cell, edge and candidate, what that operation adds: [cell][edge][candidate].
        most: Largest number of multiply-adds of the network.

    Raises:
        RequestError: No cell fits.
    """

    base: int
    costs: Mapping[str, Sequence[Sequence[int]]]
    most: float

    def __post_init__(self) -> None:
        if self.base > self.most:
            raise RequestError(
                f"hyperparameters.search.multiply_adds_limit is {self.most / 1e6:g}, but even cells of pools make a "
                f"network of {self.base / 1e6:.1f} million: raise it"
            )

    def of(self, genotype: Genotype) -> int:
        """The multiply-adds of the network of a genotype in this search space."""
        total = self.base
        for cell in CELLS:
            for number, (operation, source) in enumerate(getattr(genotype, cell)):
                edge = EDGES.index((source, number // 2 + 2))
                total += self.costs[cell][edge][CANDIDATES.index(operation)]
        return total


def discretize(weights: Weights, budget: Budget | None = None) -> Genotype:
    """The genotype that the weights of both cells encode; a node's edges are in the order of their inputs.

    Of equal strengths, the earlier input and the earlier candidate win.
    """
    genotype = _genotype({cell: [_strongest(weights[cell], into) for into in INTO] for cell in CELLS})
    if budget is None or budget.of(genotype) <= budget.most:
        return genotype
    return _within(weights, budget)


class _Choice(NamedTuple):
    """Operations chosen so far: their cost, the sum of their strengths, and (edge, candidate) of each."""

    cost: int
    strength: float
    picks: tuple[tuple[int, int], ...]


def _strongest(cell: CellWeights, into: Sequence[int]) -> list[tuple[int, int]]:
    """(edge, candidate) of the two that a node keeps."""
    best = [
        (max(range(1, len(CANDIDATES)), key=lambda candidate: cell.operations[edge][candidate]), edge) for edge in into
    ]
    strongest = sorted(best, key=lambda pick: (-cell.edges[pick[1]] * cell.operations[pick[1]][pick[0]], pick[1]))[:2]
    return sorted((edge, candidate) for candidate, edge in strongest)


def _within(weights: Weights, budget: Budget) -> Genotype:
    """The genotype of the greatest sum of strengths that fits, by dynamic programming over the nodes' Pareto fronts."""
    nodes = [(cell, into) for cell in CELLS for into in INTO]
    ends = [_Choice(budget.base, 0.0, ())]
    for cell, into in nodes:
        options = _undominated(_options(weights[cell], budget.costs[cell], into), budget.most - budget.base)
        ends = _undominated(
            (
                _Choice(a.cost + b.cost, a.strength + b.strength, a.picks + b.picks)
                for a in ends
                for b in options
                if a.cost + b.cost <= budget.most
            ),
            budget.most,
        )
    best = ends[-1].picks
    pairs = [sorted(best[2 * k : 2 * k + 2]) for k in range(len(nodes))]
    return _genotype({CELLS[0]: pairs[: len(INTO)], CELLS[1]: pairs[len(INTO) :]})


def _options(cell: CellWeights, costs: Sequence[Sequence[int]], into: Sequence[int]) -> Iterable[_Choice]:
    """All pairs of edges and operations that a node could keep."""
    single = {
        edge: _undominated(
            _Choice(costs[edge][candidate], cell.edges[edge] * cell.operations[edge][candidate], ((edge, candidate),))
            for candidate in range(1, len(CANDIDATES))
        )
        for edge in into
    }
    for first, second in combinations(into, 2):
        for a in single[first]:
            for b in single[second]:
                yield _Choice(a.cost + b.cost, a.strength + b.strength, a.picks + b.picks)


def _undominated(choices: Iterable[_Choice], most: float = float("inf")) -> list[_Choice]:
    """The Pareto front of the choices within `most`: those stronger than all cheaper ones, by cost."""
    front: list[_Choice] = []
    for choice in sorted(choices, key=lambda c: (c.cost, -c.strength, c.picks)):
        if choice.cost <= most and (not front or choice.strength > front[-1].strength):
            front.append(choice)
    return front


def _genotype(picks: Mapping[str, Sequence[Sequence[tuple[int, int]]]]) -> Genotype:
    cells = [
        tuple(Edge(CANDIDATES[candidate], EDGES[edge][0]) for node in picks[cell] for edge, candidate in node)
        for cell in CELLS
    ]
    return Genotype(cells[0], CONCAT, cells[1], CONCAT)


def changed_edges(before: Genotype | None, after: Genotype) -> int:
    """Edges of `after`, of both cells together, that `before` does not have; all where there was none before."""
    count = 0
    for cell in CELLS:
        old = {(k // 2, edge) for k, edge in enumerate(getattr(before, cell))} if before else set()
        count += sum((k // 2, edge) not in old for k, edge in enumerate(getattr(after, cell)))
    return count


def one_hot(genotype: Genotype) -> Weights:
    """The weights of a discretized cell: 1 for the operations it keeps and for their edges, 0 for all others.

    A supernet mixed by them computes what the genotype's cells do, a node being the sum of its two operations.
    """
    weights: Weights = {}
    for cell in CELLS:
        operations = [[0.0] * len(CANDIDATES) for _ in EDGES]
        edges = [0.0] * len(EDGES)
        for number, (operation, source) in enumerate(getattr(genotype, cell)):
            edge = EDGES.index((source, number // 2 + 2))
            operations[edge][CANDIDATES.index(operation)] = 1.0
            edges[edge] = 1.0
        weights[cell] = CellWeights(operations, edges)
    return weights
