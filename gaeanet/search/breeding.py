"""Cells bred from the best so far: regularised evolution's mutations (Real et al. 2019, arXiv 1802.01548), and a normal
cell paired with another one's reduction cell, screened by a regression on what has been trained (White et al. 2021,
arXiv 1910.11858). Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gaeanet.cells.genotype import Edge, Genotype
from gaeanet.cells.space import CANDIDATES, CELLS, CONCAT
from gaeanet.search.random_cells import TRIES, distinct

PARENTS = 4
"""One in so many of the cells trained so far, the best ones, may be a parent."""

LITTER = 16
"""Of so many children that are drawn, the one with the highest predicted accuracy is trained."""

PAIRED = 0.25
"""Fraction of the children that take their two cells from two parents; all others change one edge of one parent."""


def breed(
    trained: Mapping[Genotype, float], rng: np.random.Generator, fits: Callable[[Genotype], bool]
) -> Iterator[Genotype]:
    """Children of the best cells so far, endlessly, none twice and none that has been trained.

    Args:
        trained: Accuracy in percent of each cell, two at least.
        fits: Whether a cell may be trained.

    Raises:
        RequestError: Next to no further child fits.
    """
    order = sorted(trained, key=lambda genotype: -trained[genotype])
    parents = order[: max(2, len(order) // PARENTS)]
    seen = set(trained)
    children = distinct(
        lambda: _child(rng, parents),
        fits,
        seen,
        lambda: f"{TRIES:,} children of the best {len(parents)} cells gave none that is new and within the limit",
    )
    predicted = prediction(trained)
    while True:
        litter = [next(children) for _ in range(LITTER)]
        chosen = litter[int(np.argmax(predicted(litter)))]
        seen.difference_update(child for child in litter if child != chosen)
        yield chosen


def _child(rng: np.random.Generator, parents: Sequence[Genotype]) -> Genotype:
    first, second = (parents[int(rng.integers(len(parents)))] for _ in range(2))
    if rng.random() < PAIRED and first.reduce != second.reduce:
        return Genotype(first.normal, CONCAT, second.reduce, CONCAT)
    cells = {cell: list(getattr(first, cell)) for cell in CELLS}
    changed = cells[CELLS[int(rng.integers(len(CELLS)))]]
    number = int(rng.integers(len(changed)))
    pair = slice(number & ~1, (number | 1) + 1)  # the edges into the same node
    operation, source = changed[number]
    node, other = number // 2 + 2, changed[number ^ 1].input
    others = [state for state in range(node) if state not in (source, other)]
    if others and rng.random() < 0.5:
        source = others[int(rng.integers(len(others)))]
    else:
        candidates = [candidate for candidate in CANDIDATES[1:] if candidate != operation]
        operation = candidates[int(rng.integers(len(candidates)))]
    changed[number] = Edge(operation, source)
    changed[pair] = sorted(changed[pair], key=lambda edge: edge.input)
    return Genotype(tuple(cells["normal"]), CONCAT, tuple(cells["reduce"]), CONCAT)


def features(genotype: Genotype) -> NDArray[np.float64]:
    """What a cell is described by: of either cell, how often each operation stands behind the cell's inputs and behind
    its nodes, the depth of its nodes, and how many of its edges come from either input.
    """
    values: list[float] = []
    for cell in CELLS:
        counts = np.zeros((2, len(CANDIDATES) - 1))
        depths, inputs = [0.0, 0.0], [0.0, 0.0]
        edges = getattr(genotype, cell)
        for number, (operation, source) in enumerate(edges):
            counts[int(source > 1), CANDIDATES.index(operation) - 1] += 1
            if source < 2:
                inputs[source] += 1
            if number % 2:
                depths.append(1 + (depths[edges[number - 1].input] + depths[source]) / 2)
        values += [*counts.ravel(), *inputs, sum(depths) / len(CONCAT), max(depths)]
    return np.array(values)


def prediction(trained: Mapping[Genotype, float]) -> Callable[[Sequence[Genotype]], NDArray[np.float64]]:
    """A ridge regression of accuracy on `features`, whose penalty is the one with the least leave-one-out error."""
    x = np.array([features(genotype) for genotype in trained])
    y = np.array(list(trained.values()))
    mean, scale, level = x.mean(axis=0), x.std(axis=0) + 1e-9, y.mean()
    x, y = (x - mean) / scale, y - level
    kernel = x @ x.T
    values, vectors = np.linalg.eigh(kernel)
    rotated, best = vectors.T @ y, (np.inf, np.zeros(len(y)))
    for penalty in np.logspace(-1, 4, 21):
        inverse = 1 / (np.maximum(values, 0) + penalty)
        # The leave-one-out residual of a kernel ridge regression is alpha / diag((K + penalty)^-1).
        alpha = vectors @ (inverse * rotated)
        residuals = alpha / ((vectors**2) @ inverse)
        error = float((residuals**2).mean())
        if error < best[0]:
            best = error, alpha
    weights = x.T @ best[1]
    return lambda genotypes: (np.array([features(genotype) for genotype in genotypes]) - mean) / scale @ weights + level
