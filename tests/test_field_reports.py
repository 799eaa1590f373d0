"""tests/FIELD_REPORTS.md names every field report that a test carries, and says which have none."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent


def named() -> dict[int, str]:
    """The numbers that the tests' names and docstrings carry, each with one of the places."""
    numbers = {}
    for path in TESTS.rglob("test_*.py"):
        text = path.read_text(encoding="utf-8")
        for listed in re.findall(r'"""Field reports? (\d+(?:(?:,| and) \d+)*)', text):
            numbers |= {int(number): path.name for number in re.findall(r"\d+", listed)}
        for name in re.findall(r"def (test_field_report\w*)", text):
            leading = re.match(r"test_field_reports?_(\d+(?:_(?:and_)?\d+)*)_", name)
            assert leading, f"{path.name}: {name} carries no number"
            numbers |= {int(number): name for number in re.findall(r"\d+", leading[1])}
    return numbers


def test_the_list_is_whole_and_says_what_is_open() -> None:
    text = (TESTS / "FIELD_REPORTS.md").read_text(encoding="utf-8")
    lines = [int(number) for number in re.findall(r"^\| (\d+) \| \S", text, re.MULTILINE)]
    open_ones = [int(number) for number in re.findall(r"^\| (\d+) \| \S.*\| open \|$", text, re.MULTILINE)]
    assert lines == sorted(set(lines))
    assert sorted(named()) == [number for number in lines if number not in open_ones]
