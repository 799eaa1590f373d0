"""One table for operations and one for cells: what is added there works everywhere, and nothing can be forgotten."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from tiny import Result
from torch import nn

from gaeanet.cells.genotype import Edge, Genotype
from gaeanet.cells.operations import KINDS, OPERATIONS, Operation
from gaeanet.cells.space import CANDIDATES
from gaeanet.cells.zoo import ZOO, PublishedCell, name_of
from gaeanet.models import registry
from gaeanet.models.network import CellNetwork
from gaeanet.models.operations import BUILDERS, build_operation
from gaeanet.report.cell_drawing import draw
from gaeanet.report.describe import explain
from gaeanet.search.costs import cost_of


def test_all_tables_name_the_same_operations() -> None:
    assert {operation.kind for operation in OPERATIONS.values()} == set(KINDS) == set(BUILDERS)
    assert set(CANDIDATES) - {"none"} <= set(OPERATIONS)
    assert len({(kind.colour, kind.title) for kind in KINDS.values()}) == len(KINDS)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("stride", [1, 2])
def test_every_operation_is_built_and_has_texts(name: str, stride: int) -> None:
    operation = build_operation(name, 4, stride, nn.ReLU)
    assert operation(torch.zeros(1, 4, 15, 10)).shape == (1, 4, -(-15 // stride), -(-10 // stride))
    assert 0 < len(OPERATIONS[name].label) <= 12
    assert OPERATIONS[name].description
    assert "{" not in OPERATIONS[name].label + OPERATIONS[name].description


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"skip"}))
def test_an_operation_of_a_known_kind_is_one_line(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setitem(OPERATIONS, "new_9x9", Operation(kind, 9))
    cell = (Edge("new_9x9", 0), Edge("new_9x9", 1))
    genotype = Genotype(cell, (2,), cell, (2,))
    assert build_operation("new_9x9", 4, 2, nn.ReLU)(torch.zeros(1, 4, 15, 10)).shape == (1, 4, 8, 5)
    assert f"new_9x9       {OPERATIONS['new_9x9'].description}" in explain(genotype)
    assert OPERATIONS["new_9x9"].label in draw(genotype, "x")


def test_a_cell_is_one_entry(monkeypatch: pytest.MonkeyPatch, gaeanet: Callable[..., Result]) -> None:
    turned = ZOO["darts-v2"].genotype
    genotype = Genotype(turned.reduce, turned.reduce_concat, turned.normal, turned.normal_concat)
    cell = PublishedCell(genotype, "a test", "turned_c48", {"imagenet_top1": 50.0}, "500 M")
    assert name_of(genotype) is None
    monkeypatch.setitem(ZOO, "turned", cell)
    assert name_of(genotype) == "turned"
    published: dict[str, Any] = json.loads(gaeanet("describe", "turned", "--json").out)["published"]
    assert published == {
        "source": "a test", "errors_percent": {"imagenet_top1": 50.0}, "multiply_adds": "500 M"
    }  # fmt: skip
    assert cost_of(genotype).parameters > 1e6


@pytest.mark.parametrize("name", ZOO)
def test_every_published_cell_is_registered_with_timm(name: str) -> None:
    architecture = ZOO[name].architecture
    assert architecture in timm.list_models()
    assert architecture in registry.default_cfgs
    small = {"init_channels": 4, "layers": 3, "num_classes": 2}
    shapes, expected = (
        {key: value.shape for key, value in network.state_dict().items()}
        for network in (timm.create_model(architecture, **small), CellNetwork(genotype=name, **small))
    )
    assert shapes == expected
    assert name_of(ZOO[name].genotype) == name
    errors = ZOO[name].errors
    assert set(errors) <= {"imagenet_top1", "imagenet_top5", "cifar10"}
