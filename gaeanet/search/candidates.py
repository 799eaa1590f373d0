"""Candidates of a search: the cell that its average architecture encodes, and cells drawn from that architecture.

Mirror descent's guarantee is for the average iterate, not for the last one (Li et al. 2020, arXiv 2004.07802, section
3), and what a supernet ranks highest is seldom the best cell, but often among the best. So more cells than one are
worth training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gaeanet.artifacts.directory import read_run
from gaeanet.cells.genotype import Edge, Genotype
from gaeanet.cells.space import CANDIDATES, CELLS, CONCAT, EDGES, INTO, CellWeights, Weights
from gaeanet.errors import RequestError
from gaeanet.search.costs import budget, fits
from gaeanet.search.discretize import discretize
from gaeanet.search.random_cells import TRIES, distinct

ENTROPY = 1.0
"""Mean entropy in nats, over edges, of the weights that cells are drawn from: some three operations on each edge."""

Rows = NDArray[np.float64]


def average_weights(run_dir: Path) -> Weights:
    """The architecture of a search, averaged over the last half of its epochs.

    Raises:
        RequestError: There is no search, or none of its epochs has ended.
    """
    epochs = [line for line in read_run(run_dir) if "operation_weights" in line]
    if not epochs:
        raise RequestError(f"{run_dir}: no search with an epoch that has ended")
    late = epochs[len(epochs) // 2 :]
    weights: Weights = {}
    for cell in CELLS:
        operations = np.mean([line["operation_weights"][cell] for line in late], axis=0)
        edges = np.mean([line["edge_weights"][cell] for line in late], axis=0)
        weights[cell] = CellWeights(operations.tolist(), edges.tolist())
    return weights


def candidates(weights: Weights, seed: int, most: float | None = None) -> Iterator[Genotype]:
    """The cell that the weights encode, then cells drawn from them, endlessly and none twice.

    A node draws two of its edges by their weight, and on each an operation other than none by its weight. A search
    that is short leaves weights that hardly differ; all are raised to the power that gives them the mean entropy
    `ENTROPY`, which keeps their order.

    Args:
        most: Largest number of multiply-adds of a cell's ImageNet network (`costs.REFERENCE`); None for no limit.

    Raises:
        RequestError: Next to no further cell fits the limit.
    """
    first = discretize(weights, budget(most / 1e6 if most else None))
    yield first
    rng, seen = np.random.default_rng(seed), {first}
    sharp = {cell: _sharpened(weights[cell]) for cell in CELLS}

    def draw() -> Genotype:
        cells = [_draw(rng, *sharp[cell]) for cell in CELLS]
        return Genotype(cells[0], CONCAT, cells[1], CONCAT)

    yield from distinct(
        draw,
        lambda genotype: fits(genotype, most),
        seen,
        lambda: f"{TRIES:,} draws from the search gave {len(seen)} cells within the limit: ask for fewer",
    )


def _sharpened(cell: CellWeights) -> tuple[Rows, Rows]:
    """Operations (edges, candidates - 1), none left out, and edges (edges,), to the power that `candidates` says."""
    operations = np.asarray(cell.operations, dtype=np.float64)[:, 1:]
    low, high = 0.0, 1e6
    for _ in range(60):  # the entropy falls as the power rises
        middle = (low + high) / 2 if high < 2 else (low * high) ** 0.5 if low else 1.0
        low, high = (middle, high) if _entropy(_power(operations, middle)) > ENTROPY else (low, middle)
    edges = np.asarray(cell.edges, dtype=np.float64)
    return _power(operations, low), np.concatenate([_power(edges[None, list(into)], low)[0] for into in INTO])


def _power(rows: Rows, power: float) -> Rows:
    """Each row to a power, normalised; in logarithms, since the power can be large."""
    logarithms = power * np.log(np.maximum(rows, 1e-12))
    raised = np.exp(logarithms - logarithms.max(axis=-1, keepdims=True))
    normalised: Rows = raised / raised.sum(axis=-1, keepdims=True)
    return normalised


def _entropy(rows: Rows) -> float:
    return float(-(rows * np.log(np.maximum(rows, 1e-300))).sum(axis=-1).mean())


def _draw(rng: np.random.Generator, operations: Rows, edges: Rows) -> tuple[Edge, ...]:
    drawn: list[Edge] = []
    for into in INTO:
        # Gumbel's trick: the two largest are two draws without replacement.
        keys = np.log(np.maximum(edges[list(into)], 1e-300)) + rng.gumbel(size=len(into))
        kept: Sequence[int] = sorted(into[number] for number in np.argsort(-keys)[:2])
        for edge in kept:
            operation = int(rng.choice(len(CANDIDATES) - 1, p=operations[edge])) + 1
            drawn.append(Edge(CANDIDATES[operation], EDGES[edge][0]))
    return tuple(drawn)
