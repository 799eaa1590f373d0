"""The part of report.html on a search: its weights over time. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gaeanet.cells.read import from_dict
from gaeanet.cells.space import CANDIDATES, CELLS, CONCAT, EDGES, INTO
from gaeanet.report.cell_drawing import draw
from gaeanet.report.charts import Trace, line_chart
from gaeanet.report.series import Line, points_of

WIDTH, HEIGHT = 132, 66
"""Of a field, in units of its drawing."""
RECENT = 10
"""Epochs in the table that is shown first; earlier ones are folded away."""
_INPUT_COLOURS = (4, 1, 6, 2, 3)
"""Of the states 0 to 4 where they compete: colours far from each other."""
_NAMES = [name.replace("_", " ") for name in CANDIDATES]


class Part(NamedTuple):
    """One part of a field: colour class, the corners of its polygon, name and weight at the end."""

    colour: int
    corners: str
    name: str
    weight: str


class Field(NamedTuple):
    """A field in which each part's height is its weight, over the epochs; `best` and `weight` are of the largest."""

    title: str
    parts: list[Part]
    best: str
    weight: str


@dataclass
class SearchSection:
    """The template's variables for a search.

    Attributes:
        charts: SVG texts; empty as long as no epoch has ended.
        cells: For each cell its name, a field for each edge, and a field for each node's competing edges.
        operations, inputs: Legends of the fields: colour class and name.
        rows: The table of genotypes, newest first.
        drawing, genotype: The newest cell as SVG and as text.
    """

    charts: list[str] = field(default_factory=list)
    cells: list[tuple[str, list[Field], list[Field]]] = field(default_factory=list)
    operations: list[tuple[int, str]] = field(default_factory=lambda: list(enumerate(_NAMES)))
    inputs: list[tuple[int, str]] = field(
        default_factory=lambda: [(colour, f"from {state}") for state, colour in enumerate(_INPUT_COLOURS)]
    )
    rows: list[list[str]] = field(default_factory=list)
    drawing: str = ""
    genotype: str = ""
    recent: int = RECENT
    width: int = WIDTH
    height: int = HEIGHT


def search_section(lines: Sequence[Line]) -> SearchSection:
    """The template's variables for one search, from its log."""
    epochs = [line for line in lines if "operation_weights" in line]
    validations = [line for line in lines if line["kind"] == "validation"]
    if not epochs:
        return SearchSection()
    genotype = from_dict(epochs[-1]["genotype"])
    return SearchSection(
        list(_charts(epochs, validations)),
        [(name, *_fields(cell, epochs)) for cell, name in zip(CELLS, ("normal cell", "reduction cell"))],
        rows=[_row(line, validations) for line in reversed(epochs)],
        drawing=draw(genotype, f"found after {epochs[-1]['epoch']:g} epochs"),
        genotype=genotype.to_text(),
    )


def _charts(epochs: Sequence[Line], validations: Sequence[Line]) -> Iterator[str]:
    def trace(name: str, lines: Sequence[Line], key: str, colour: int, factor: float = 1.0) -> Trace:
        points = [(epoch, factor * value) for line in lines for epoch, value in points_of([line], line["kind"], key)]
        return Trace(name, points, f"s{colour}", dots=True)

    entropies = [trace("operations, mean over edges", epochs, "entropy", 0)]
    if any(line["edge_entropy"] for line in epochs):
        entropies.append(trace("edges, mean over nodes", epochs, "edge_entropy", 1))
    yield line_chart("entropy", "entropy of the weights, nats", "nats", entropies, from_zero=True)
    gap = [
        trace("supernet, as it is mixed", validations, "top1_accuracy", 0),
        trace("decided: the genotype's operations alone", validations, "discrete_top1_accuracy", 1),
    ]
    yield line_chart("gap", "supernet and its decision, top-1, %", "%", gap)
    changes = [trace("edges unlike the epoch before", epochs, "genotype_changes", 2)]
    yield line_chart("changes", "changes of the genotype, edges of 16", "", changes, from_zero=True)
    cost = [trace("multiply-adds", epochs, "genotype_multiply_adds", 3, 1e-6)]
    yield line_chart("cost", "cost of the genotype's ImageNet network, million multiply-adds", "M", cost)


def _fields(cell: str, epochs: Sequence[Line]) -> tuple[list[Field], list[Field]]:
    """A field for each edge of a cell; and for each node, where the method has weights of edges."""
    uniform = [1 / len(CANDIDATES)] * len(CANDIDATES)
    edges = [
        _field(
            f"{source} to {node}",
            [uniform, *(line["operation_weights"][cell][edge] for line in epochs)],
            _NAMES,
            range(len(CANDIDATES)),
            epochs,
        )
        for edge, (source, node) in enumerate(EDGES)
    ]
    if not any(line["edge_entropy"] for line in epochs):
        return edges, []
    nodes = []
    for node, into in zip(CONCAT, INTO):
        rows = [[1 / len(into)] * len(into), *([line["edge_weights"][cell][edge] for edge in into] for line in epochs)]
        names = [f"from {EDGES[edge][0]}" for edge in into]
        nodes.append(_field(f"into {node}", rows, names, _INPUT_COLOURS, epochs))
    return edges, nodes


def _field(
    title: str, rows: Sequence[Sequence[float]], names: Sequence[str], colours: Sequence[int], epochs: Sequence[Line]
) -> Field:
    ends = [0.0] + [float(line["epoch"]) for line in epochs]
    xs = [WIDTH * end / ends[-1] for end in ends]
    below = [0.0] * len(rows)
    parts = []
    for part, name in enumerate(names):
        above = [low + row[part] for low, row in zip(below, rows)]
        upper = [f"{x:.1f},{HEIGHT * (1 - weight):.1f}" for x, weight in zip(xs, above)]
        lower = [f"{x:.1f},{HEIGHT * (1 - weight):.1f}" for x, weight in zip(xs, below)]
        parts.append(Part(colours[part], " ".join([*upper, *reversed(lower)]), name, f"{rows[-1][part]:.3f}"))
        below = above
    best = max(range(len(names)), key=lambda part: rows[-1][part])
    return Field(title, parts, names[best], f"{rows[-1][best]:.2f}")


def _row(line: Line, validations: Sequence[Line]) -> list[str]:
    """A row of the table of genotypes."""
    validation: dict[str, Any] = next((v for v in validations if v["batches"] == line["batches"]), {})
    accuracies = [validation.get(key) for key in ("top1_accuracy", "discrete_top1_accuracy")]
    return [
        f"{line['epoch']:g}",
        from_dict(line["genotype"]).fingerprint,
        f"{line['genotype_changes']}",
        f"{line['entropy']:.3f}",
        f"{line['genotype_multiply_adds'] / 1e6:.0f}",
        f"{line['genotype_parameters'] / 1e6:.2f}",
        *("-" if value is None else f"{value:.2f}" for value in accuracies),
    ]
