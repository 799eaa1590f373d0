"""report.html as text: one file with everything in it, no script, no network; light or dark as the reader wants it.

This module has the page's content; its HTML is in `templates/`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gaeanet import __version__
from gaeanet.config.experiment import Experiment
from gaeanet.errors import counted
from gaeanet.report.cell_drawing import draw
from gaeanet.report.charts import Trace, line_chart
from gaeanet.report.recipes import against_original, differences, nearest_recipe
from gaeanet.report.search import SearchSection, search_section
from gaeanet.report.series import PANELS, Line, Series, points_of, series_of, validated_on
from gaeanet.runtime.names import shown

if TYPE_CHECKING:
    from jinja2 import Environment

    from gaeanet.report.pictures import Confusion, Sample

TEMPLATES = Path(__file__).parent / "templates"
COLOURS = 6
"""Colours of the style sheet for several runs; more runs than that begin again."""
_WORST = 12
"""Rows of the table of worst classes, at most."""


@dataclass
class RunFacts:
    """The content of a report on one run.

    Attributes:
        lines: Its log.
        experiment: Its resolved experiment file.
        lineage: Where its newest checkpoint came from, in lines.
        classes: What each class is called; empty where it is not known.
        notes: Why something is missing, in sentences.
        rows: The table of classes, worst first; empty without an evaluation.
        weights: Which weights the table of classes and the confusions are of.
    """

    name: str
    lines: list[Line]
    experiment: Experiment
    lineage: list[str] = field(default_factory=list)
    classes: Sequence[str] = ()
    notes: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    confusions: list[Confusion] = field(default_factory=list)
    weights: str = ""

    def of(self, kind: str) -> list[Line]:
        """The lines of one kind."""
        return [line for line in self.lines if line["kind"] == kind]


def page(runs: Sequence[RunFacts]) -> str:
    """The text of report.html for one run, or for several to compare."""
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs: " + ", ".join(run.name for run in runs)
    return (
        environment()
        .get_template("report.html.jinja")
        .render(
            title=title,
            version=__version__,
            generated=[run.name for run in runs if any(line.get("data") == "generated" for line in run.lines)],
            remarks=validated_on({run.name: run.lines for run in runs}),
            charts=list(_charts(runs)),
            runs=[_run(run) for run in runs],
            comparison=_comparison(runs) if len(runs) > 1 else None,
        )
    )


@cache
def environment() -> Environment:
    """The templates of all pages."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    templates.filters["shown"] = shown
    return templates


def _run(run: RunFacts) -> dict[str, Any]:
    """The template's variables for one run."""
    hp = run.experiment.hyperparameters
    search: SearchSection | None = None if hp.search is None else search_section(run.lines)
    return {
        "name": run.name,
        "tiles": list(_tiles(run)),
        "against_original": against_original(run.lines),
        "search": search,
        "notes": run.notes,
        "weights": run.weights,
        "worst": list(_worst(run)),
        "confusions": run.confusions,
        "classes": run.classes,
        "samples": run.samples,
        "mixes": hp.mixes,
        "recipe": None if search else nearest_recipe(hp),
        "network": f"{counted(hp.layers, 'cell')}, {hp.init_channels} channels, {hp.activation}"
        f"{', squeeze-excite' * hp.do_SE}, {hp.image_size} px",
        "drawing": None if search else draw(hp.cell, _cell_name(run)),
        "lineage": run.lineage,
        "config": run.experiment.to_yaml(),
    }


def _best(run: RunFacts) -> tuple[float, str, Line] | None:
    """The best validation: top-1 in percent, kind of weights, line."""
    candidates = [
        (line[f"{prefix}top1_accuracy"], kind, line)
        for line in run.of("validation")
        for kind, prefix in (("raw", ""), ("EMA", "ema_"))
        if _is_number(line.get(f"{prefix}top1_accuracy"))
    ]
    return max(candidates, key=lambda candidate: candidate[0]) if candidates else None


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _tiles(run: RunFacts) -> Iterator[tuple[str, str, str]]:
    """The headline's figures: what, how much, and of what."""
    best, end = _best(run), run.lines[-1] if run.lines else {"epoch": 0.0, "images": 0}
    if best:
        accuracy, kind, line = best
        top5 = line["ema_top5_accuracy" if kind == "EMA" else "top5_accuracy"]
        yield "best top-1", f"{accuracy:.2f} %", f"{kind} weights, epoch {line['epoch']:g}"
        yield "top-5 there", f"{top5:.2f} %" if _is_number(top5) else "-", f"{line['count']:,} images"
    epochs = run.experiment.hyperparameters.epochs
    yield "epochs", f"{end['epoch']:g} of {epochs}", f"{end['images']:,} images seen"
    speeds = sorted(value for _, value in points_of(run.lines, "train", "images_per_second"))
    if speeds:
        yield "throughput", f"{speeds[len(speeds) // 2]:,.0f} images/s", "median of the log"


def _charts(runs: Sequence[RunFacts]) -> Iterator[str]:
    logs = {run.name: run.lines for run in runs}
    for metric, title in PANELS.items():
        traces = [_trace(series, alone=len(runs) == 1) for series in series_of(logs, metric)]
        unit = "%" if metric.endswith("accuracy") else ""
        yield line_chart(metric.removesuffix("_accuracy"), title, unit, traces)
    for key, identity, title, unit in (
        ("learning_rate", "rate", "learning rate", ""),
        ("images_per_second", "speed", "throughput, images/s", "images/s"),
    ):
        traces = [
            Trace(
                key.replace("_", " ") if len(runs) == 1 else shown(run.name),
                points_of(run.lines, "train", key),
                f"s{number % COLOURS} thin",
            )
            for number, run in enumerate(runs)
        ]
        yield line_chart(identity, title, unit, traces, from_zero=True)


def _trace(series: Series, alone: bool) -> Trace:
    """A series in the classes of the style sheet."""
    colour = f"s{series.run % COLOURS}"
    style = {
        "published": "grey wide",
        "training": "grey thin",
        "raw": f"{colour} raw",
        "ema": "s1 ema" if alone else f"{colour} ema dashed",
    }[series.role]
    return Trace(series.name, series.points, style, dots=series.role in ("raw", "ema"))


def _worst(run: RunFacts) -> Iterator[dict[str, str]]:
    """The rows of the table of worst classes."""
    prefix = "ema_" if run.weights == "EMA" else ""
    names = {row["class"]: row["name"] for row in run.rows}
    for row in run.rows[:_WORST]:
        low, high = row[f"{prefix}top1_interval"]
        taken = row[f"{prefix}taken_for"]
        yield {
            "name": row["name"],
            "count": row["count"],
            "top1": f"{row[f'{prefix}top1_accuracy']:.1f}",
            "interval": f"({low:.0f} to {high:.0f})",
            "taken_for": f"{names[taken]} ({row[f'{prefix}taken_for_count']})" if taken else "none",
        }


def _cell_name(run: RunFacts) -> str:
    hp = run.experiment.hyperparameters
    is_name = isinstance(hp.genotype, str) and len(hp.genotype) < 60
    return str(hp.genotype) if is_name else f"cell {hp.cell.fingerprint}"


def _comparison(runs: Sequence[RunFacts]) -> dict[str, Any]:
    """Several runs side by side: best validations, and in what their recipes differ from the first one's."""
    rows = []
    for number, run in enumerate(runs):
        row = {"name": run.name, "colour": number % COLOURS, "top1": "-", "epoch": "-", "weights": "-", "loss": "-"}
        if best := _best(run):
            accuracy, kind, line = best
            loss = line["ema_loss" if kind == "EMA" else "loss"]
            row |= {"top1": f"{accuracy:.2f}", "epoch": f"{line['epoch']:g}", "weights": kind}
            row |= {"loss": f"{loss:.4f}" if _is_number(loss) else "-"}
        rows.append(row)
    first = runs[0].experiment.hyperparameters
    against = []
    for run in runs[1:]:
        changed = differences(run.experiment.hyperparameters, first)
        if run.experiment.hyperparameters.seed != first.seed:
            changed.append(("seed", run.experiment.hyperparameters.seed, first.seed))
        text = "; ".join(f"{key} {here} (not {there})" for key, here, there in changed)
        against.append((run.name, text or "the same recipe"))
    return {"rows": rows, "first": runs[0].name, "against": against}
