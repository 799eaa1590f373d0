"""Standard output that may go away: losing it must not cost a run."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any, TextIO


def open_standard_streams() -> None:
    """Opens what a launcher has closed (`>&-`), to nowhere: else the next file would be taken for standard output.

    A name that is not UTF-8 is written escaped, whatever the stream's own rule is.
    """
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (to the end)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class LastingOutput:
    """Standard output for a run: once it cannot be written (a closed pipe or terminal, a full disk), it is silent.

    Everything else is the stream's own.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream

    def write(self, text: str) -> int:
        """Writes, or does nothing any more."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            self._lose()
            return len(text)

    def flush(self) -> None:
        """Flushes, or does nothing any more."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._lose()

    def _lose(self) -> None:
        """Lets what is still in the stream's buffer go nowhere, so that Python's own flush at exit succeeds."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
