"""report.html as text: one file with everything in it, no script, no network; light or dark as the reader wants it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from gaeanet import __version__
from gaeanet.config.experiment import Experiment
from gaeanet.report import search as search
from gaeanet.report.cell_drawing import draw
from gaeanet.report.charts import Series, line_chart
from gaeanet.report.curves import PUBLISHED_EPOCHS, PUBLISHED_TOP5, Line, beside_the_published, validated_on
from gaeanet.report.recipes import against_original, differences, nearest_recipe

if TYPE_CHECKING:
    from gaeanet.report.pictures import Confusion, Sample

COLOURS = 6
"""Colours of the style sheet for several runs; more runs than that begin again."""


@dataclass
class RunFacts:
    """What a report says of one run.

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
    body = [f"<header><h1>{escape(title)}</h1>"]
    generated = [run.name for run in runs if any(line.get("data") == "generated" for line in run.lines)]
    if generated:
        which = "" if len(runs) == 1 else f" ({', '.join(map(escape, generated))})"
        body.append(f'<p class="warning">GENERATED IMAGES, not photographs{which}</p>')
    for sentence in validated_on({run.name: run.lines for run in runs}):
        body.append(f'<p class="original">{escape(sentence[0].upper() + sentence[1:])}.</p>')
    body.append(_headline(runs[0]) if len(runs) == 1 else "")
    body.append("</header><main>")
    body += _curves(runs)
    if len(runs) == 1:
        body += _details(runs[0], "h2")
    else:
        body += _comparison(runs)
        for run in runs:
            body.append(f'<details class="run"><summary><h2>{escape(run.name)}</h2></summary>{_headline(run)}')
            body += _details(run, "h3")
            body.append("</details>")
    body.append(f"</main><footer>gaeanet {__version__}</footer>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{_STYLE}{search.STYLE}</style></head><body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _best(run: RunFacts) -> tuple[float, str, Line] | None:
    """The best validation: top-1 in percent, kind of weights, line."""
    candidates = [
        (line[f"{prefix}top1_accuracy"], kind, line)
        for line in run.of("validation")
        for kind, prefix in (("raw", ""), ("EMA", "ema_"))
        if math.isfinite(line.get(f"{prefix}top1_accuracy", math.nan))
    ]
    return max(candidates, key=lambda candidate: candidate[0]) if candidates else None


def _headline(run: RunFacts) -> str:
    hp, best = run.experiment.hyperparameters, _best(run)
    validations, training = run.of("validation"), run.of("train")
    done = run.lines[-1]["epoch"] if run.lines else 0.0
    tiles = []
    if best:
        accuracy, kind, line = best
        prefix = "ema_" if kind == "EMA" else ""
        tiles.append(("best top-1", f"{accuracy:.2f} %", f"{kind} weights, epoch {line['epoch']:g}"))
        tiles.append(("top-5 there", f"{line[f'{prefix}top5_accuracy']:.2f} %", f"{line['count']:,} images counted"))
    tiles.append(("epochs", f"{done:g} of {hp.epochs}", f"{run.lines[-1]['images'] if run.lines else 0:,} images seen"))
    if training:
        speeds = sorted(line["images_per_second"] for line in training)
        tiles.append(("throughput", f"{speeds[len(speeds) // 2]:,.0f} images/s", "median of the log"))
    cells = "".join(
        f"<div><dt>{name}</dt><dd>{escape(value)}</dd><dd class=small>{escape(about)}</dd></div>"
        for name, value, about in tiles
    )
    text = f'<dl class="tiles">{cells}</dl>'
    if validations and (sentence := against_original(run.lines)):
        text += f'<p class="original">{escape(sentence)}</p>'
    return text


def _curves(runs: Sequence[RunFacts]) -> Iterator[str]:
    yield '<section><h2>Curves</h2><div class="charts">'
    for metric, title, unit in (
        ("top1_accuracy", "top-1 accuracy, %", "%"),
        ("top5_accuracy", "top-5 accuracy, %", "%"),
        ("loss", "loss (cross-entropy)", ""),
    ):
        series: list[Series] = []
        on_imagenet = any(beside_the_published(line) for run in runs for line in run.lines)
        if metric == "top5_accuracy" and on_imagenet:
            end = max(line["epoch"] for run in runs for line in run.lines)
            points = [p for p in zip(PUBLISHED_EPOCHS, PUBLISHED_TOP5) if p[0] <= max(end, PUBLISHED_EPOCHS[1])]
            series.append(Series("original run, published (raw)", points, "grey wide"))
        for number, run in enumerate(runs):
            series += _of_run(run, metric, number, alone=len(runs) == 1)
        yield line_chart(metric.removesuffix("_accuracy"), title, unit, series)
    for key, identity, title, unit in (
        ("learning_rate", "rate", "learning rate", ""),
        ("images_per_second", "speed", "throughput, images/s", "images/s"),
    ):
        lines = [
            Series(
                key.replace("_", " ") if len(runs) == 1 else run.name,
                [(line["epoch"], line[key]) for line in run.of("train") if key in line],
                f"s{number % COLOURS} thin",
            )
            for number, run in enumerate(runs)
        ]
        yield line_chart(identity, title, unit, lines, from_zero=True)
    yield "</div></section>"


def _of_run(run: RunFacts, metric: str, number: int, alone: bool) -> Iterator[Series]:
    def points(kind: str, name: str) -> list[tuple[float, float]]:
        return [(line["epoch"], line[name]) for line in run.of(kind) if name in line]

    colour = f"s{number % COLOURS}"
    before = "" if alone else f"{run.name}, "
    if alone:
        yield Series("training (augmented; loss smoothed)", points("train", metric), "grey thin")
    yield Series(f"{before}validation, raw weights", points("validation", metric), f"{colour} raw", dots=True)
    averaged = points("validation", f"ema_{metric}")
    if averaged:
        style = "s1 ema" if alone else f"{colour} ema dashed"
        yield Series(f"{before}validation, EMA weights", averaged, style, dots=True)


def _details(run: RunFacts, heading: str) -> Iterator[str]:
    def section(title: str, content: Callable[[], Iterator[str]]) -> Iterator[str]:
        yield f"<section><{heading}>{title}</{heading}>"
        yield from content()
        yield "</section>"

    if run.experiment.hyperparameters.search is not None:
        yield from search.sections(run.lines, heading)
    if run.notes:
        yield from section("Remarks", lambda: iter([f"<p>{escape(note)}</p>" for note in run.notes]))
    if run.rows:
        yield from section("Worst classes", lambda: _worst(run))
    if run.confusions:
        yield from section("Confused most often", lambda: _confused(run))
    if run.samples:
        yield from section("Training images", lambda: _samples(run))
    if run.experiment.hyperparameters.search is None:
        yield from section("Recipe", lambda: _recipe(run))
        yield from section("Cells", lambda: _cells(run))
    if run.lineage:
        yield from section("Where it came from", lambda: iter([f"<pre>{escape(chr(10).join(run.lineage))}</pre>"]))
    yield f"<details><summary>config.yaml, every value in force</summary><pre>{escape(run.experiment.to_yaml())}</pre>"
    yield "</details>"


def _worst(run: RunFacts, most: int = 12) -> Iterator[str]:
    prefix = "ema_" if run.weights == "EMA" else ""
    names = {row["class"]: row["name"] for row in run.rows}
    yield f"<p>Top-1 with {run.weights} weights; in brackets the 95 % interval.</p>"
    yield '<div class="scroll"><table><tr><th>class<th class=n>images<th class=n>top-1, %<th>taken for</tr>'
    for row in run.rows[:most]:
        low, high = row[f"{prefix}top1_interval"]
        taken = row[f"{prefix}taken_for"]
        instead = f"{names[taken]} ({row[f'{prefix}taken_for_count']})" if taken else "none"
        yield (
            f"<tr><td>{escape(row['name'])}<td class=n>{row['count']}<td class=n>{row[f'{prefix}top1_accuracy']:.1f} "
            f"<small>({low:.0f} to {high:.0f})</small><td>{escape(instead)}</tr>"
        )
    yield "</table></div>"


def _confused(run: RunFacts) -> Iterator[str]:
    yield '<div class="pairs">'
    for pair in run.confusions:
        true, guess = run.classes[pair.true], run.classes[pair.guess]
        yield (
            f'<div class="pair"><p><b>{escape(true)}</b> taken for <b>{escape(guess)}</b>: {pair.images} '
            f'image{"s" * (pair.images != 1)}</p><div class="strip">'
        )
        for url, about in pair.pictures:
            yield f'<img src="{url}" alt="{escape(about, quote=True)}" title="{escape(about, quote=True)}">'
        yield "</div></div>"
    yield "</div>"


def _samples(run: RunFacts) -> Iterator[str]:
    mixed = ", before it was mixed with another" * run.experiment.hyperparameters.mixes
    yield "<p>Left as validation sees it, then as training saw it in its first epochs: crop, flip, colour, cutout or "
    yield f"erasing{mixed}.</p>"
    yield '<div class="pairs">'
    for sample in run.samples:
        name = run.classes[sample.label] if run.classes else f"class {sample.label}"
        yield f'<div class="pair"><p>{escape(name)}</p><div class="strip">'
        yield f'<img class="plain" src="{sample.view}" alt="{escape(name, quote=True)}">'
        for number, url in enumerate(sample.augmented, 1):
            yield f'<img src="{url}" alt="{escape(name, quote=True)}, augmented, epoch {number}">'
        yield "</div></div>"
    yield "</div>"


def _recipe(run: RunFacts) -> Iterator[str]:
    name, rows = nearest_recipe(run.experiment.hyperparameters)
    if not rows:
        yield f"<p>The recipe is {escape(name)}, unchanged.</p>"
        return
    yield f"<p>What differs from {escape(name)}, the nearest published recipe:</p>"
    yield '<div class="scroll"><table><tr><th>key<th>here<th>there</tr>'
    for key, here, there in rows:
        yield f"<tr><td><code>{key}</code><td>{escape(str(here))}<td>{escape(str(there))}</tr>"
    yield "</table></div>"


def _cells(run: RunFacts) -> Iterator[str]:
    hp = run.experiment.hyperparameters
    name = hp.genotype if isinstance(hp.genotype, str) and len(hp.genotype) < 60 else f"cell {hp.cell.fingerprint}"
    yield (
        f"<p>{hp.layers} cells, {hp.init_channels} channels, {hp.activation}"
        f"{', squeeze-excite' * hp.do_SE}, {hp.image_size} px</p>"
    )
    yield f'<div class="scroll cell">{draw(hp.cell, name)}</div>'


def _comparison(runs: Sequence[RunFacts]) -> Iterator[str]:
    yield '<section><h2>Side by side</h2><div class="scroll"><table><tr><th>run<th class=n>best top-1, %'
    yield "<th class=n>epoch<th>weights<th class=n>loss there</tr>"
    for number, run in enumerate(runs):
        best = _best(run)
        cells = "<td class=n>-<td class=n>-<td>-<td class=n>-"
        if best:
            accuracy, kind, line = best
            loss = line["ema_loss" if kind == "EMA" else "loss"]
            cells = f"<td class=n>{accuracy:.2f}<td class=n>{line['epoch']:g}<td>{kind}<td class=n>{loss:.4f}"
        mark = f'<circle class="mark s{number % COLOURS}" cx="6" cy="6" r="5"/>'
        yield f'<tr><td><svg width="12" height="12" aria-hidden="true">{mark}</svg> {escape(run.name)}{cells}</tr>'
    yield "</table></div>"
    first = runs[0].experiment.hyperparameters
    for run in runs[1:]:
        rows = differences(run.experiment.hyperparameters, first)
        if run.experiment.hyperparameters.seed != first.seed:
            rows.append(("seed", run.experiment.hyperparameters.seed, first.seed))
        words = "; ".join(f"{key} {here} (not {there})" for key, here, there in rows) or "the same recipe"
        yield f"<p><b>{escape(run.name)}</b> against {escape(runs[0].name)}: {escape(words)}</p>"
    yield "</section>"


_STYLE = """
:root{color-scheme:light dark;--paper:#fbfbf9;--card:#fff;--ink:#1d252c;--soft:#5a6670;--rule:#dde2e6;--grey:#a3abb3;
--s0:#1f5fa8;--s1:#c8501e;--s2:#2c8a4b;--s3:#7d4fa8;--s4:#94740f;--s5:#23848f;--warn:#b00020}
@media(prefers-color-scheme:dark){:root{--paper:#14181c;--card:#1c2228;--ink:#e4e8ec;--soft:#9aa6b1;--rule:#333c45;
--grey:#6f7b86;--s0:#6fb0f5;--s1:#f59a6b;--s2:#6fd093;--s3:#c39bea;--s4:#d9b84a;--s5:#5fc7d3;--warn:#ff8a94}
.cell svg{filter:invert(.89) hue-rotate(180deg)}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1180px;padding:0 16px 32px;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif;overflow-wrap:break-word}
h1{font-size:1.6rem;line-height:1.25;margin:24px 0 8px}h2{font-size:1.2rem;margin:28px 0 8px}
h3{font-size:1.05rem;margin:20px 0 6px}p{margin:6px 0}
.warning{color:var(--warn);font-weight:700}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:12px 0}
.tiles div,figure,.pair{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:10px 14px}
dt{color:var(--soft);font-size:.85rem}dd{margin:0;font-size:1.25rem;font-weight:600}
dd.small{font-size:.8rem;font-weight:400;color:var(--soft)}
.original{border-left:4px solid var(--grey);padding-left:10px}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:14px}
figure{margin:0;padding:10px 10px 6px;min-width:0}figcaption{font-weight:600;margin:0 4px 4px}
.chart{display:block;width:100%;height:auto}
.tick{fill:var(--soft);font-size:13px}.grid{stroke:var(--rule);stroke-width:1}
.line{fill:none;stroke-width:2;stroke-linejoin:round}.thin{stroke-width:1.3}.wide{stroke-width:5;stroke-linecap:round}
.dashed{stroke-dasharray:6 4}.dot{stroke:none}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:2px 16px;margin:4px;padding:0}
.legend{font-size:.85rem;color:var(--soft)}
.legend svg{margin-right:5px;vertical-align:middle}.empty{color:var(--soft);padding:40px 0;text-align:center}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.92rem}
th,td{text-align:left;padding:4px 14px 4px 0;border-bottom:1px solid var(--rule);vertical-align:top}
th{color:var(--soft);font-weight:600}.n{text-align:right;white-space:nowrap}small{color:var(--soft)}
.pairs{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,500px),1fr));gap:12px}
.strip{display:flex;gap:8px}.strip .plain{margin-right:8px}
.strip img{width:min(96px,calc((100% - 40px)/5));aspect-ratio:1;object-fit:cover;border-radius:6px}
.cell svg{width:100%;min-width:860px;height:auto;border-radius:10px}
pre{overflow-x:auto;background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:10px;font-size:.8rem}
summary{cursor:pointer}summary h2{display:inline}details{margin:14px 0}
@media(max-width:500px){th,td{padding-right:9px}table{font-size:.84rem}}
footer{color:var(--soft);font-size:.8rem;margin-top:32px}
""" + "".join(
    f".line.{name}{{stroke:var(--{name})}}.dot.{name},.mark.{name}{{fill:var(--{name})}}"
    for name in ("grey", *(f"s{number}" for number in range(COLOURS)))
)
