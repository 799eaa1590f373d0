"""curve.png: a run's accuracies and loss against epochs, drawn from its log alone."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gaeanet.config.data import describe_minival
from gaeanet.errors import RequestError, reason

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Line = dict[str, Any]

# Validation top-5 of the original run (Determined's GAEA example, batch 1024, swish and squeeze-excite), read off its
# published figure to about half a point: one value each 0.8 epochs from 0.8 on.
PUBLISHED_TOP5 = (
    12.5, 34.0, 45.6, 55.8, 62.4, 64.3, 67.9, 70.7, 71.7, 71.3, 73.5, 75.1, 74.6, 74.8, 75.8,
    77.1, 76.7, 77.1, 76.7, 77.6, 78.6, 77.6, 79.3, 78.6, 80.2, 79.5, 79.5, 80.0, 80.0, 79.5,
)  # fmt: skip
PUBLISHED_EPOCHS = tuple(0.8 * (number + 1) for number in range(len(PUBLISHED_TOP5)))

_PANELS = (
    ("top1_accuracy", "top-1 accuracy, %"),
    ("top5_accuracy", "top-5 accuracy, %"),
    ("loss", "loss (cross-entropy)"),
)
_COLOURS = ("#1f5fa8", "#c8501e", "#2c8a4b", "#7d4fa8", "#a8861f", "#3a9aa8")
_RAW, _EMA, _TRAIN, _PUBLISHED = "#1f5fa8", "#c8501e", "#8a94a0", "#b9bec4"


def draw_curves(runs: Mapping[str, Sequence[Line]], path: Path) -> None:
    """Draws one run's curves, or several runs' together.

    Args:
        runs: Lines of each run's metrics.jsonl, by the name that the legend shows.
        path: The PNG (or SVG, PDF) file to write, replaced in one step.

    Raises:
        RequestError: matplotlib is missing, or the file cannot be written.
    """
    try:
        # The canvas is made directly: no display is asked for, whatever DISPLAY and MPLBACKEND say.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RequestError(f"cannot draw curves: {error}; pip install matplotlib") from None
    figure = Figure(figsize=(14, 4.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    generated = any(line.get("data") == "generated" for lines in runs.values() for line in lines)
    title = ", ".join(runs) if len(runs) < 4 else f"{len(runs)} runs"
    title += "".join(f" ({sentence})" for sentence in validated_on(runs))
    figure.suptitle(
        title + (": GENERATED IMAGES, not photographs" if generated else ""), color="#b00020" if generated else "black"
    )
    for panel, (metric, label) in zip(figure.subplots(1, 3), _PANELS):
        if len(runs) == 1:
            _one_run(panel, metric, next(iter(runs.values())))
        else:
            _several_runs(panel, metric, runs)
        _dress(panel, metric, label)
    draft = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(draft)
        draft.replace(path)
    except (OSError, ValueError) as error:
        draft.unlink(missing_ok=True)
        raise RequestError(f"{path}: cannot write the picture: {reason(error)}") from None


def validated_on(runs: Mapping[str, Sequence[Line]]) -> list[str]:
    """What the validation numbers are of, in sentences, wherever that is not the validation split."""
    shares: dict[float, list[str]] = {}
    for name, lines in runs.items():
        if lines and "minival" in lines[-1]:
            shares.setdefault(lines[-1]["minival"], []).append(name)
    return [
        f"validated on {describe_minival(share)}, not on the validation split"
        + (f": {', '.join(names)}" if len(names) < len(runs) else "")
        for share, names in shares.items()
    ]


def beside_the_published(line: Line) -> bool:
    """Whether what a line says of validation can be compared with the original run's figures."""
    return line.get("data") == "imagenet" and "minival" not in line


def _one_run(panel: Axes, metric: str, lines: Sequence[Line]) -> None:
    training = [line for line in lines if line["kind"] == "train"]
    validation = [line for line in lines if line["kind"] == "validation"]
    if metric == "top5_accuracy" and any(map(beside_the_published, lines)):
        panel.plot(
            PUBLISHED_EPOCHS, PUBLISHED_TOP5, color=_PUBLISHED, linewidth=4, label="original run, published (raw)"
        )
    _plot(panel, training, metric, "training (augmented; loss smoothed)", _TRAIN, linewidth=1)
    _plot(panel, validation, metric, "validation, raw weights", _RAW, marker="o")
    _plot(panel, validation, f"ema_{metric}", "validation, EMA weights", _EMA, marker="s")


def _several_runs(panel: Axes, metric: str, runs: Mapping[str, Sequence[Line]]) -> None:
    for number, (name, lines) in enumerate(runs.items()):
        validation = [line for line in lines if line["kind"] == "validation"]
        colour = _COLOURS[number % len(_COLOURS)]
        _plot(panel, validation, metric, f"{name}, raw", colour, marker="o")
        _plot(panel, validation, f"ema_{metric}", f"{name}, EMA", colour, marker="s", linestyle="--")


def _plot(panel: Axes, lines: Sequence[Line], metric: str, label: str, colour: str, **style: Any) -> None:
    points = [(line["epoch"], line[metric]) for line in lines if metric in line]
    if any(math.isfinite(value) for _, value in points):
        epochs, values = zip(*points)
        panel.plot(epochs, values, label=label, color=colour, markersize=3.5, **style)


def _dress(panel: Axes, metric: str, label: str) -> None:
    panel.set_xlabel("epoch")
    panel.set_ylabel(label)
    panel.grid(alpha=0.25)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    if panel.get_lines():
        panel.legend(frameon=False, fontsize=9, loc="best" if metric == "loss" else "lower right")
        panel.set_xlim(left=0)
    else:
        panel.text(0.5, 0.5, "no finite values in the log yet", ha="center", va="center", transform=panel.transAxes)
