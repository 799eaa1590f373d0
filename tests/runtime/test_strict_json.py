"""What other programs read is JSON by the standard."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import Result, TinyRun

from gaeanet.artifacts.directory import read_log
from gaeanet.errors import RequestError
from gaeanet.runtime.strict_json import dumps

Run = Callable[..., Result]
Write = Callable[..., Path]


def strictly(text: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    text.encode()  # UTF-8
    return json.loads(text, parse_constant=refuse)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(VALUES)
def test_field_report_73_any_plain_value_is_written_as_json(value: Any) -> None:
    strictly(dumps(value))
    strictly(dumps([value], indent=1))


def test_field_report_73_a_run_that_diverges_has_a_log_that_every_parser_reads(
    gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path
) -> None:
    config = experiment_file("wild", epochs=2, learning_rate=1e38, clip_gradients_l2_norm=0.0)
    result = gaeanet("train", config, "--data", t3, "--run-dir", tmp_path / "run")
    assert "Traceback" not in result.err
    log = tmp_path / "run" / "metrics.jsonl"
    lines = [strictly(line) for line in log.read_text().splitlines()]
    assert any(line["loss"] is None for line in lines)
    assert any(math.isnan(line["loss"]) for line in read_log(log))
    for command in (("plot", tmp_path / "run"), ("report", tmp_path / "run", "--no-images")):
        result = gaeanet(*command)
        assert result.code == 0, result.err


def test_field_report_73_what_predict_and_evaluate_write_is_json(gaeanet: Run, tiny_run: TinyRun) -> None:
    result = gaeanet("predict", tiny_run.run, tiny_run.data / "val", "--json")
    assert all(strictly(line)["top"] for line in result.out.splitlines())
    strictly(gaeanet("evaluate", tiny_run.run, "--json").out)


@pytest.mark.parametrize("line", ["5", "[1]", "null", '"x"', "{}", '{"kind": 5}', "{", "[" * 9000, '{"kind": "train"}'])
def test_field_report_92_a_log_with_other_lines_is_one_line(
    gaeanet: Run, tiny_run: TinyRun, tmp_path: Path, line: str
) -> None:
    whole = (tiny_run.run / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(line + "\n" + whole)
    with pytest.raises(RequestError, match="line 1: not JSON that a run writes"):
        read_log(tmp_path / "metrics.jsonl")
    for command in ("plot", "report"):
        result = gaeanet(command, tmp_path)
        assert result.code == 2
        assert result.err.count("\n") == 1
    (tmp_path / "metrics.jsonl").write_text(whole + "\n\n" + line)
    assert len(read_log(tmp_path / "metrics.jsonl")) == len(whole.splitlines())


def test_field_report_73_old_logs_with_bare_nan_are_read(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "batches": 1, "epoch": 1.0, "loss": NaN}\n')
    assert math.isnan(read_log(tmp_path / "metrics.jsonl")[0]["loss"])
