"""The cost of a genotype in the network that the paper trains on ImageNet: 48 channels, 14 cells, 224 pixels.

A network's cost is that of a network of pools, plus what each operation adds to it. Counting a network layer by layer
(`counting.count`) takes seconds, and a search that keeps to a limit looks at thousands of cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import nn

from gaeanet.cells.genotype import Edge, Genotype
from gaeanet.cells.operations import OPERATIONS
from gaeanet.cells.space import CANDIDATES, CELLS, CONCAT, EDGES
from gaeanet.models.counting import count, count_operation
from gaeanet.models.network import CellNetwork
from gaeanet.models.operations import build_operation
from gaeanet.search.discretize import Budget

CHANNELS, LAYERS, SIZE = 48, 14, 224
REFERENCE = f"{CHANNELS} channels, {LAYERS} cells, {SIZE} px"


class Cost(NamedTuple):
    """Parameters and multiply-adds of the ImageNet network, without an auxiliary tower."""

    parameters: int
    multiply_adds: int

    @property
    def facts(self) -> dict[str, Any]:
        """As genotype.json has it."""
        return {**self._asdict(), "network": REFERENCE}


def cost_of(genotype: Genotype) -> Cost:
    """The cost of a genotype of this search space, equal to `counting.count` of its ImageNet network."""
    parameters, multiply_adds = _of_pools()
    for cell in CELLS:
        for number, (operation, source) in enumerate(getattr(genotype, cell)):
            edge = EDGES.index((source, number // 2 + 2))
            added = _table()[cell][edge][CANDIDATES.index(operation)]
            parameters, multiply_adds = parameters + added.parameters, multiply_adds + added.multiply_adds
    return Cost(parameters, multiply_adds)


def fits(genotype: Genotype, most: float | None) -> bool:
    """Whether a genotype's multiply-adds are at most `most`; None is no limit."""
    return most is None or cost_of(genotype).multiply_adds <= most


def budget(millions: float | None) -> Budget | None:
    """The budget that `search.multiply_adds_limit` gives; None for none. Raises `RequestError` where no cell fits."""
    if millions is None:
        return None
    costs = {cell: [[added.multiply_adds for added in row] for row in rows] for cell, rows in _table().items()}
    return Budget(_of_pools().multiply_adds, costs, millions * 1e6)


@cache
def _of_pools() -> Cost:
    """The cost of the network whose edges are all pools, which add nothing."""
    pools = tuple(Edge("max_pool_3x3", source) for _ in CONCAT for source in (0, 1))
    genotype = Genotype(pools, CONCAT, pools, CONCAT)
    network = CellNetwork(1000, genotype=genotype, init_channels=CHANNELS, layers=LAYERS, device=torch.device("meta"))
    counts = count(network, SIZE)
    return Cost(counts.parameters, counts.multiply_adds)


@cache
def _table() -> dict[str, list[list[Cost]]]:
    """The cost that each operation on each edge adds, over all cells of its kind: [cell][edge][candidate]."""
    table = {cell: [[Cost(0, 0)] * len(CANDIDATES) for _ in EDGES] for cell in CELLS}
    for cell, width, side in _layers():
        for row, (source, _) in zip(table[cell], EDGES):
            for number, candidate in enumerate(CANDIDATES):
                added = _added(candidate, width, side, halves=cell == "reduce" and source < 2)
                so_far = row[number]
                row[number] = Cost(so_far.parameters + added.parameters, so_far.multiply_adds + added.multiply_adds)
    return table


def _layers() -> Iterator[tuple[str, int, int]]:
    """Kind of each cell, and channels and side of its nodes' maps."""
    width, side = CHANNELS, SIZE // 8
    for layer in range(LAYERS):
        is_reduction = layer in (LAYERS // 3, 2 * LAYERS // 3)
        if is_reduction:
            width, side = 2 * width, -(-side // 2)
        yield CELLS[is_reduction], width, side


@cache
def _added(candidate: str, width: int, side: int, *, halves: bool) -> Cost:
    """The cost of one operation that writes a map of `width` channels, `side` pixels wide."""
    if candidate not in OPERATIONS:
        return Cost(0, 0)  # none
    stride = 2 if halves else 1
    operation = build_operation(candidate, width, stride, nn.ReLU, device=torch.device("meta"))
    return Cost(*count_operation(operation, width, stride * side))
