"""What a found cell costs in the network that the paper evaluates on ImageNet: 48 channels, 14 cells, 224 pixels.

A network's cost is that of a network of pools, plus what each operation adds to it. Counting a network layer by layer
(`counting.count`) takes seconds, and a search that keeps to a limit looks at thousands of cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import torch

from gaeanet.cells.genotype import Edge, Genotype
from gaeanet.cells.space import CANDIDATES, CELLS, CONCAT, EDGES
from gaeanet.models.counting import count
from gaeanet.models.network import CellNetwork
from gaeanet.search.discretize import Budget

CHANNELS, LAYERS, SIZE = 48, 14, 224
IN_WORDS = f"{CHANNELS} channels, {LAYERS} cells, {SIZE} px"


class Cost(NamedTuple):
    """Of the ImageNet network, without an auxiliary tower."""

    parameters: int
    multiply_adds: int


def cost_of(genotype: Genotype) -> Cost:
    """What `counting.count` would say of the ImageNet network of a genotype in this search space."""
    parameters, multiply_adds = _of_pools()
    for cell in CELLS:
        for number, (operation, source) in enumerate(getattr(genotype, cell)):
            edge = EDGES.index((source, number // 2 + 2))
            added = _table()[cell][edge][CANDIDATES.index(operation)]
            parameters, multiply_adds = parameters + added.parameters, multiply_adds + added.multiply_adds
    return Cost(parameters, multiply_adds)


def budget(millions: float | None) -> Budget | None:
    """The budget that `search.multiply_adds_limit` gives; None for none. Raises `RequestError` where no cell fits."""
    if millions is None:
        return None
    costs = {cell: [[added.multiply_adds for added in row] for row in rows] for cell, rows in _table().items()}
    return Budget(_of_pools().multiply_adds, costs, millions * 1e6)


@cache
def _of_pools() -> Cost:
    """The network whose edges carry pools only, which add nothing."""
    pools = tuple(Edge("max_pool_3x3", source) for _ in CONCAT for source in (0, 1))
    genotype = Genotype(pools, CONCAT, pools, CONCAT)
    network = CellNetwork(1000, genotype=genotype, init_channels=CHANNELS, layers=LAYERS, device=torch.device("meta"))
    counts = count(network, SIZE)
    return Cost(counts.parameters, counts.multiply_adds)


@cache
def _table() -> dict[str, list[list[Cost]]]:
    """What each operation on each edge adds over all cells of its kind: [cell][edge][candidate]."""
    table = {cell: [[Cost(0, 0)] * len(CANDIDATES) for _ in EDGES] for cell in CELLS}
    for cell, width, pixels in _layers():
        for row, (source, _) in zip(table[cell], EDGES):
            for number, candidate in enumerate(CANDIDATES):
                added = _added(candidate, width, pixels, halves=cell == "reduce" and source < 2)
                so_far = row[number]
                row[number] = Cost(so_far.parameters + added.parameters, so_far.multiply_adds + added.multiply_adds)
    return table


def _layers() -> Iterator[tuple[str, int, int]]:
    """Kind, width and pixels of each cell's nodes."""
    width, size = CHANNELS, SIZE // 8
    for layer in range(LAYERS):
        is_reduction = layer in (LAYERS // 3, 2 * LAYERS // 3)
        if is_reduction:
            width, size = 2 * width, -(-size // 2)
        yield CELLS[is_reduction], width, size * size


def _added(candidate: str, width: int, pixels: int, *, halves: bool) -> Cost:
    """By one operation that writes `pixels` pixels of `width` channels; batch norm has two parameters a channel."""
    if candidate == "skip_connect":
        return Cost(width * width + 2 * width, width * width * pixels) if halves else Cost(0, 0)
    kind, kernel = candidate.split("_")[0], int(candidate[-1]) if candidate[-1].isdigit() else 0
    if kind not in ("sep", "dil"):
        return Cost(0, 0)
    times, weights = 2 if kind == "sep" else 1, kernel * kernel * width + width * width
    return Cost(times * (weights + 2 * width), times * weights * pixels)
