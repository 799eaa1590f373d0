"""The drawing of a cell obeys geometry: nothing overlaps, no line runs through what is not its own."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaeanet.cells.genotype import Edge, Genotype
from gaeanet.cells.operations import OPERATIONS
from gaeanet.cells.zoo import ZOO
from gaeanet.report.cell_drawing import Box, Layout, draw, lay_out, points

GLYPH = 0.62  # of the font size: the mean width of a letter in the widest of the fonts asked for


@st.composite
def cells(draw: st.DrawFn) -> tuple[tuple[Edge, ...], tuple[int, ...]]:
    nodes = draw(st.integers(1, 8))
    edges = tuple(
        Edge(draw(st.sampled_from(list(OPERATIONS))), draw(st.integers(0, node - 1)))
        for node in range(2, nodes + 2)
        for _ in range(2)
    )
    concat = draw(st.lists(st.integers(2, nodes + 1), min_size=1, unique=True))
    return edges, tuple(concat)


def overlap(a: Box, b: Box, gap: float = 0) -> bool:
    return (
        a.x < b.x + b.width + gap
        and b.x < a.x + a.width + gap
        and a.y < b.y + b.height + gap
        and b.y < a.y + a.height + gap
    )


def check(layout: Layout, edges: tuple[Edge, ...], concat: tuple[int, ...]) -> None:
    everything = [*layout.boxes, *layout.labels]
    for a, b in itertools.combinations(everything, 2):
        assert not overlap(a, b, gap=4), (a, b)
    for box in everything:
        assert box.x >= 0
        assert box.x + box.width <= layout.width
        assert box.y >= 0
        assert box.y + box.height <= layout.height
    for label in layout.labels:
        assert len(label.text[0]) * GLYPH * 13 <= label.width
    for box in layout.boxes:
        assert max(map(len, box.text)) * GLYPH * 12 <= box.width
    for link in layout.links:
        assert link.source.x + link.source.width <= link.curves[0][0][0]
        assert link.curves[-1][3][0] <= link.target.x
        own = {link.source, link.target, *([link.label] if link.label else [])}
        way = [point for curve in link.curves for point in points(curve, 60)]
        for box in everything:
            if box in own:
                # The line touches its own boxes from outside, so that it does not run through their text either.
                assert not any(box.x + 1 < x < box.x + box.width - 1 and abs(y - box.middle[1]) < box.height / 2 - 1
                               for x, y in way)  # fmt: skip
            else:
                near = Box(box.x - 3, box.y - 3, box.width + 6, box.height + 6, ())
                assert not any(
                    near.x < x < near.x + near.width and near.y < y < near.y + near.height for x, y in way
                ), (link, box)
    drawn = sorted(
        (link.source.text[0], link.target.text[0], link.label.operation) for link in layout.links if link.label
    )
    assert drawn == sorted((str(e.input), str(k // 2 + 2), e.operation) for k, e in enumerate(edges))
    assert sorted(link.source.text[0] for link in layout.links if link.label is None) == sorted(map(str, concat))


@pytest.mark.parametrize("name", ZOO)
def test_nothing_overlaps_in_the_zoo(name: str) -> None:
    genotype = ZOO[name].genotype
    check(lay_out(genotype.normal, genotype.normal_concat, False), genotype.normal, genotype.normal_concat)
    check(lay_out(genotype.reduce, genotype.reduce_concat, True), genotype.reduce, genotype.reduce_concat)


@settings(max_examples=40)
@given(cells(), st.booleans())
def test_nothing_overlaps_in_any_cell(cell: tuple[tuple[Edge, ...], tuple[int, ...]], reduction: bool) -> None:
    check(lay_out(*cell, reduction), *cell)


@settings(max_examples=40)
@given(cells(), cells())
def test_every_drawing_is_well_formed(
    normal: tuple[tuple[Edge, ...], tuple[int, ...]], reduce: tuple[tuple[Edge, ...], tuple[int, ...]]
) -> None:
    genotype = Genotype(*normal, *reduce)
    svg = ElementTree.fromstring(draw(genotype, "a <name> & more"))
    assert svg.get("viewBox") == f"0 0 {svg.get('width')} {svg.get('height')}"
    texts = [element.text or "" for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == "a <name> & more"
    assert genotype.fingerprint in texts[1]
    width, height = float(svg.get("width", 0)), float(svg.get("height", 0))
    for element in svg.iter("{http://www.w3.org/2000/svg}text"):
        if element.get("text-anchor") == "start":
            end = float(element.get("x", 0)) + len(element.text or "") * GLYPH * float(element.get("font-size", 0))
            assert end <= width
            assert float(element.get("y", 0)) < height


def test_a_drawing_is_the_same_each_time_and_as_committed_in_the_documentation(pytestconfig: pytest.Config) -> None:
    committed = (pytestconfig.rootpath / "docs" / "gaea-imagenet.svg").read_text(encoding="utf-8")
    assert draw(ZOO["gaea-imagenet"].genotype, "gaea-imagenet") == committed


def test_the_published_cells_are_drawn_with_few_crossings() -> None:
    """A line is crossed where a branch passes it in the gap: 0 for most nodes, never many."""
    for published in ZOO.values():
        for edges, concat in (
            (published.genotype.normal, published.genotype.normal_concat),
            (published.genotype.reduce, published.genotype.reduce_concat),
        ):
            assert crossings(lay_out(edges, concat, False)) <= 5


def crossings(layout: Layout) -> int:
    trunks = {(link.source, link.curves[0]) for link in layout.links}
    longest = {source: max(c[3][0] for s, c in trunks if s == source) for source, _ in trunks}
    count = 0
    for link in layout.links:
        if link.label:
            (x, y0), _, _, (_, y1) = link.curves[1]
            for source, end in longest.items():
                level = source.middle[1]
                if source != link.source and min(y0, y1) < level < max(y0, y1) and source.x <= x < end:
                    count += 1
    return count
