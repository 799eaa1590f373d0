"""The search's mathematics: mirror descent, discretisation, costs, fractions of images."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_folder

from gaeanet.cells.genotype import Edge, Genotype
from gaeanet.cells.read import read_genotype
from gaeanet.cells.space import CANDIDATES, CELLS, CONCAT, EDGES, INTO, CellWeights, Weights
from gaeanet.cells.zoo import ZOO
from gaeanet.config.experiment import experiment_from
from gaeanet.config.search import Search
from gaeanet.data.sources.folder import FolderSource
from gaeanet.data.sources.order import class_fractions, stream_seed
from gaeanet.data.sources.subset import Subset
from gaeanet.errors import RequestError
from gaeanet.models.counting import count
from gaeanet.models.network import CellNetwork
from gaeanet.search.architecture import SMALLEST, Architecture, entropy, exponentiated_gradient, mixture_of
from gaeanet.search.costs import CHANNELS, LAYERS, SIZE, budget, cost_of
from gaeanet.search.discretize import Budget, changed_edges, discretize, one_hot
from gaeanet.search.genotype_file import write_genotype

CPU = torch.device("cpu")
seeds = st.integers(0, 2**31)


@given(seeds, st.integers(1, 40), st.floats(0.001, 0.5))
def test_mirror_descent_is_multiplicative_weights(seed: int, steps: int, rate: float) -> None:
    """On fixed linear losses, exp(-rate * sum of losses) normalised (Arora, Hazan & Kale 2012), to 1e-6."""
    losses = torch.randn(steps, 14, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) / 10
    p = torch.full((14, 8), 1 / 8, dtype=torch.float64)
    for loss in losses:
        p = exponentiated_gradient(p, loss, rate)
        torch.testing.assert_close(p.sum(1), torch.ones(14, dtype=torch.float64), atol=1e-12, rtol=0)
    exact = np.exp(-rate * losses.sum(0).numpy())
    np.testing.assert_allclose(p.numpy(), exact / exact.sum(1, keepdims=True), atol=1e-6)


@given(seeds, st.floats(-1e6, 1e6))
def test_rows_stay_simplices_whatever_the_gradient(seed: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(5, 8, generator=generator).add(0.01)
    p /= p.sum(1, keepdim=True)
    moved = exponentiated_gradient(p, size * torch.randn(5, 8, generator=generator), 0.1)
    torch.testing.assert_close(moved.sum(1), torch.ones(5))
    assert float(moved.min()) >= SMALLEST * 0.9999 / (1 + 8 * SMALLEST)
    shifted = exponentiated_gradient(p, torch.ones(5, 8) * size, 0.1)
    torch.testing.assert_close(shifted, p, atol=1e-4, rtol=1e-4)  # a constant in a row's loss says nothing


def test_what_is_lost_can_come_back() -> None:
    p = torch.tensor([[1.0, 0.0]])
    assert exponentiated_gradient(p, torch.zeros(1, 2), 0.1)[0, 1].item() == pytest.approx(SMALLEST, rel=1e-3)


@pytest.mark.parametrize("method", ["gaea", "pc-darts", "darts"])
def test_the_start_is_uniform_and_steps_go_downhill(method: str) -> None:
    architecture = Architecture(Search(method=method), CPU)  # type: ignore[arg-type]
    normal, reduce, *edges = architecture.mixture()
    assert torch.equal(normal, torch.full((14, 8), 1 / 8))
    assert torch.equal(reduce, normal)
    for number, into in product(range(2), INTO):
        expected = 1.0 if method == "darts" else 1 / len(into)
        assert edges[number][list(into)].tolist() == pytest.approx([expected] * len(into))
    operations, of_edges = architecture.entropies()
    assert operations == pytest.approx(math.log(8))
    assert of_edges == pytest.approx(0 if method == "darts" else np.mean([math.log(len(into)) for into in INTO]))
    wanted = torch.zeros(14, 8)
    wanted[:, 5] = 1.0
    before = float((architecture.mixture()[0].detach() * wanted).sum())
    for _ in range(5):
        loss = -(architecture.mixture()[0] * wanted).sum() - sum(part.sum() for part in architecture.mixture()) * 0
        architecture.step(torch.autograd.grad(loss, architecture.parameters))
    after = architecture.mixture()
    assert float((after[0].detach() * wanted).sum()) > before
    assert torch.allclose(after[0].sum(1), torch.ones(14))
    copy = Architecture(Search(method=method), CPU)  # type: ignore[arg-type]
    copy.load(architecture.saved())
    for one in (architecture, copy):  # moments too: both go on alike
        loss = -(one.mixture()[0] * wanted).sum() - sum(part.sum() for part in one.mixture()) * 0
        one.step(torch.autograd.grad(loss, one.parameters))
    assert all(torch.equal(a, b) for a, b in zip(architecture.parameters, copy.parameters))


def test_entropy_in_nats() -> None:
    assert entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]])).tolist() == pytest.approx([math.log(2), 0])


def random_weights(seed: int) -> Weights:
    rng = np.random.default_rng(seed)
    found = {}
    for cell in CELLS:
        rows = rng.dirichlet(np.ones(len(CANDIDATES)), len(EDGES))
        found[cell] = CellWeights(rows.tolist(), [float(x) for into in INTO for x in rng.dirichlet(np.ones(len(into)))])
    return found


def random_genotype(seed: int) -> Genotype:
    return discretize(random_weights(seed))


def strength(weights: Weights, genotype: Genotype) -> float:
    total = 0.0
    for cell in CELLS:
        for number, (operation, source) in enumerate(getattr(genotype, cell)):
            edge = EDGES.index((source, number // 2 + 2))
            total += weights[cell].edges[edge] * weights[cell].operations[edge][CANDIDATES.index(operation)]
    return total


@given(seeds)
def test_a_genotype_keeps_the_two_strongest_edges_and_their_strongest_operations(seed: int) -> None:
    weights = random_weights(seed)
    genotype = discretize(weights)
    assert read_genotype(genotype.to_dict()) == genotype
    for cell, (node, into) in product(CELLS, enumerate(INTO)):
        rows, edges = weights[cell].operations, weights[cell].edges
        best = {edge: max(rows[edge][1:]) * edges[edge] for edge in into}  # all but none
        expected = set(sorted(into, key=lambda edge: -best[edge])[:2])
        pair = getattr(genotype, cell)[2 * node : 2 * node + 2]
        assert {EDGES.index((edge.input, node + 2)) for edge in pair} == expected
        for edge in pair:
            row = rows[EDGES.index((edge.input, node + 2))]
            assert row[CANDIDATES.index(edge.operation)] == max(row[1:])


def test_of_equals_the_earlier_wins() -> None:
    rows = [[1 / 8] * 8 for _ in EDGES]
    uniform = {cell: CellWeights(rows, [0.5] * len(EDGES)) for cell in CELLS}
    expected = [Edge("max_pool_3x3", source) for _ in CONCAT for source in (0, 1)]
    assert discretize(uniform).normal == discretize(uniform).reduce == tuple(expected)


@given(seeds)
def test_what_is_kept_of_a_genotype_decides_for_it_again(seed: int) -> None:
    genotype = random_genotype(seed)
    assert discretize(one_hot(genotype)) == genotype
    normal, _, edges, _ = mixture_of(one_hot(genotype), CPU)
    assert normal.sum() == edges.sum() == 8


@settings(max_examples=25)
@given(seeds, st.floats(0, 1))
def test_within_a_limit_the_strongest_cell_that_fits_is_taken(seed: int, tightness: float) -> None:
    """Against all choices for the first node of both cells; the other nodes cost nothing."""
    weights = random_weights(seed)
    rng = np.random.default_rng(seed)
    costs = {cell: [[0] * 8 for _ in EDGES] for cell in CELLS}
    for cell, edge, candidate in product(CELLS, INTO[0], range(1, 8)):
        costs[cell][edge][candidate] = int(rng.integers(0, 50))
    free = Budget(1000, costs, 1e9)
    most = 1000 + tightness * (free.of(discretize(weights, free)) - 1000)
    lowest = sum(min(costs[cell][edge][1:]) for cell in CELLS for edge in INTO[0])
    most = max(most, 1000 + lowest)
    found = discretize(weights, Budget(1000, costs, most))
    assert free.of(found) <= most
    values = []
    for picks in product(range(1, 8), repeat=4):
        entries = [(cell, edge, pick) for (cell, edge), pick in zip(product(CELLS, INTO[0]), picks)]
        if 1000 + sum(costs[cell][edge][pick] for cell, edge, pick in entries) <= most:
            values.append(
                sum(weights[cell].edges[edge] * weights[cell].operations[edge][pick] for cell, edge, pick in entries)
            )
    unlimited = discretize(weights)
    others = strength(weights, unlimited) - strength(
        weights, Genotype(unlimited.normal[:2], (2,), unlimited.reduce[:2], (2,))
    )
    assert strength(weights, found) == pytest.approx(max(values) + others)


@given(seeds, st.integers(430, 700))
def test_a_limit_in_millions_holds_for_the_real_network(seed: int, millions: int) -> None:
    weights = random_weights(seed)
    limit = budget(millions)
    found = discretize(weights, limit)
    assert cost_of(found).multiply_adds <= millions * 1e6
    if cost_of(discretize(weights)).multiply_adds <= millions * 1e6:
        assert found == discretize(weights)


def test_a_limit_that_no_cell_keeps_is_refused() -> None:
    with pytest.raises(RequestError, match=r"limit is 100, but even cells of pools make .* million: raise"):
        budget(100)


@pytest.mark.parametrize(
    ("name", "parameters", "millions"),
    [
        ("gaea-imagenet", 5_620_864, 624.04),
        ("pc-darts-imagenet", 5_342_464, 581.63),
        ("darts-v2", 4_718_752, 529.91),
        ("darts-v1", 4_510_432, 505.86),
        ("p-darts-cifar10", 4_944_352, 542.82),
    ],
)
def test_the_cost_of_published_cells(name: str, parameters: int, millions: float) -> None:
    cost = cost_of(ZOO[name].genotype)
    assert cost.parameters == parameters
    assert cost.multiply_adds / 1e6 == pytest.approx(millions, abs=0.005)


def test_the_cost_of_a_cell_is_what_a_count_of_its_layers_gives() -> None:
    genotype = random_genotype(7)
    network = CellNetwork(1000, genotype=genotype, init_channels=CHANNELS, layers=LAYERS, device=torch.device("meta"))
    counted = count(network, SIZE)
    assert cost_of(genotype) == (counted.parameters, counted.multiply_adds)


def test_changes_are_edges_that_were_not_there() -> None:
    a, b = random_genotype(1), random_genotype(2)
    assert changed_edges(None, a) == 16
    assert changed_edges(a, a) == 0
    swapped = Genotype((a.normal[1], a.normal[0], *a.normal[2:]), a.normal_concat, a.reduce, a.reduce_concat)
    assert changed_edges(a, swapped) == 0  # the order within a node says nothing
    assert 0 < changed_edges(a, b) <= 16


@given(seeds, st.lists(st.integers(0, 40), min_size=1, max_size=6), st.floats(0.05, 0.95), st.floats(0, 1))
def test_shares_of_each_class_have_no_image_in_common(seed: int, counts: list[int], first: float, rest: float) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int32)
    fractions = (first, rest * (1 - first))
    parts = class_fractions(labels, len(counts), seed, fractions)
    assert not set(parts[0]) & set(parts[1])
    for part, fraction in zip(parts, fractions):
        assert np.all(np.diff(part) > 0)
        found = np.bincount(labels[part], minlength=len(counts))
        assert np.all(np.abs(found - fraction * np.array(counts)) <= 1)
    assert all(np.array_equal(a, b) for a, b in zip(parts, class_fractions(labels, len(counts), seed, fractions)))


def test_other_seeds_choose_other_images() -> None:
    labels = np.zeros(100, np.int32)
    a, b = (class_fractions(labels, 1, seed, [0.5])[0] for seed in (0, 1))
    assert not np.array_equal(a, b)
    assert stream_seed(0, 1) != stream_seed(1, 1) != 1


def test_law_1_a_subset_is_visited_in_the_order_of_the_whole(tmp_path: Path) -> None:
    source = FolderSource(str(make_folder(tmp_path / "data")))
    chosen = class_fractions(source.catalog.train.labels, 3, 5, [0.5])[0]
    subset = Subset(source, chosen)
    assert len(subset.catalog.train) == 9
    assert subset.catalog.val is source.catalog.val
    order = chosen[subset.epoch_order(3, 2)]
    assert sorted(order) == sorted(chosen)
    assert order.tolist() == [index for index in source.epoch_order(3, 2) if index in set(chosen)]
    for number, index in enumerate(chosen.tolist()):
        assert subset.path("train", number) == source.path("train", index)
        assert subset.read("train", number) == source.read("train", index)
        assert subset.catalog.train.name(number) == source.catalog.train.name(index)
        assert subset.catalog.train.labels[number] == source.catalog.train.labels[index]
    assert list(subset.fetch("val", [0, 1])) == list(source.fetch("val", [0, 1]))


def test_the_result_is_a_genotype_file(tmp_path: Path) -> None:
    genotype = random_genotype(3)
    write_genotype(tmp_path / "genotype.json", genotype, {"lineage": {"seed": 1}})
    assert read_genotype(str(tmp_path / "genotype.json")) == genotype
    assert json.loads((tmp_path / "genotype.json").read_text())["lineage"] == {"seed": 1}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"search": {"method": "gea"}}, "hyperparameters.search.method: must be gaea or pc-darts or darts, got 'gea'"),
    ({"search": {"epochs": 1}}, "hyperparameters.search.epochs: unknown key; did you mean settled_epochs?"),
    ({"search": 3}, "hyperparameters.search: must be a block of keys"),
    ({"search": {"weights_share": 0.9}}, "weights_share 0.9 and architecture_share 0.5 exceed 1 together"),
    ({"search": {"level": "single", "architecture_share": 0.1}}, "architecture_share goes with level bilevel"),
    ({"search": {}, "do_SE": True}, "do_SE is True, which a search does not have: leave it out"),
    ({"search": {}, "genotype": "darts-v2"}, "genotype and search are both given"),
    ({"search": {}, "init_channels": 12}, "init_channels 12 must be a multiple of 8, twice search.channel_divisor"),
    ({"search": {}, "layers": 2}, "layers 2 have no normal cell to search for"),
    ({"search": {"architecture_warmup_epochs": 9}, "epochs": 9}, "leaves none of 9 epochs for the architecture"),
]


@pytest.mark.parametrize(("block", "message"), REFUSED, ids=[message[-24:] for _, message in REFUSED])
def test_a_search_block_that_cannot_be_done_is_refused_by_name(block: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as refused:
        experiment_from({"hyperparameters": block})
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_null_values_are_the_methods_own() -> None:
    own = {method: Search(method=method) for method in ("gaea", "pc-darts", "darts")}  # type: ignore[arg-type]
    assert [search.rate(50) for search in own.values()] == [0.1, 6e-4, 6e-4]
    assert [search.divisor for search in own.values()] == [4, 4, 1]
    assert [search.warmup(50) for search in own.values()] == [0, 15, 0]
    assert own["gaea"].fractions == (0.5, 0.5)
    assert Search(level="single").fractions == (1.0, 0.0)
