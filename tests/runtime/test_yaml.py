"""YAML as 1.2 has it: right or one line, never another value in silence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tiny import Result

from gaeanet.config.experiment import load_experiment
from gaeanet.errors import RequestError
from gaeanet.runtime.yaml import dump, parse

Run = Callable[..., Result]

TEXTS = (
    "no",
    "No",
    "yes",
    "on",
    "off",
    "y",
    "N",
    "1:30",
    "-1:30:15",
    "1_000",
    "0b11",
    "2026-11-27",
    "2001-12-14t21:59:43",
)
TEXTS += ("=", "1.2.3", "0o8", "0x", "1e", ".e1", "+", "1_0.5", "nul", "tRue", "12e03x", "190:20:30.15", "017a")
VALUES = {
    "true": True,
    "FALSE": False,
    "null": None,
    "~": None,
    "": None,
    "0": 0,
    "-12": -12,
    "+12": 12,
    "0o17": 15,
    "0x1F": 31,
    "1e3": 1000.0,
    "3e-5": 3e-5,
    "1.": 1.0,
    ".5": 0.5,
    "-.inf": float("-inf"),
    "010.5": 10.5,
    "'010'": "010",
    '"no"': "no",
}
REFUSED = {
    "seed: 010": "8 or 0o10|10 or 0o10",
    "seed: 09": "write 9",
    "1: 2": "key '1' is no text",
    "true: 2": "key 'true' is no text",
    "~: 2": "is no text",
    "1.5: 2": "is no text",
    "? [a, b]\n: 2": "is no text",
    "a: 1\nb: 2\na: 3": "'a' is given twice",
    "a:\n\t- 1": "line 2",
    "a: &a [*a]": "alias within",
    "a: " + "[" * 900 + "]" * 900: "nested",
    "a: " + "{b: " * 900 + "}" * 900: "nested",
    "a: &a [0,0,0,0,0,0,0,0,0,0]\n"
    + "".join(
        f"b{k}: &b{k} [{','.join(['*' + ('a' if k == 0 else f'b{k - 1}')] * 10)}]\n" for k in range(9)
    ): "aliases",
    "a: !!timestamp 2001-12-14": "!!timestamp is not read",
    "a: !!binary aGk=": "!!binary",
    "a: !!set {b}": "!!set",
    "a: !!python/object/apply:os.system [id]": "python",
    "a: !local 5": "!local",
    "a: !!int 1:30": "no whole number",
    "a: !!bool no": "neither true nor false",
    "a: !!float 1:30": "no number",
    "a: " + "9" * 5000: "whole number",
    "a: 1\n---\nb: 2": "another document",
    "a: *nowhere": "nowhere",
    "a: \0": "special characters",
    "a: [1, 2": "expected",
    "a: \x1b[31m": "special characters",
}


@pytest.mark.parametrize("text", TEXTS)
def test_field_report_74_what_is_no_scalar_of_yaml_1_2_is_text(text: str) -> None:
    assert parse(text, "here") == text
    assert parse(f"name: {text}", "here") == {"name": text}
    assert parse(f"[{text}]", "here") == [text] if text not in "=-" else True


@pytest.mark.parametrize("text", VALUES)
def test_field_report_74_scalars_are_those_of_yaml_1_2(text: str) -> None:
    value = parse(f"a: {text}", "here")["a"]
    assert value == VALUES[text]
    assert type(value) is type(VALUES[text])


@pytest.mark.parametrize("text", REFUSED)
def test_field_report_92_structure_where_none_is_expected_is_one_line(text: str) -> None:
    with pytest.raises(RequestError, match=REFUSED[text]) as error:
        parse(text, "here")
    assert str(error.value).startswith("here")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400


def test_keys_of_another_block_can_be_merged() -> None:
    assert parse("a: &a {b: 1, c: 2}\nd: {<<: *a, c: 3}", "here")["d"] == {"b": 1, "c": 3}
    with pytest.raises(RequestError, match="here, line 1"):
        parse("a: {<<: 5}", "here")


TREES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from([*TEXTS, *VALUES]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.sampled_from(TEXTS), inner, max_size=3),
    max_leaves=8,
)


@given(TREES)
def test_field_report_74_what_is_written_reads_the_same_with_either_reader(tree: Any) -> None:
    assert parse(dump(tree), "here") == tree
    assert yaml.safe_load(dump(tree)) == tree


@given(st.text(alphabet="ab:-[]{}&*!|>'\"#%@`,?\n\t 01.\\<~=\x1b\0é", max_size=40))
def test_field_report_92_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        parse(text, "here")
    except RequestError as error:
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("hyperparameters: {seed: 010}", "write 10 or 0o10"),
        ("hyperparameters: {seed: 1:30}", "seed: must be a whole number"),
        ("hyperparameters: {seed: 1_000}", "seed: must be a whole number"),
        ("hyperparameters: {do_SE: yes}", "do_SE: must be true or false"),
        ("hyperparameters: {learning_rate: .inf}", "learning_rate: must be a number"),
        ("name: true", "name: must be text"),
        ("name: 1e3", "name: must be text"),
        ("on: true\n1: 2", "key '1' is no text"),
    ],
)
def test_field_report_74_an_experiment_file_and_set_are_read_alike(
    gaeanet: Run, tmp_path: Path, line: str, part: str
) -> None:
    (tmp_path / "x.yaml").write_text(line)
    with pytest.raises(RequestError, match=part):
        load_experiment(tmp_path / "x.yaml")
    if line.startswith("hyper"):
        key, value = line[len("hyperparameters: {") : -1].split(": ", 1)
        (tmp_path / "x.yaml").write_text("name: no")
        with pytest.raises(RequestError, match=part):
            load_experiment(tmp_path / "x.yaml", [f"hyperparameters.{key}={value}"])


def test_field_report_74_a_name_is_taken_literally(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("name: no\ndescription: 2026-11-27\nhyperparameters: {seed: 0o17}")
    experiment = load_experiment(tmp_path / "x.yaml")
    assert experiment.name == "no"
    assert experiment.hyperparameters.seed == 15
    (tmp_path / "y.yaml").write_text(experiment.to_yaml())
    again = load_experiment(tmp_path / "y.yaml")
    assert again.cluster == experiment.cluster == {"name": "no", "description": "2026-11-27"}
    assert again.to_yaml() == experiment.to_yaml()


@pytest.mark.parametrize(
    "text", ["on: 1\n5: 6", "[" * 900, "normal: 010\n", "a: &a [*a]", "- 1", "\0", "x: 2001-01-01"]
)
def test_field_report_92_a_genotype_file_has_the_same_reader(gaeanet: Run, tmp_path: Path, text: str) -> None:
    (tmp_path / "cell.yaml").write_text(text)
    result = gaeanet("describe", tmp_path / "cell.yaml")
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err
