"""Cells as data: round trips are identities, malformed cells get one precise error, nothing is evaluated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gaeanet.cells.genotype import Edge, Genotype
from gaeanet.cells.operations import OPERATIONS
from gaeanet.cells.read import from_dict, from_text, read_genotype
from gaeanet.cells.zoo import ZOO
from gaeanet.errors import RequestError

GAEA = ZOO["gaea-imagenet"].genotype


@st.composite
def cells(draw: st.DrawFn) -> tuple[tuple[Edge, ...], tuple[int, ...]]:
    nodes = draw(st.integers(1, 6))
    edges = [
        Edge(draw(st.sampled_from(list(OPERATIONS))), draw(st.integers(0, node + 1)))
        for node in range(nodes)
        for _ in range(2)
    ]
    concat = draw(st.lists(st.integers(2, nodes + 1), min_size=1, unique=True))
    return tuple(edges), tuple(concat)


genotypes = st.builds(lambda normal, reduce: Genotype(*normal, *reduce), cells(), cells())


@given(genotypes)
def test_round_trips_are_identities(genotype: Genotype) -> None:
    assert from_text(genotype.to_text()) == genotype
    assert from_dict(json.loads(genotype.to_json())) == genotype
    assert from_dict(yaml.safe_load(genotype.to_yaml())) == genotype
    assert read_genotype(genotype.to_dict()) == genotype
    assert read_genotype(genotype.to_text()) == genotype


@given(genotypes, genotypes)
def test_the_fingerprint_tells_genotypes_apart(a: Genotype, b: Genotype) -> None:
    assert (a.fingerprint == b.fingerprint) == (a == b)


@pytest.mark.parametrize("name", ZOO)
def test_files_of_every_kind_are_read(tmp_path: Path, name: str) -> None:
    genotype = ZOO[name].genotype
    for suffix, text in (
        ("json", genotype.to_json()),
        ("yaml", genotype.to_yaml()),
        ("py", f"from x import y\n\nBEST = {genotype.to_text()}\n"),
        ("log", f"2020-01-01 03:04 PM genotype = {genotype.to_text()}\n2020-01-01 epoch 3"),
    ):
        path = tmp_path / f"cell.{suffix}"
        path.write_text(text)
        assert read_genotype(str(path)) == genotype


def test_the_spellings_of_other_projects_are_understood() -> None:
    text = (
        "Genotype(normal=[('sep_conv_3x3', 1), ('skip_connect', 0)], normal_concat=range(2, 3), "
        "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1)], reduce_concat=[2])"
    )
    genotype = from_text("DARTS_V9 = " + text.replace(", ", ",\n  "))
    assert genotype.normal == (("sep_conv_3x3", 1), ("skip_connect", 0))
    assert genotype.normal_concat == (2,)
    normal, reduce = "[('sep_conv_3x3', 1), ('skip_connect', 0)]", "[('max_pool_3x3', 0), ('max_pool_3x3', 1)]"
    positional = f"Genotype({normal}, range(2, 3), {reduce}, [2])"
    assert from_text(positional) == genotype


MALFORMED: list[tuple[dict[str, Any], str]] = [
    (
        {"normal": [["sep_conv_3x3", 0], ["sep_conv_4x4", 1]]},
        "normal edge 1: unknown operation 'sep_conv_4x4'; did you mean",
    ),
    (
        {"normal": [["sep_conv_3x3", 0], ["sep_conv_3x3", 2]]},
        "normal edge 1 enters state 2: its input must be a state from 0 to 1, got 2",
    ),
    ({"normal": [["sep_conv_3x3", 0], ["sep_conv_3x3", -1]]}, "got -1"),
    ({"normal": [["sep_conv_3x3", 0], ["sep_conv_3x3", True]]}, "got True"),
    ({"reduce": [["sep_conv_3x3", 0]] * 3}, "reduce has 3 edges; every node needs exactly two"),
    ({"reduce": []}, "reduce has 0 edges"),
    ({"normal_concat": [2, 9]}, "normal_concat may hold the nodes 2 to 5, got 9"),
    ({"normal_concat": [2, 2]}, "name at least one node and none twice, got [2, 2]"),
    ({"reduce_concat": []}, "name at least one node"),
    ({"reduce_concat": "2"}, "reduce_concat must be a list of states, not '2'"),
    ({"normal": ["sep_conv_3x3"]}, "normal edge 0: expected a pair [operation, input], got 'sep_conv_3x3'"),
    ({"normal": 3}, "normal must be a list of [operation, input] pairs, not 3"),
]


@pytest.mark.parametrize(("change", "message"), MALFORMED, ids=[message[:30] for _, message in MALFORMED])
def test_field_report_9_a_malformed_cell_gets_one_precise_error(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "my.json"
    path.write_text(json.dumps({**GAEA.to_dict(), **change}))
    with pytest.raises(RequestError) as refusal:
        read_genotype(str(path))
    assert message in str(refusal.value)
    assert "my.json" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_field_report_9_a_concat_of_three_nodes_is_built_as_written() -> None:
    from gaeanet.models.network import CellNetwork

    genotype = from_dict({**GAEA.to_dict(), "normal_concat": [3, 4, 5]})
    network = CellNetwork(10, genotype=genotype, init_channels=4, layers=3, device="meta")  # type: ignore[arg-type]
    assert network.cells[1].preprocess1.op[1].in_channels == 3 * 4
    again = read_genotype(json.loads(json.dumps(genotype.to_dict())))
    assert again == genotype


@pytest.mark.parametrize(
    "text",
    [
        "Genotype(normal=open('/etc/passwd').read(), normal_concat=[2], reduce=[], reduce_concat=[2])",
        "Genotype(normal=[('a', 1)] * 10**9, normal_concat=[2], reduce=[], reduce_concat=[2])",
        "Genotype(normal=[x for x in ()], normal_concat=range(10**12), reduce=[], reduce_concat=[2])",
        "Genotype(nrmal=[])",
        "Genotype(normal=[",
        "no genotype here",
        "Genotype(" + "(" * 500 + ")" * 500 + ")",
    ],
)
def test_text_is_parsed_never_evaluated(text: str) -> None:
    with pytest.raises(RequestError) as refusal:
        from_text(text)
    assert "\n" not in str(refusal.value)


def test_what_is_no_genotype_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    (tmp_path / "half.json").write_text(json.dumps({"normal": []}))
    for reference, message in [
        (str(tmp_path / "binary"), "cannot be read"),
        (str(tmp_path / "list.yaml"), "expected a mapping"),
        (str(tmp_path / "half.json"), "no normal_concat and no reduce and no reduce_concat"),
        ("gaea", "neither a file nor a known cell; did you mean gaea"),
        ("x" * 5000, "neither a file nor a known cell|cannot be read"),
        (3, "expected a mapping"),
    ]:
        with pytest.raises(RequestError, match=message):
            read_genotype(reference)
