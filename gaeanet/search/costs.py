"""What a found cell costs in the network that the paper evaluates on ImageNet: 48 channels, 14 cells, 224 pixels."""

from __future__ import annotations

from functools import cache

import torch

from gaeanet.counting import Counts, count
from gaeanet.genotypes import Edge, Genotype
from gaeanet.network import CellNetwork
from gaeanet.search.discretize import Budget
from gaeanet.search.space import CANDIDATES, CELLS, CONCAT, EDGES

CHANNELS, LAYERS, SIZE = 48, 14, 224
IN_WORDS = f"{CHANNELS} channels, {LAYERS} cells, {SIZE} px"


def counts_of(genotype: Genotype) -> Counts:
    """Parameters and multiply-adds of the ImageNet network of a genotype."""
    network = CellNetwork(1000, genotype=genotype, init_channels=CHANNELS, layers=LAYERS, device=torch.device("meta"))
    return count(network, SIZE)


def budget(millions: float | None) -> Budget | None:
    """The budget that `search.multiply_adds_limit` gives; None for none. Raises `RequestError` where no cell fits."""
    return None if millions is None else Budget(_base(), _edge_costs(), millions * 1e6)


@cache
def _base() -> int:
    """Multiply-adds of the network whose edges carry pools only, which have none."""
    pools = tuple(Edge("max_pool_3x3", source) for _ in CONCAT for source in (0, 1))
    return counts_of(Genotype(pools, CONCAT, pools, CONCAT)).multiply_adds


@cache
def _edge_costs() -> dict[str, list[list[int]]]:
    """What each operation on each edge adds over all cells of its kind: [cell][edge][candidate]."""
    costs = {cell: [[0] * len(CANDIDATES) for _ in EDGES] for cell in CELLS}
    width, size = CHANNELS, SIZE // 8
    for layer in range(LAYERS):
        is_reduction = layer in (LAYERS // 3, 2 * LAYERS // 3)
        if is_reduction:
            width, size = 2 * width, -(-size // 2)
        for edge, (source, _) in enumerate(EDGES):
            for number, candidate in enumerate(CANDIDATES):
                added = _multiply_adds(candidate, width, size * size, halves=is_reduction and source < 2)
                costs[CELLS[is_reduction]][edge][number] += added
    return costs


def _multiply_adds(candidate: str, width: int, pixels: int, halves: bool) -> int:
    """Of one operation that writes `pixels` pixels of `width` channels."""
    if candidate == "skip_connect":
        return width * width * pixels if halves else 0
    kind, kernel = candidate.split("_")[0], int(candidate[-1])
    if kind not in ("sep", "dil"):
        return 0
    return (2 if kind == "sep" else 1) * (kernel * kernel * width + width * width) * pixels
