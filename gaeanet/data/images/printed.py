"""What C libraries print to standard error while they decode an image: there alone they say what is wrong with it."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
from collections.abc import Iterator

_one_at_a_time = threading.Lock()


@contextlib.contextmanager
def printed(lines: re.Pattern[bytes]) -> Iterator[list[str]]:
    """Leads standard error into a file in memory; at the end the list holds the lines of this form.

    What else is written there meanwhile is passed on.

    Args:
        lines: Matches a whole line with its end.
    """
    lines_printed: list[str] = []
    with _one_at_a_time:
        memory = _file_in_memory()
        try:
            saved = os.dup(2)
        except OSError:  # there is no standard error
            saved = None
        os.dup2(memory, 2)
        try:
            yield lines_printed
        finally:
            if saved is not None:
                os.dup2(saved, 2)
                os.close(saved)
            elif memory != 2:
                os.close(2)
            length = os.lseek(memory, 0, os.SEEK_END)
            text = os.pread(memory, length, 0) if length else b""
            os.close(memory)
            lines_printed += [line[0].decode("ascii", "replace").rstrip() for line in lines.finditer(text)]
            if saved is not None and (others := lines.sub(b"", text)):
                os.write(2, others)


def _file_in_memory() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("printed")
    with tempfile.TemporaryFile() as file:  # as on macOS
        return os.dup(file.fileno())
