"""The page of a cell beside random ones: where its accuracy lies in their distribution. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from gaeanet import __version__
from gaeanet.cells.genotype import Genotype
from gaeanet.config.data import describe_minival
from gaeanet.config.experiment import Experiment
from gaeanet.report.cell_drawing import draw
from gaeanet.report.charts import number_text, ticks
from gaeanet.report.page import environment

WIDTH, HEIGHT = 760, 190
_LEFT, _RIGHT, _AXIS = 96, 24, 150
_LANES = {"found": 52, "random": 108}
"""Heights of the two rows of dots."""


class Shown(NamedTuple):
    """A cell on the page: its top-1 in percent, one value a seed, and the multiply-adds of the network trained."""

    name: str
    genotype: Genotype
    top1: Sequence[float]
    multiply_adds: int


def distribution_page(
    rows: Sequence[Shown], mean: float, deviation: float, sentence: str, experiment: Experiment
) -> str:
    """The text of report.html for a comparison with chance.

    Args:
        rows: The found cell first, then random ones.
        mean, deviation: Of the random cells' top-1.
        sentence: What follows from it.
    """
    found, *others = rows
    ranked = sorted(rows, key=lambda row: -sum(row.top1) / len(row.top1))
    return (
        environment()
        .get_template("distribution.html.jinja")
        .render(
            title=f"{experiment.name}: cell {found.genotype.fingerprint} beside {len(others)} random cells of its cost",
            version=__version__,
            sentence=sentence,
            validated=_validated_on(experiment.data.minival),
            chart=strip_chart(found.top1, [row.top1[0] for row in others], mean, deviation),
            rows=[
                {
                    "name": row.name,
                    "top1": ", ".join(f"{value:.2f}" for value in row.top1),
                    "multiply_adds": f"{row.multiply_adds / 1e6:.1f}",
                    "fingerprint": row.genotype.fingerprint,
                    "found": row is found,
                }
                for row in ranked
            ],
            drawing=draw(found.genotype, "the cell that is compared"),
            genotype=found.genotype.to_text(),
            config=experiment.to_yaml(),
        )
    )


def _validated_on(minival: float | None) -> str:
    return "Validated on " + ("the validation split." if minival is None else f"{describe_minival(minival)}, held out.")


def strip_chart(found: Sequence[float], others: Sequence[float], mean: float, deviation: float) -> str:
    """A dot for each training, in two rows, over a band of one standard deviation on either side of the mean."""
    band = (mean - deviation, mean + deviation)
    values = [*found, *others, *band]
    marks = ticks(min(values), max(values), 8)
    low, high = marks[0], marks[-1]

    def x_of(value: float) -> float:
        return _LEFT + (value - low) / ((high - low) or 1.0) * (WIDTH - _LEFT - _RIGHT)

    top, bottom = 20, _AXIS
    parts = []
    for value in marks:
        x = x_of(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{number_text(value)}</text>'
        )
    parts.append(
        f'<rect class="band" x="{x_of(band[0]):.1f}" y="{top}" width="{x_of(band[1]) - x_of(band[0]):.1f}" '
        f'height="{bottom - top}"><title>mean {mean:.2f} %, one standard deviation {deviation:.2f}</title></rect>'
    )
    parts.append(
        f'<line class="line grey" x1="{x_of(mean):.1f}" y1="{top}" x2="{x_of(mean):.1f}" y2="{bottom}"/>'
        f'<text class="tick" x="{(_LEFT + WIDTH - _RIGHT) / 2:.1f}" y="{HEIGHT - 4}" text-anchor="middle">'
        "top-1, %; the band is the random cells' mean and standard deviation</text>"
    )
    for name, values_of, style in (("found", found, "s1"), ("random", others, "s0")):
        y = _LANES[name]
        parts.append(f'<text class="tick" x="{_LEFT - 16}" y="{y + 5}" text-anchor="end">{escape(name)}</text>')
        parts += [
            f'<circle class="dot {style}" cx="{x_of(value):.1f}" cy="{y}" r="6" opacity="0.75">'
            f"<title>{escape(name)}: {value:.2f} %</title></circle>"
            for value in values_of
        ]
    label = "top-1 of the cell and of random cells"
    return (
        f'<figure><figcaption>{label}</figcaption><svg id="distribution" class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'role="img" aria-label="{label}">{"".join(parts)}</svg></figure>'
    )
