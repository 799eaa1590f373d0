"""Tables of text: plain lines without colours or frames, as wide as the terminal, or 80 columns where there is none."""

from __future__ import annotations

import io
import shutil
from collections.abc import Collection, Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gaeanet.runtime.names import shown

_GAP = 3
"""Spaces between two columns."""


def table_lines(
    headers: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[int] = (), cut: Collection[int] = ()
) -> list[str]:
    """The lines of a table; cells are text as it stands, whatever a name looks like.

    Args:
        headers: The first line; all empty for none.
        rows: The cells; a row without any is an empty line.
        right: Numbers of the columns that are set flush right.
        cut: Numbers of the columns that end in ... where the terminal is too narrow; others are wrapped.
    """
    width = shutil.get_terminal_size().columns
    texts = [[Text(shown(cell)) for cell in row] for row in rows]
    widest = [max([len(header), *(row[n].cell_len for row in texts if row)]) for n, header in enumerate(headers)]
    # Rich shortens all columns alike where none may wrap: numbers keep theirs, the names to be cut share the rest.
    rest = width - sum(widest[n] for n in range(len(headers)) if n not in cut) - _GAP * (len(headers) - 1)
    for done, number in enumerate(sorted(cut, key=widest.__getitem__)):
        widest[number] = max(1, min(widest[number], rest // (len(cut) - done)))
        rest -= widest[number]
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, show_header=any(headers), header_style="none")
    for number, header in enumerate(headers):
        if number in right:
            table.add_column(Text(header), justify="right", no_wrap=True)
        elif number in cut:
            table.add_column(Text(header), no_wrap=True, overflow="ellipsis", max_width=widest[number])
        else:
            table.add_column(Text(header), overflow="fold")
    for row in texts:
        table.add_row(*row)
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(table)
    return [line.rstrip() for line in capture.get().splitlines()]
