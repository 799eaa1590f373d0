"""The curve: drawn from the log alone, with no display, and never the end of a run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from logs import write_run
from tiny import Result

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
    assert "cannot write the picture" in strange.err
    (run / "metrics.jsonl").write_text("what\n{}\n")
    assert "line 1: not JSON" in gaeanet("plot", run).err


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
