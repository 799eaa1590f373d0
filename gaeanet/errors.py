"""What can go wrong, and the exit code each kind of failure ends the command with.

    GaeanetError
    ├── RequestError    2   the request was wrong: nothing was started, nothing was changed
    ├── RunError        1   the run failed on the way
    │   └── HeldUp     75   one of several processes had to stop without the others, and so without saving
    └── Stopped        75   stopped on request, with the state saved: run again with --resume
        ├── Preempted   0   stopped by a cluster, which knows of the saved state and starts the run again from it
        └── Ended       0   ended by a cluster's search, which has seen enough of it; its state is saved

Every message is one line: what was wrong, where (key, path or object) and what to do. The command line
prints it without a traceback; library users catch `GaeanetError`.
"""

from __future__ import annotations

import difflib
import os
import pathlib
import stat
from collections.abc import Iterable


class GaeanetError(Exception):
    """Base of all errors that gaeanet raises on purpose."""

    exit_code = 1


class RequestError(GaeanetError):
    """What was asked for is wrong or cannot be done here; raised before any work starts."""

    exit_code = 2


class RunError(GaeanetError):
    """A run failed after it had started."""

    exit_code = 1


class HeldUp(RunError):
    """One of several processes was asked to stop while a read held it up: what the last checkpoint has is resumed."""

    exit_code = 75


class Stopped(GaeanetError):
    """A run was stopped on request and its state is saved."""

    exit_code = 75


class Preempted(Stopped):
    """A cluster preempted the run; to the cluster, a run that exits 0 is one that can continue."""

    exit_code = 0


class Ended(Stopped):
    """A search has no further use for a run; to the cluster, it is complete."""

    exit_code = 0


def reason(error: BaseException) -> str:
    """Why another library's call failed, short, in lower case and without a final stop.

    Where a file may not be read or written, also whose it is, or the directory above it that may not be entered.
    """
    text = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), "") or type(error).__name__
    why = str(text[:1].lower() + text[1:]).rstrip(". ")
    if isinstance(error, PermissionError) and isinstance(error.filename, (str, bytes, os.PathLike)):
        why += _whose(os.path.abspath(os.fsdecode(error.filename)))
    return why


def _whose(path: str) -> str:
    """Owner and mode of a file, or of the nearest directory above it that can be looked at."""
    import pwd  # not on Windows, which is refused in one line

    for candidate in (path, *map(str, pathlib.PurePath(path).parents)):
        try:
            status = os.stat(candidate)
        except OSError:
            continue
        try:
            owner = pwd.getpwuid(status.st_uid).pw_name
        except KeyError:
            owner = f"user {status.st_uid}"
        which = "it" if candidate == path else candidate
        return f" ({which} belongs to {owner}, mode {stat.S_IMODE(status.st_mode):o})"
    return ""


def counted(number: int, noun: str) -> str:
    """A number of things as messages have it: `1 class`, `1,200 classes`."""
    plural = "es" if noun.endswith(("s", "tch")) else "s"
    return f"{number:,} {noun}{plural * (number != 1)}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence that names the entries of `known` most like `word`, or all of them when none is alike."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.6) or [name for name in known if word and word in name]
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known: {', '.join(known)}"
