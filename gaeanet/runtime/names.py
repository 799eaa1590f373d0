"""Names that come from data, and the one place where such a name becomes a path. Nothing here needs torch.

Shards, indices, archives, manifests, buckets and class tables name files, and whoever wrote them may be anybody. A name
is joined to a directory here alone, so that nothing is read or written outside of it. See docs/security.md.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gaeanet.errors import RequestError


def shown(name: str) -> str:
    """A name as messages show it: what would steer a terminal, or is not UTF-8, is escaped."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in name
    )


def stays_inside(name: str) -> bool:
    """Whether a relative POSIX path leads to something below the directory that it is joined to."""
    parts = name.split("/")
    return bool(name) and "\0" not in name and parts[0] != "" and not {"", ".", ".."} & set(parts)


def inside(directory: Path, name: str) -> Path:
    """`directory / name` for a name that came from data.

    Raises:
        RequestError: The name is absolute, empty, or has `.`, `..` or nothing between two slashes.
    """
    if not stays_inside(name):
        raise RequestError(f"{shown(name)!r}: names something outside of {directory}, and is not followed")
    return directory / name


def first_outside(names: NDArray[np.uint8], ends: NDArray[np.int64]) -> int | None:
    """The number of the first of many names that does not stay inside; None where all do.

    Looks at the bytes of all names at once, since a data set has a million of them.

    Args:
        names, ends: As in `catalog.Split`.
    """
    if not len(ends):
        return None
    starts = np.concatenate([[0], ends[:-1]])
    filled = starts < ends
    heads, tails = names[starts[filled]], names[ends[filled] - 1]
    suspect = ~filled
    suspect[filled] = (heads == ord("/")) | (heads == ord(".")) | (tails == ord("/"))
    text = names.tobytes()
    for pattern in (b"//", b"/.", b"\0"):
        place = text.find(pattern)
        while place >= 0:
            suspect[np.searchsorted(ends, place, side="right")] = True
            place = text.find(pattern, place + 1)
    for index in np.flatnonzero(suspect).tolist():
        name = names[starts[index] : ends[index]].tobytes().decode("utf-8", "surrogateescape")
        if not stays_inside(name):
            return int(index)
    return None
