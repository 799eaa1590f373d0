"""The one live line of a terminal: how far a piece of work has come. Where there is no terminal it shows nothing."""

from __future__ import annotations

import time
from typing import TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from gaeanet.runtime.output import LastingOutput

_INTERVAL = 10.0
"""Seconds from one line to the next where there is no terminal."""


class LiveLine:
    """A line with a bar at the foot of a terminal, and the lines that stay above it, all on standard output.

    Args:
        silent: Shows nothing: another process does.
    """

    def __init__(self, silent: bool = False) -> None:
        output = cast(TextIO, LastingOutput())
        self._console = Console(file=output, highlight=False, emoji=False, soft_wrap=True, quiet=silent)
        self._task: TaskID | None = None
        self._live: Progress | None = None
        if self._console.is_terminal and not silent:
            before, after = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[facts]}"))
            columns = before, BarColumn(bar_width=24), after
            self._live = Progress(*columns, console=self._console, transient=True, refresh_per_second=4)
            self._task = self._live.add_task("starting", total=None, facts="")

    @property
    def is_shown(self) -> bool:
        """Whether there is a terminal to show it."""
        return self._live is not None

    def __enter__(self) -> LiveLine:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def log(self, text: str) -> None:
        """Prints a line that stays."""
        self._console.print(text, markup=False)

    def update(
        self, facts: str, *, description: str | None = None, done: int | None = None, total: int | None = None
    ) -> None:
        """Changes the live line; what is None stays as it is."""
        if self._live and self._task is not None:
            self._live.update(self._task, description=description, completed=done, total=total, facts=facts)


class WorkProgress:
    """How much of a known amount of work is done, how long it still takes: live, or a plain line now and then.

    Args:
        total: The amount, in what `add` counts.
        unit: In which it is shown.
        scale: What makes one unit.
    """

    def __init__(self, total: int, unit: str = "GB", scale: float = 1e9) -> None:
        self._total, self._unit, self._scale = total, unit, scale
        self._done = self._earlier = 0
        self._start = self._reported = time.monotonic()
        self._line = LiveLine()

    def __enter__(self) -> WorkProgress:
        self._line.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._line.__exit__()

    def add(self, amount: int, earlier: bool = False) -> None:
        """Counts more as done; what an earlier attempt has done does not count in the speed of the rest."""
        self._done += amount
        self._earlier += amount * earlier
        now = time.monotonic()
        if self._line.is_shown:
            self._line.update(self._text(now), description="", done=self._done, total=self._total)
        elif now - self._reported >= _INTERVAL:
            self._reported = now
            print(self._text(now), flush=True)

    def _text(self, now: float) -> str:
        left = (now - self._start) * (self._total - self._done) / max(1, self._done - self._earlier)
        digits = 0 if self._scale == 1 else 1
        done, total = (f"{amount / self._scale:,.{digits}f}" for amount in (self._done, self._total))
        percent = 100 * self._done / max(1, self._total)
        return f"{done} of {total} {self._unit} ({percent:.0f} %), {duration(left)} left"


def duration(seconds: float) -> str:
    """A time in the unit that suits it: seconds to days."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{round(seconds)} s"
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours / 24:.1f} days"
