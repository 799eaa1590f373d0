"""What version 0.1.0 wrote, before the packages of today, is read: runs, searches, exports.

The files beside this test were made by it with generated images: `train` over two epochs (a checkpoint after each),
`search` over one, `export`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import Result, read_log

from gaeanet.artifacts.checkpoint import load

Run = Callable[..., Result]
OLD = Path(__file__).parent / "version_0_1_0"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    copy = tmp_path / "old"
    shutil.copytree(OLD, copy)
    return copy


def test_its_runs_are_read(gaeanet: Run, old: Path) -> None:
    for arguments in (
        ["plot", old / "run"],
        ["describe", old / "run"],
        ["evaluate", old / "run"],
        ["report", old / "run", "--no-images"],
        ["export", old / "run", "again"],
    ):
        result = gaeanet(*arguments)
        assert result.code == 0, (arguments, result.err)


def test_its_numbers_come_out_again(gaeanet: Run, old: Path) -> None:
    (logged,) = (line for line in read_log(old / "run", "validation") if line["epoch"] == 2)
    out = gaeanet("evaluate", old / "run" / "checkpoints" / "step-000000006").out
    assert f"{logged['top1_accuracy']:.2f}" in out
    assert f"{logged['ema_loss']:.4f}" in out


def test_its_run_is_continued_as_it_continued_itself(gaeanet: Run, old: Path) -> None:
    expected, _ = load(old / "run" / "checkpoints" / "step-000000006")
    shutil.rmtree(old / "run" / "checkpoints" / "step-000000006")
    result = gaeanet("train", old / "run" / "config.yaml", "--run-dir", old / "run", "--resume")
    assert result.code == 0, result.err
    assert "resumed after step 3" in result.out
    found, state = load(old / "run" / "checkpoints" / "step-000000006")
    assert found.keys() == expected.keys()
    for group, tensors in expected.items():
        for name, value in tensors.items():  # bit for bit on a machine of one kind; kernels differ from kind to kind
            torch.testing.assert_close(found[group][name], value, rtol=1e-3, atol=1e-4, msg=f"{group}: {name}")
    assert (state["batches"], state["updates"]) == (6, 6)


def test_its_finished_run_has_nothing_to_do(gaeanet: Run, old: Path) -> None:
    result = gaeanet("train", old / "run" / "config.yaml", "--run-dir", old / "run", "--resume")
    assert result.code == 0, result.err
    assert "nothing to do" in result.out


def test_its_search_is_read(gaeanet: Run, old: Path) -> None:
    assert gaeanet("report", old / "search", "--no-images").code == 0
    assert gaeanet("describe", old / "search" / "genotype.json").code == 0
    again = gaeanet("search", old / "search" / "config.yaml", "--run-dir", old / "search", "--resume")
    assert again.code == 0, again.err
    assert "nothing to do" in again.out


def test_its_export_is_read(gaeanet: Run, old: Path) -> None:
    assert "export: timm" in gaeanet("describe", old / "export").out
    assert gaeanet("evaluate", old / "export", "--weights", "both").code == 0
