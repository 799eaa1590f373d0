"""The curve: drawn from the log alone, with no display, and never the end of a run."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from logs import write_run
from matplotlib.figure import Figure
from tiny import Result

from gaeanet.artifacts.directory import read_log
from gaeanet.report.curves import draw_curves

Run = Callable[..., Result]


@pytest.mark.parametrize("data", ["photographs", "imagenet", "generated"])
def test_field_report_60_a_dead_display_does_not_matter(
    gaeanet: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str
) -> None:
    monkeypatch.setenv("DISPLAY", "localhost:64.0")
    monkeypatch.setenv("MPLBACKEND", "TkAgg")
    run = write_run(tmp_path / "run", data=data)
    assert gaeanet("plot", run).out == f"wrote {run / 'curve.png'}\n"
    assert (run / "curve.png").stat().st_size > 5000


def test_field_report_60_one_row_nan_and_infinity(gaeanet: Run, tmp_path: Path) -> None:
    for name, options in {"one": {"rows": 1}, "nan": {"loss": float("nan")}, "inf": {"loss": float("inf")}}.items():
        run = write_run(tmp_path / name, **options)
        assert gaeanet("plot", run).code == 0
        assert (run / "curve.png").stat().st_size > 5000


def test_several_runs_in_one_picture_and_svg(gaeanet: Run, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in ("a", "b", "c")]
    assert gaeanet("plot", *runs, "-o", tmp_path / "out" / "three.svg").code == 0
    text = (tmp_path / "out" / "three.svg").read_text()
    assert "<svg" in text
    assert gaeanet("plot", *runs).out == "wrote curves.png\n"


def test_what_cannot_be_drawn_is_one_line(gaeanet: Run, tmp_path: Path) -> None:
    missing = gaeanet("plot", tmp_path / "nowhere")
    assert (missing.code, missing.err) == (2, f"gaeanet: {tmp_path}/nowhere: no run there (metrics.jsonl is missing)\n")
    run = write_run(tmp_path / "run")
    strange = gaeanet("plot", run, "-o", tmp_path / "curve.xyz")
    assert strange.code == 2
    assert "curve.xyz: curves are drawn as .png, .svg, .pdf: name the file so" in strange.err
    (run / "metrics.jsonl").write_text("what\n{}\n")
    assert "line 1: not JSON" in gaeanet("plot", run).err


@pytest.mark.parametrize(
    "names",
    [
        ["exp_$lr_$seed_1", "a$b$c", "$x^{"],
        ["x" * 150, "y" * 150],
        ["x" * 60 + "A" + "y" * 60, "x" * 60 + "B" + "y" * 60],
        ["\u5b9f\u9a13", "na\u00efve"],
        ["\U0001f680", "\u0645\u0631\u062d\u0628\u0627"],
        ["a\nb", "caf\udce9", "[bold]c[/bold]"],
        ["_hidden", "%s {0} %(x)s"],
        ["<b>&amp;</b>"],
    ],
)
def test_field_report_80_and_96_a_name_is_text_in_a_picture_and_nothing_is_printed(
    tmp_path: Path, names: list[str]
) -> None:
    lines = read_log(write_run(tmp_path / "run") / "metrics.jsonl")
    drawn = list[str]()

    def saved(figure: Any, *arguments: Any, **options: Any) -> None:
        drawn.extend(text.get_text() for text in figure.axes[0].get_legend().get_texts())
        save(figure, *arguments, **options)

    save = Figure.savefig
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("error")
        patch.setattr(Figure, "savefig", saved)
        draw_curves(dict.fromkeys(names, lines), tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 5000
    assert len(set(drawn)) == len(drawn) == (2 * len(names) if len(names) > 1 else 3)


@pytest.mark.parametrize("where", [{"epoch": 0.0}, {"epoch": 1e-9}, {"epoch": 1e9}, {"loss": 3e38}, {"loss": -3e38}])
def test_field_report_96_extreme_values_are_drawn_without_a_warning(tmp_path: Path, where: dict[str, float]) -> None:
    lines = [{**line, **where} for line in read_log(write_run(tmp_path / "run", rows=1) / "metrics.jsonl")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_curves({"run": lines}, tmp_path / "curve.png")


@pytest.mark.parametrize(
    "line",
    [
        {"epoch": None},
        {"epoch": "one"},
        {"loss": "low"},
        {"top1_accuracy": [1]},
        {"ema_loss": {}},
        {"minival": "half"},
        {"data": 1},
        {"loss": 10**400},
        {"epoch": True},
    ],
)
def test_field_report_92_a_log_with_other_values_than_a_run_writes_is_one_line(
    gaeanet: Run, tmp_path: Path, line: dict[str, Any]
) -> None:
    run = write_run(tmp_path / "run", rows=1)
    log = run / "metrics.jsonl"
    first, *rest = log.read_text().splitlines()
    log.write_text("\n".join([json.dumps({**json.loads(first), **line}), *rest]) + "\n")
    for arguments in (["plot", run], ["report", run, "--no-images"]):
        refused = gaeanet(*arguments)
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert f"{log}, line 1: not JSON that a run writes" in refused.err


@pytest.mark.drawn
def test_field_report_60_without_matplotlib_a_run_ends_well(
    gaeanet: Run, experiment_file: Callable[..., Path], t3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    result = gaeanet("train", experiment_file(epochs=1), "--data", t3)
    assert result.code == 0
    assert "curve.png is not drawn: cannot draw curves" in result.out
    assert gaeanet("plot", "runs/tiny").code == 2


def test_a_log_that_a_killed_process_left_half_written_is_read(gaeanet: Run, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with open(run / "metrics.jsonl", "a") as log:
        log.write('{"kind": "train", "epo')
    assert gaeanet("plot", run).code == 0
