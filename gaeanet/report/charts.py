"""Line charts as SVG text, for a page that needs no script and follows the reader's light or dark theme by CSS.

Colours are classes (`s0`, `s1`, ... and `grey`), given by the page's style sheet. Home-made, since what is hard about a
chart is where its ticks and points go, which no template engine computes, and matplotlib's SVG knows no theme.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

WIDTH, HEIGHT = 460, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 14, 40


@dataclass(frozen=True)
class Trace:
    """A line of a chart.

    Attributes:
        points: (x, y) pairs; those that are not finite break the line.
        style: CSS classes: a colour, and `dashed`, `thin` or `wide` as wanted.
        dots: Whether each point is marked, with its value to be seen under the pointer.
    """

    name: str
    points: Sequence[Point]
    style: str
    dots: bool = False


def line_chart(identity: str, title: str, unit: str, traces: Sequence[Trace], from_zero: bool = False) -> str:
    """A chart of values against epochs.

    Args:
        identity: Of the SVG element.
        unit: Stands behind the values, for example `%`.
        from_zero: Whether the vertical axis begins at 0 whatever the values.
    """
    shown = [(s, [p for p in s.points if _fits(p)]) for s in traces]
    points = [p for _, points_shown in shown for p in points_shown]
    head = f"<figure><figcaption>{escape(title)}</figcaption>"
    if not points:
        return f'{head}<p class="empty" id="{identity}">No values in the log yet.</p></figure>'
    right = max(x for x, _ in points)
    x_end = right or 1.0
    x_ticks = [tick for tick in ticks(0.0, x_end, 6) if tick <= x_end * 1.001]
    low, high = min([y for _, y in points] + [0.0] * from_zero), max(y for _, y in points)
    y_ticks = ticks(low, high, 6)
    low, high = min(low, y_ticks[0]), max(high, y_ticks[-1])

    def to_pixels(point: Point) -> Point:
        x, y = point
        fraction = (y - low) / ((high - low) or 1.0)
        inner = HEIGHT - _TOP - _BOTTOM
        return _LEFT + x / x_end * (WIDTH - _LEFT - _RIGHT), _TOP + (1 - fraction) * inner

    body = [*_axes(x_ticks, y_ticks, to_pixels, low)]
    for one, points_shown in shown:
        if not points_shown:
            continue
        runs = _unbroken([p if _fits(p) else None for p in one.points])
        for run in runs:
            way = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(to_pixels, run))
            body.append(f'<polyline class="line {one.style}" points="{way}"/>')
        if one.dots:
            for point in points_shown:
                x, y = to_pixels(point)
                value = f"{one.name}: {point[1]:.4g} {unit}".strip()
                body.append(
                    f'<circle class="dot {one.style}" cx="{x:.1f}" cy="{y:.1f}" r="3">'
                    f"<title>{escape(value)} at epoch {point[0]:g}</title></circle>"
                )
    legend = "".join(
        '<li><svg width="26" height="10" aria-hidden="true">'
        f'<line class="line {s.style}" x1="1" y1="5" x2="25" y2="5"/></svg>{escape(s.name)}</li>'
        for s, points_shown in shown
        if points_shown
    )
    return (
        f'{head}<svg id="{identity}" class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title, quote=True)}">{"".join(body)}</svg><ul class="legend">{legend}</ul></figure>'
    )


def _fits(point: Point) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])


def _unbroken(points: Sequence[Point | None]) -> list[list[Point]]:
    """The stretches between points that cannot be drawn."""
    runs: list[list[Point]] = [[]]
    for point in points:
        if point is None:
            runs.append([])
        else:
            runs[-1].append(point)
    return [run for run in runs if run]


def _axes(x_ticks: list[float], y_ticks: list[float], to_pixels: object, low: float) -> list[str]:
    assert callable(to_pixels)
    parts = []
    for value in y_ticks:
        _, y = to_pixels((0.0, value))
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{WIDTH - _RIGHT}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{_LEFT - 7}" y="{y + 4.5:.1f}" text-anchor="end">{number_text(value)}</text>'
        )
    for value in x_ticks:
        x, _ = to_pixels((value, low))
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{HEIGHT - _BOTTOM + 18}" text-anchor="middle">'
            f"{number_text(value)}</text>"
        )
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text class="tick" x="{middle:.1f}" y="{HEIGHT - 5}" text-anchor="middle">epoch</text>')
    return parts


def number_text(value: float) -> str:
    """A number as an axis has it."""
    if value and abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.6g}"


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers over the range, at most about `most`, enclosing it."""
    if high <= low:
        low = high - (abs(high) or 1.0)
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * k, 12) for k in range(first, last + 1)]
