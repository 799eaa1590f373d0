"""Names that come from data, and the one function by which such a name becomes a path. Needs no numpy or torch.

Shards, indices, archives, manifests, buckets and class tables name files, and whoever wrote them may be anybody. A name
is joined to a directory here alone, so that nothing is read or written outside of it. See docs/security.md.
"""

from __future__ import annotations

from pathlib import Path

from gaeanet.errors import RequestError


def shown(name: str) -> str:
    """A name as messages show it: what would steer a terminal, or is not UTF-8, is escaped."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in name
    )


def shortened(text: str, most: int = 60) -> str:
    """A text of unknown length as messages show it: at most `most` characters, the last three dots where it is cut."""
    return text if len(text) <= most else text[: most - 3] + "..."


def is_whole(name: str) -> bool:
    """Whether a text can be a name on disk: JSON may hold half of a character (`"\\ud800"`), which no name does."""
    try:
        name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


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
