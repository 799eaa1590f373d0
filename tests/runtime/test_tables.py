"""Tables of text: as wide as there is room, columns in line, names as they stand."""

from __future__ import annotations

import pytest

from gaeanet.runtime.tables import table_lines

ROWS = [["a [bold]name[/bold] :smile: \x1b[31m", "1", "x" * 200], [], ["\u732b\u732b", "1,234", "short"]]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_lines_fit_and_hold_no_colours(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = table_lines(["name", "images", "taken for"], ROWS, right=(1,), cut=(0, 2))
    assert len(lines) == 4  # one line a row, whatever the width
    assert max(map(len, lines)) <= width
    assert lines[2] == ""
    assert "\x1b" not in "".join(lines)
    assert all(line == line.rstrip() for line in lines)
    assert "1,234" in lines[3]


def test_names_are_neither_markup_nor_emoji_nor_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    lines = table_lines(["", ""], [row[:2] for row in ROWS if row])
    assert lines[0].startswith("a [bold]name[/bold] :smile: \\x1b[31m   1")


def test_long_cells_are_wrapped_at_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    lines = table_lines(["", "value"], [["key", "several words that are long"]])
    assert lines[0].split() == ["value"]
    assert " ".join(" ".join(lines[1:]).split()) == "key several words that are long"
    assert len(lines) > 2


def test_wide_characters_take_two_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = table_lines(["class", "n"], [["\u732b\u732b", "1"], ["cat", "2"]])
    assert lines == ["class   n", "\u732b\u732b    1", "cat     2"]
