"""What report.html says of a search: its mind over time. Text only; nothing here needs torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from gaeanet.cells.read import from_dict
from gaeanet.cells.space import CANDIDATES, CELLS, CONCAT, EDGES, INTO
from gaeanet.report.cell_drawing import draw
from gaeanet.report.charts import Point, Series, line_chart

Line = dict[str, Any]

_NAMES = {"normal": "normal cell", "reduce": "reduction cell"}
_WIDTH, _HEIGHT = 132, 66
_INPUT_COLOURS = (4, 1, 6, 2, 3)
"""Of the states 0 to 4 where they compete: colours far from each other."""


def sections(lines: Sequence[Line], heading: str) -> Iterator[str]:
    """The sections of one search, from its log.

    Args:
        heading: The element of their titles, for example `h2`.
    """
    epochs = [line for line in lines if "operation_weights" in line]
    validations = [line for line in lines if line["kind"] == "validation"]
    yield f"<section><{heading}>Search</{heading}>"
    if not epochs:
        yield '<p class="empty">No epoch has ended yet.</p></section>'
        return
    yield from _charts(epochs, validations)
    yield "</section>"
    yield f"<section><{heading}>Weights over time</{heading}>"
    yield (
        "<p>Each field is one edge, from its input to its node: the share of each operation from the uniform start on "
        "the left to now. Below, for each node, the shares of the edges that compete for it.</p>"
    )
    yield _legend([(number, name.replace("_", " ")) for number, name in enumerate(CANDIDATES)])
    for cell in CELLS:
        yield from _cell(cell, epochs)
    yield f"</section><section><{heading}>Genotype by epoch</{heading}>"
    yield from _table(epochs, validations)
    genotype = from_dict(epochs[-1]["genotype"])
    name = f"found after {epochs[-1]['epoch']:g} epochs"
    yield f'<div class="scroll cell">{draw(genotype, name)}</div>'
    yield f"<pre>{escape(genotype.to_text())}</pre></section>"


def _charts(epochs: Sequence[Line], validations: Sequence[Line]) -> Iterator[str]:
    def points(lines: Sequence[Line], key: str, factor: float = 1.0) -> list[Point]:
        return [(line["epoch"], factor * line[key]) for line in lines if key in line]

    yield '<div class="charts">'
    entropies = [Series("operations, mean over edges", points(epochs, "entropy"), "s0", dots=True)]
    if any(line["edge_entropy"] for line in epochs):
        entropies.append(Series("edges, mean over nodes", points(epochs, "edge_entropy"), "s1", dots=True))
    yield line_chart("entropy", "entropy of the weights, nats", "nats", entropies, from_zero=True)
    gap = [
        Series("supernet, as it is mixed", points(validations, "top1_accuracy"), "s0", dots=True),
        Series(
            "decided: the genotype's operations alone", points(validations, "discrete_top1_accuracy"), "s1", dots=True
        ),
    ]
    yield line_chart("gap", "supernet and its decision, top-1, %", "%", gap)
    changes = [Series("edges unlike the epoch before", points(epochs, "genotype_changes"), "s2", dots=True)]
    yield line_chart("changes", "changes of the genotype, edges of 16", "", changes, from_zero=True)
    cost = [Series("multiply-adds", points(epochs, "genotype_multiply_adds", 1e-6), "s3", dots=True)]
    yield line_chart("cost", "cost of the genotype's ImageNet network, million multiply-adds", "M", cost)
    yield "</div>"


def _cell(cell: str, epochs: Sequence[Line]) -> Iterator[str]:
    yield f'<h4>{_NAMES[cell]}</h4><div class="simplexes">'
    uniform = [1 / len(CANDIDATES)] * len(CANDIDATES)
    for edge, (source, node) in enumerate(EDGES):
        rows = [uniform] + [line["operation_weights"][cell][edge] for line in epochs]
        names = [name.replace("_", " ") for name in CANDIDATES]
        yield _simplex(f"{source} to {node}", rows, names, range(len(CANDIDATES)), epochs)
    yield "</div>"
    if not any(line["edge_entropy"] for line in epochs):
        return  # the method has no weights of edges
    yield '<div class="simplexes">'
    for node, into in zip(CONCAT, INTO):
        rows = [[1 / len(into)] * len(into)] + [[line["edge_weights"][cell][edge] for edge in into] for line in epochs]
        names = [f"from {EDGES[edge][0]}" for edge in into]
        yield _simplex(f"into {node}", rows, names, _INPUT_COLOURS, epochs)
    yield "</div>" + _legend([(_INPUT_COLOURS[state], f"from {state}") for state in range(len(_INPUT_COLOURS))])


def _simplex(
    title: str, rows: Sequence[Sequence[float]], names: Sequence[str], colours: Sequence[int], epochs: Sequence[Line]
) -> str:
    """A field in which each part's height is its share, over the epochs."""
    ends = [0.0] + [float(line["epoch"]) for line in epochs]
    xs = [_WIDTH * end / ends[-1] for end in ends]
    below = [0.0] * len(rows)
    parts = []
    for part, name in enumerate(names):
        above = [low + row[part] for low, row in zip(below, rows)]
        upper = [f"{x:.1f},{_HEIGHT * (1 - share):.1f}" for x, share in zip(xs, above)]
        lower = [f"{x:.1f},{_HEIGHT * (1 - share):.1f}" for x, share in zip(xs, below)]
        parts.append(
            f'<polygon class="c{colours[part]}" points="{" ".join([*upper, *reversed(lower)])}">'
            f"<title>{escape(name)}: {rows[-1][part]:.3f}</title></polygon>"
        )
        below = above
    best = max(range(len(names)), key=lambda part: rows[-1][part])
    return (
        f'<figure class="simplex"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title, quote=True)}">{"".join(parts)}</svg><figcaption>{escape(title)} '
        f"<small>{escape(names[best])} {rows[-1][best]:.2f}</small></figcaption></figure>"
    )


def _legend(entries: Sequence[tuple[int, str]]) -> str:
    items = (
        f'<li><svg width="12" height="12" aria-hidden="true"><rect class="c{colour}" width="12" height="12"/></svg>'
        f"{escape(name)}</li>"
        for colour, name in entries
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _table(epochs: Sequence[Line], validations: Sequence[Line]) -> Iterator[str]:
    counted = {line["batches"]: line for line in validations}
    rows = []
    for line in reversed(epochs):
        genotype, validation = from_dict(line["genotype"]), counted.get(line["batches"], {})
        accuracies = [validation.get(key) for key in ("top1_accuracy", "discrete_top1_accuracy")]
        shown = "".join(f"<td class=n>{value:.2f}" if value is not None else "<td class=n>-" for value in accuracies)
        rows.append(
            f"<tr><td class=n>{line['epoch']:g}<td><code>{genotype.fingerprint}</code><td class=n>"
            f"{line['genotype_changes']}<td class=n>{line['entropy']:.3f}<td class=n>"
            f"{line['genotype_multiply_adds'] / 1e6:.0f}<td class=n>{line['genotype_parameters'] / 1e6:.2f}{shown}</tr>"
        )
    head = (
        "<tr><th class=n>epoch<th>genotype<th class=n>edges changed<th class=n>entropy<th class=n>multiply-adds, M"
        "<th class=n>parameters, M<th class=n>supernet top-1, %<th class=n>decided top-1, %</tr>"
    )
    yield f'<div class="scroll"><table>{head}{"".join(rows[:10])}</table></div>'
    if rows[10:]:
        yield f'<details><summary>earlier epochs</summary><div class="scroll"><table>{head}{"".join(rows[10:])}'
        yield "</table></div></details>"


STYLE = """
.simplexes{display:grid;grid-template-columns:repeat(auto-fill,minmax(128px,1fr));gap:8px;margin:6px 0 10px}
figure.simplex{padding:6px}.simplex svg{display:block;width:100%;height:66px;border-radius:4px}
.simplex figcaption{font-size:.82rem;margin:4px 2px 0;line-height:1.3}.simplex small{display:block;font-weight:400}
h4{margin:14px 0 4px;font-size:1rem}
""" + "".join(
    f".c{number}{{fill:{colour}}}"
    for number, colour in enumerate(
        ("#c3cad0", "#c8501e", "#d9a520", "#5a6670", "#1f5fa8", "#6aa6e8", "#7d4fa8", "#b892dd")
    )
)
"""Colours of the candidates, told apart on light and on dark paper, and the fields' size."""
