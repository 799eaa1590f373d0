"""Random cells of the search space: the baseline that a search has to beat (Li & Talwalkar 2019, arXiv 1902.07638)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from gaeanet.cells.genotype import Edge, Genotype
from gaeanet.cells.space import CANDIDATES, CELLS, CONCAT
from gaeanet.errors import RequestError
from gaeanet.search.costs import cost_of, fits

TRIES = 1_000_000


def random_genotype(rng: np.random.Generator) -> Genotype:
    """A cell whose nodes draw their two inputs evenly, and the operations on them evenly from those other than none."""
    cells = []
    for _ in CELLS:
        edges = [
            Edge(CANDIDATES[int(rng.integers(1, len(CANDIDATES)))], source)
            for node in CONCAT
            for source in sorted(rng.choice(node, 2, replace=False).tolist())
        ]
        cells.append(tuple(edges))
    return Genotype(cells[0], CONCAT, cells[1], CONCAT)


def distinct(
    draw: Callable[[], Genotype], fits: Callable[[Genotype], bool], seen: set[Genotype], refusal: Callable[[], str]
) -> Iterator[Genotype]:
    """What `draw` gives as far as it fits, endlessly and none twice.

    Args:
        seen: Cells not to give; those that are given are added.
        refusal: The message where next to nothing more fits.

    Raises:
        RequestError: None of `TRIES` draws is new and fits.
    """
    while True:
        tries = (draw() for _ in range(TRIES))
        genotype = next((genotype for genotype in tries if genotype not in seen and fits(genotype)), None)
        if genotype is None:
            raise RequestError(refusal())
        seen.add(genotype)
        yield genotype


def random_cells(seed: int, most: float | None = None) -> Iterator[Genotype]:
    """Random cells, endlessly and none twice.

    Args:
        most: Largest number of multiply-adds of a cell's ImageNet network (`costs.REFERENCE`); None for no limit.

    Raises:
        RequestError: Next to no cell fits the limit.
    """
    rng = np.random.default_rng(seed)
    return distinct(
        lambda: random_genotype(rng),
        lambda genotype: fits(genotype, most),
        set(),
        lambda: f"no further random cell has {(most or 0) / 1e6:g} M multiply-adds or less: raise the limit",
    )


def of_equal_cost(
    wanted: Genotype, multiply_adds: Callable[[Genotype], int], seed: int, within: float
) -> Iterator[Genotype]:
    """Random cells that cost what `wanted` does, endlessly and none twice.

    Args:
        multiply_adds: Of a cell's network as it is going to be trained.
        within: How far their multiply-adds may be from those of `wanted`, as a fraction.

    Raises:
        RequestError: Next to no cell costs as much.
    """
    rng = np.random.default_rng(seed)
    reference, target = cost_of(wanted).multiply_adds, multiply_adds(wanted)

    def costs_as_much(genotype: Genotype) -> bool:
        # The cost in the reference network, from a table, says whether counting layer by layer is worth its time.
        is_near = abs(cost_of(genotype).multiply_adds / reference - 1) <= 2 * within
        return is_near and abs(multiply_adds(genotype) / target - 1) <= within

    return distinct(
        lambda: random_genotype(rng),
        costs_as_much,
        {wanted},
        lambda: (
            f"none of {TRIES:,} random cells is within {within:g} of the {target / 1e6:.1f} million multiply-adds to "
            "compare with: raise --within"
        ),
    )
