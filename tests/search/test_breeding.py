"""Breeding: children are cells of the space near their parents, the regression finds what is there, and breeding finds
better cells than chance does where cells' accuracies have a pattern.
"""

from __future__ import annotations

from itertools import islice

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gaeanet.cells.genotype import Genotype
from gaeanet.cells.space import CANDIDATES, CELLS
from gaeanet.search.breeding import breed, features, prediction
from gaeanet.search.costs import cost_of
from gaeanet.search.random_cells import random_cells


def anything(_: Genotype) -> bool:
    return True


def planted(genotype: Genotype) -> float:
    """An accuracy that prefers 5x5 separable convolutions, deep normal cells and no pools."""
    described = features(genotype)
    pools = sum(operation.endswith("pool_3x3") for cell in CELLS for operation, _ in getattr(genotype, cell))
    large = sum(operation == "sep_conv_5x5" for cell in CELLS for operation, _ in getattr(genotype, cell))
    return float(50 + 2 * large - 3 * pools + 4 * described[len(described) // 2 - 2])


def differences(child: Genotype, parent: Genotype) -> int:
    """Edges of the child that its parent does not have, node by node."""
    return sum(
        edge not in getattr(parent, cell)[number & ~1 : (number | 1) + 1]
        for cell in CELLS
        for number, edge in enumerate(getattr(child, cell))
    )


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32), count=st.integers(2, 40))
def test_children_are_new_cells_of_the_space_near_their_parents(seed: int, count: int) -> None:
    trained = {cell: planted(cell) for cell in islice(random_cells(seed), count)}
    best = sorted(trained, key=lambda cell: -trained[cell])[: max(2, count // 4)]
    children = list(islice(breed(trained, np.random.default_rng(seed), anything), 20))
    assert len(set(children) | set(trained)) == 20 + count
    for child in children:
        for cell in CELLS:
            for number, (operation, source) in enumerate(edges := getattr(child, cell)):
                assert operation in CANDIDATES[1:]
                assert source < number // 2 + 2
                assert number % 2 == 0 or edges[number - 1].input < source
        paired = any(child.normal == a.normal and child.reduce == b.reduce for a in best for b in best)
        assert paired or min(differences(child, parent) for parent in best) <= 2


def test_the_same_results_breed_the_same_cells() -> None:
    trained = {cell: planted(cell) for cell in islice(random_cells(1), 12)}
    first, again = (list(islice(breed(trained, np.random.default_rng(5), anything), 9)) for _ in range(2))
    assert first == again


def test_children_keep_to_the_limit() -> None:
    trained = {cell: planted(cell) for cell in islice(random_cells(1, 450e6), 12)}
    children = islice(breed(trained, np.random.default_rng(0), lambda cell: cost_of(cell).multiply_adds <= 450e6), 20)
    assert max(cost_of(cell).multiply_adds for cell in children) <= 450e6


def test_the_regression_finds_a_planted_pattern_and_none_in_noise() -> None:
    cells = list(islice(random_cells(2), 300))
    known, unknown = cells[:100], cells[100:]
    predicted = prediction({cell: planted(cell) for cell in known})(unknown)
    assert np.corrcoef(predicted, [planted(cell) for cell in unknown])[0, 1] > 0.9
    noise = np.random.default_rng(0).normal(60, 5, len(known))
    flat = prediction(dict(zip(known, noise.tolist())))(unknown)
    assert flat.std() < 2


def test_equal_accuracies_are_no_pattern() -> None:
    cells = list(islice(random_cells(2), 4))
    assert np.allclose(prediction(dict.fromkeys(cells, 61.0))(cells), 61.0)


def test_breeding_beats_chance_on_a_planted_pattern() -> None:
    """Of 48 cells, 16 random and 32 bred from them are better than 48 random ones, in each of five draws."""
    for seed in range(5):
        random = max(planted(cell) for cell in islice(random_cells(seed), 48))
        trained = {cell: planted(cell) for cell in islice(random_cells(seed), 16)}
        for generation in range(8):
            rng = np.random.default_rng([seed, generation])
            trained |= {cell: planted(cell) for cell in islice(breed(trained, rng, anything), 4)}
        assert max(trained.values()) > random
