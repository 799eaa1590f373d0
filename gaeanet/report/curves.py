"""curve.png: a run's accuracies and loss against epochs, drawn from its log alone."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gaeanet.errors import RequestError, reason
from gaeanet.report.series import PANELS, Line, Series, series_of, validated_on
from gaeanet.runtime.files import check_replaceable
from gaeanet.runtime.names import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#1f5fa8", "#c8501e", "#2c8a4b", "#7d4fa8", "#94740f", "#23848f")
"""Of runs, as in report.css on light paper; more runs than that begin again."""
_TRAINING, _PUBLISHED = "#8a94a0", "#b9bec4"
_FORMATS = (".png", ".svg", ".pdf")
_LONGEST_NAME = 44
"""Characters of a run's name in the legend: three charts stand side by side."""


def draw_curves(runs: Mapping[str, Sequence[Line]], path: Path) -> None:
    """Draws one run's curves, or several runs' together.

    Args:
        runs: Lines of each run's metrics.jsonl, by the name that the legend shows.
        path: The PNG (or SVG, PDF) file to write, replaced in one step.

    Raises:
        RequestError: matplotlib is missing, or the file cannot be written.
    """
    if path.suffix.lower() not in _FORMATS:
        raise RequestError(f"{path}: curves are drawn as {', '.join(_FORMATS)}: name the file so")
    # Without a home that can be written, it warns that it keeps its cache elsewhere, which is what it should do.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        # The canvas is made directly: no display is asked for, whatever DISPLAY and MPLBACKEND are.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RequestError(f"cannot draw curves: {error}; pip install matplotlib") from None
    figure = Figure(figsize=(14, 4.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    generated = any(line.get("data") == "generated" for lines in runs.values() for line in lines)
    runs = dict(zip(_drawn(runs), runs.values()))
    title = ", ".join(runs) if len(runs) < 4 else f"{len(runs)} runs"
    title += "".join(f" ({sentence})" for sentence in validated_on(runs))
    figure.suptitle(
        title + (": GENERATED IMAGES, not photographs" if generated else ""),
        color="#b00020" if generated else "black",
        parse_math=False,  # a run may be called $lr_$seed
    )
    for panel, (metric, label) in zip(figure.subplots(1, len(PANELS)), PANELS.items()):
        for series in series_of(runs, metric):
            epochs, values = zip(*series.points)
            panel.plot(epochs, values, **_style(series, alone=len(runs) == 1))
        _dress(panel, metric, label)
    draft = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        check_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(draft)
        draft.replace(path)
    except (OSError, ValueError, OverflowError) as error:  # the last two of an odd SOURCE_DATE_EPOCH
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise RequestError(f"{path}: cannot write the picture: {reason(error)}") from None


def _drawn(names: Iterable[str]) -> list[str]:
    """Runs' names as the picture shows them, no two alike: characters that the font lacks are escaped, the middle of
    a long name is left out.
    """
    known, drawn = _characters(), list[str]()
    for name in names:
        text = "".join(c if ord(c) in known else c.encode("unicode_escape").decode("ascii") for c in shown(name))
        if len(text) > _LONGEST_NAME:
            text = f"{text[: _LONGEST_NAME - 19]}...{text[-16:]}"
        drawn.append(text if text not in drawn else f"{text} ({len(drawn) + 1})")
    return drawn


@cache
def _characters() -> frozenset[int]:
    """Code points that matplotlib's font has; for each other one it prints a warning."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def _style(series: Series, alone: bool) -> dict[str, Any]:
    # matplotlib leaves labels out of a legend that begin with an underscore.
    label = f" {series.name}" if series.name.startswith("_") else series.name
    if series.role == "published":
        return {"label": label, "color": _PUBLISHED, "linewidth": 4}
    if series.role == "training":
        return {"label": label, "color": _TRAINING, "linewidth": 1}
    averaged = series.role == "ema"
    colour = COLOURS[1] if alone and averaged else COLOURS[series.run % len(COLOURS)]
    style = {"label": label, "color": colour, "marker": "s" if averaged else "o", "markersize": 3.5}
    return {**style, "linestyle": "--" if averaged and not alone else "-"}


def _dress(panel: Axes, metric: str, label: str) -> None:
    panel.set_xlabel("epoch")
    panel.set_ylabel(label)
    panel.grid(alpha=0.25)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    if panel.get_lines():
        # Not loc="best", which warns where it takes long, and no part of the layout, which long names would collapse.
        legend = panel.legend(frameon=False, fontsize=9, loc="upper right" if metric == "loss" else "lower right")
        legend.set_in_layout(False)
        for text in legend.get_texts():
            text.set_parse_math(False)
        panel.set_xlim(0, max(panel.get_xlim()[1], 1e-3))
    else:
        panel.text(0.5, 0.5, "no finite values in the log yet", ha="center", va="center", transform=panel.transAxes)
