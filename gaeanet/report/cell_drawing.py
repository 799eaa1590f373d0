"""A drawing of both cells of a genotype as SVG, laid out so that nothing can overlap. Nothing here needs torch.

Time runs from left to right: the two inputs, then for each node a column with its two operations and one with the
node, then the output. Every state has a lane, a height of its own, in which its box stands and its line runs on to
wherever it is read last. An operation's label stands just above or below its node's lane, where no other line runs;
lines leave their lane only in the gaps between columns, where neither boxes nor labels are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from gaeanet.cells.genotype import Edge, Genotype
from gaeanet.cells.operations import KINDS, OPERATIONS, Kind
from gaeanet.errors import RequestError
from gaeanet.runtime.files import replace_text
from gaeanet.runtime.names import shortened

Point = tuple[float, float]
Curve = tuple[Point, Point, Point, Point]
"""A cubic Bezier curve: start, two control points, end."""

_INK, _LINE, _PALE, _FRAME = "#1f2a33", "#7c8791", "#eef1f4", "#d9dee3"
_FONT = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
_LANE = 74.0
_LABEL = (122.0, 27.0)
_LABEL_OFFSET = 18.0
_MARGIN = 26.0


@dataclass(frozen=True)
class Box:
    """A rounded rectangle with text; x and y are its upper left corner.

    Attributes:
        operation: Of the edge that a label belongs to; empty for states and the output.
    """

    x: float
    y: float
    width: float
    height: float
    text: tuple[str, ...]
    operation: str = ""

    @property
    def middle(self) -> Point:
        return self.x + self.width / 2, self.y + self.height / 2


@dataclass(frozen=True)
class Link:
    """The way of an edge: from the box of its state past its label to its node, or from a state to the output."""

    source: Box
    target: Box
    label: Box | None
    curves: tuple[Curve, ...]


@dataclass
class Layout:
    """Where everything in the drawing of one cell is, the upper left corner being (0, 0)."""

    width: float = 0.0
    height: float = 0.0
    boxes: list[Box] = field(default_factory=list)
    labels: list[Box] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)


def lay_out(edges: Sequence[Edge], concat: Sequence[int], reduction: bool) -> Layout:
    """Places the boxes, labels and lines of one cell.

    Args:
        edges, concat: The cell's part of a genotype.
        reduction: Whether operations on the inputs have stride 2, which is then in their labels.
    """
    nodes = len(edges) // 2
    lanes = _lanes(edges, concat)
    heights = [_MARGIN + _LANE * (lanes[state] + 0.5) for state in range(nodes + 2)]
    layout = Layout(height=_LANE * (nodes + 2) + 2 * _MARGIN)

    x = _MARGIN
    for state, text in ((0, "two cells back"), (1, "previous cell")):
        layout.boxes.append(Box(x, heights[state] - 23, 112, 46, (f"{state}", text)))
    x += 112
    for node in range(2, nodes + 2):
        # The line from the upper state goes to the upper label, so that the two never cross.
        pair = sorted(edges[2 * node - 4 : 2 * node - 2], key=lambda edge: heights[edge.input])
        entry = x
        x += 44 + 0.12 * max(abs(heights[edge.input] - heights[node]) for edge in pair)
        labels = [
            Box(x, heights[node] + offset - _LABEL[1] / 2, *_LABEL, (_label(edge, reduction),), edge.operation)
            for edge, offset in zip(pair, (-_LABEL_OFFSET, _LABEL_OFFSET))
        ]
        box = Box(x + _LABEL[0] + 34, heights[node] - 20, 50, 40, (f"{node}",))
        layout.labels += labels
        layout.boxes.append(box)
        for edge, label, offset in zip(pair, labels, (-7, 7)):
            source, middle = layout.boxes[edge.input], label.middle[1]
            way = (
                _curve((source.x + source.width, heights[edge.input]), (entry, heights[edge.input])),
                _curve((entry, heights[edge.input]), (label.x, middle)),
                _curve((label.x + label.width, middle), (box.x, heights[node] + offset)),
            )
            layout.links.append(Link(source, box, label, way))
        x = box.x + box.width
    x += 46
    ends = [heights[state] for state in concat]
    output = Box(x, min(ends) - 26, 96, max(ends) - min(ends) + 52, ("output", "concatenated"))
    for state in concat:
        source = layout.boxes[state]
        straight = _curve((source.x + source.width, heights[state]), (x, heights[state]))
        layout.links.append(Link(source, output, None, (straight,)))
    layout.boxes.append(output)
    layout.width = x + output.width + _MARGIN
    return layout


def points(curve: Curve, number: int) -> Iterator[Point]:
    """`number` + 1 points on a curve, both ends among them."""
    for k in range(number + 1):
        t = k / number
        weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
        yield (sum(w * p[0] for w, p in zip(weights, curve)), sum(w * p[1] for w, p in zip(weights, curve)))


def _curve(start: Point, end: Point) -> Curve:
    """From `start` to `end`, level at both."""
    bend = 0.55 * (end[0] - start[0])
    return start, (start[0] + bend, start[1]), (end[0] - bend, end[1]), end


def _lanes(edges: Sequence[Edge], concat: Sequence[int]) -> list[int]:
    """The lane of each state, chosen so that few lines cross and their ways are short."""
    states = len(edges) // 2 + 2
    last_use = [0] * states
    for number, edge in enumerate(edges):
        last_use[edge.input] = number // 2 + 2
    for state in concat:
        last_use[state] = states

    def cost(lanes: list[int]) -> tuple[int, int]:
        crossings = travel = 0
        for number, edge in enumerate(edges):
            node = number // 2 + 2
            low, high = sorted((lanes[edge.input], lanes[node]))
            travel += high - low
            crossings += sum(low < lanes[other] < high and last_use[other] > node for other in range(node))
        return 3 * crossings + travel, lanes[0]

    # Move one state at a time to another lane, the others closing up, as long as that makes the drawing better.
    order = list(range(states))
    best = cost(order)
    improved = True
    while improved:
        improved = False
        for state in range(states):
            for lane in range(states):
                moved = [other for other in order if other != state]
                moved.insert(lane, state)
                moved_cost = cost(_positions(moved))
                if moved_cost < best:
                    order, best, improved = moved, moved_cost, True
    return _positions(order)


def _positions(order: list[int]) -> list[int]:
    lanes = [0] * len(order)
    for lane, state in enumerate(order):
        lanes[state] = lane
    return lanes


def _label(edge: Edge, reduction: bool) -> str:
    label = OPERATIONS[edge.operation].label
    return f"{label} /2" if reduction and edge.input < 2 else label


def draw(genotype: Genotype, name: str) -> str:
    """The text of an SVG file that shows both cells of `genotype` under the title `name`."""
    normal = lay_out(genotype.normal, genotype.normal_concat, reduction=False)
    reduce = lay_out(genotype.reduce, genotype.reduce_concat, reduction=True)
    inner = max(normal.width, reduce.width, 900)
    width, y = inner + 2 * _MARGIN, 84.0
    body = [
        _text(_MARGIN, 42, shortened(name), 24, weight="bold"),
        _text(_MARGIN, 64, f"genotype {genotype.fingerprint}", 13, colour="#5a6670"),
    ]
    for heading, remark, layout in (
        ("Normal cell", "keeps the size of the map", normal),
        ("Reduction cell", "halves the map and doubles the width; /2: the operation has stride 2", reduce),
    ):
        body.append(
            f'<rect x="{_MARGIN:g}" y="{y:g}" width="{inner:g}" height="{layout.height + 34:g}" rx="14" '
            f'fill="#fff" stroke="{_FRAME}"/>'
        )
        body.append(_text(_MARGIN + 20, y + 30, heading, 16, weight="bold"))
        body.append(_text(_MARGIN + 165, y + 30, remark, 13, colour="#5a6670"))
        left = _MARGIN + (inner - layout.width) / 2
        body.append(f'<g transform="translate({left:g} {y + 34:g})">')
        body += _cell(layout)
        body.append("</g>")
        y += layout.height + 34 + 18
    legend, y = _legend(genotype, y + 14, width)
    height = y + 18
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
            f'viewBox="0 0 {width:g} {height:g}" role="img" font-family="{_FONT}">',
            f"<title>{escape(name)} (genotype {genotype.fingerprint})</title>",
            f'<rect width="{width:g}" height="{height:g}" fill="#fff"/>',
            *body,
            *legend,
            "</svg>\n",
        ]
    )


def _cell(layout: Layout) -> Iterator[str]:
    stems: dict[Box, Curve] = {}
    for link in layout.links:
        curve = link.curves[0]
        if link.source not in stems or stems[link.source][3][0] < curve[3][0]:
            stems[link.source] = curve
    for curve in stems.values():
        yield _stroke(curve, _LINE, 2)
    # Where a branch passes over the line of another state, a gap in that line shows that they do not join.
    for link in layout.links:
        if link.label:
            middle = " ".join(f"{x:.1f},{y:.1f}" for x, y in list(points(link.curves[1], 40))[9:32])
            yield f'<polyline points="{middle}" fill="none" stroke="#fff" stroke-width="8"/>'
    for link in layout.links:
        colour = _kind_of(link.label.operation).colour if link.label else _LINE
        tip = link.curves[-1][3]
        if link.label:
            yield _stroke(link.curves[1], colour, 2)
            yield _stroke(link.curves[2], colour, 2)
            x, y = link.curves[1][0]
            if link.source.x + link.source.width < x < stems[link.source][3][0]:
                yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.4" fill="{_LINE}"/>'
        yield _arrow(tip, colour)
    for label in layout.labels:
        kind = _kind_of(label.operation)
        yield _rectangle(label, kind.background, kind.colour, 13.5, 1.2)
        yield _text(*_below(label.middle, 4.4), label.text[0], 13, colour=kind.colour, anchor="middle")
    for box in layout.boxes:
        number = len(box.text) == 1
        yield _rectangle(box, "#fff" if number else _PALE, _INK, 10, 1.8 if number else 1.2)
        first, *rest = box.text
        up = 0 if number else -8
        yield _text(*_below(box.middle, 5.5 + up), first, 17 if first.isdigit() else 14, weight="bold", anchor="middle")
        for line in rest:
            yield _text(*_below(box.middle, 13.5), line, 12, colour="#46525c", anchor="middle")


def _legend(genotype: Genotype, y: float, width: float) -> tuple[list[str], float]:
    used = {_kind_of(edge.operation) for edge in (*genotype.normal, *genotype.reduce)}
    parts, x = [], _MARGIN
    for kind in KINDS.values():
        if kind in used:
            advance = 32 + 7.4 * len(kind.title) + 22
            if x + advance > width:
                x, y = _MARGIN, y + 26
            parts.append(_rectangle(Box(x, y - 12, 24, 15, ()), kind.background, kind.colour, 7, 1.2))
            parts.append(_text(x + 32, y, kind.title, 13, colour=kind.colour))
            x += advance
    remarks = (
        "A numbered box is a state. A node (2 and up) is the sum of the two operations that lead to it.",
        "A dot is where a state is read; lines that cross without a dot do not meet.",
    )
    for remark in remarks:
        y += 24
        parts.append(_text(_MARGIN, y, remark, 13, colour="#46525c"))
    return parts, y


def _kind_of(operation: str) -> Kind:
    return KINDS[OPERATIONS[operation].kind]


def _below(point: Point, distance: float) -> Point:
    return point[0], point[1] + distance


def _text(
    x: float, y: float, text: str, size: float, colour: str = _INK, weight: str = "normal", anchor: str = "start"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" font-weight="{weight}" fill="{colour}" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )


def _rectangle(box: Box, fill: str, stroke: str, radius: float, line: float) -> str:
    return (
        f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="{radius:g}" '
        f'fill="{fill}" stroke="{stroke}" stroke-width="{line:g}"/>'
    )


def _stroke(curve: Curve, colour: str, line: float) -> str:
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = curve
    way = f"M{x0:.1f} {y0:.1f}C{x1:.1f} {y1:.1f} {x2:.1f} {y2:.1f} {x3:.1f} {y3:.1f}"
    return f'<path d="{way}" fill="none" stroke="{colour}" stroke-width="{line:g}"/>'


def _arrow(tip: Point, colour: str) -> str:
    x, y = tip
    return f'<path d="M{x:.1f} {y:.1f}l-9 -4.2v8.4z" fill="{colour}"/>'


def write_drawing(genotype: Genotype, name: str, path: Path) -> None:
    """Writes `draw`'s text to `path`, replaced in one step; raises `RequestError` where that cannot be done."""
    if path.suffix.lower() != ".svg":
        raise RequestError(f"{path}: cells are drawn as SVG: name the file so that it ends in .svg")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, draw(genotype, name))
    except OSError as error:
        raise RequestError(f"{path}: cannot write the picture: {(error.strerror or str(error)).lower()}") from None
