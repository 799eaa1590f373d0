"""Every number of a field report that a test's name carries is in tests/FIELD_REPORTS.md."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent


def named() -> dict[int, str]:
    """The numbers that names of tests carry, each with one of the names."""
    numbers = {}
    for path in TESTS.rglob("test_*.py"):
        for name in re.findall(r"def (test_field_report\w*)", path.read_text(encoding="utf-8")):
            leading = re.match(r"test_field_reports?_(\d+(?:_(?:and_)?\d+)*)_", name)
            assert leading, f"{path.name}: {name} carries no number"
            numbers |= {int(number): name for number in re.findall(r"\d+", leading[1])}
    return numbers


def test_every_number_in_a_name_has_its_line() -> None:
    text = (TESTS / "FIELD_REPORTS.md").read_text(encoding="utf-8")
    lines = [int(number) for number in re.findall(r"^\| (\d+) \| \S", text, re.MULTILINE)]
    assert lines == sorted(set(lines))
    assert {number: name for number, name in named().items() if number not in lines} == {}
