"""What is an image, and what is skipped: one definition for folders, archives, buckets, `prepare`, and `predict`.

- An image is what has an image's suffix, whatever it holds, and is no directory.
- Hidden entries are none: those that begin with a dot (`._x.jpg` and `.DS_Store` of a Mac, `.ipynb_checkpoints`), and
  the folder `__MACOSX` that a Mac puts into archives.
- Links are followed. A directory is entered once, under its own name rather than a link's, so no image comes twice and
  a link that leads back to a directory above ends there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gaeanet.data.formats import IMAGE_SUFFIXES
from gaeanet.errors import RequestError, reason
from gaeanet.runtime.names import shown

MOST_BYTES = 1_000_000_000
"""Of an image file: 90 million pixels of four times 16 bits have 720 MB."""


def is_hidden(name: str) -> bool:
    """Whether an entry of a directory, archive or bucket is skipped, with all below it."""
    return name.startswith(".") or name == "__MACOSX"


def is_hidden_path(path: str) -> bool:
    """Whether an entry of this relative path is skipped: it, or a directory above it, is hidden."""
    return any(map(is_hidden, path.removeprefix("./").split("/")))


def is_image(path: str) -> bool:
    """Whether the file of this relative path is taken for an image: by its suffix, and not hidden anywhere."""
    return _has_image_suffix(path) and not is_hidden_path(path)


def _has_image_suffix(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def identity(path: str | Path) -> tuple[int, int]:
    """What identifies a directory, whatever link leads to it: device and inode."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def leads_to_directory(entry: os.DirEntry[str]) -> bool:
    """Whether an entry, or what a link leads to, is a directory; links in a circle lead nowhere."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def images_under(
    folder: str | Path,
    prefix: str = "",
    skipped: Callable[[str], object] = bool,
    closed: Callable[[OSError], object] | None = None,
    entered: set[tuple[int, int]] | None = None,
) -> Iterator[str]:
    """Paths, relative to `folder`, of the images in it and in the folders below it.

    Args:
        prefix: What the paths begin with.
        skipped: Is called with every file that is no image by its name.
        closed: Is called with why a directory cannot be listed.
        entered: Directories (device, inode) that were entered already; grows.

    Raises:
        RequestError: A directory cannot be listed, and there is no `closed`.
    """
    entered = set() if entered is None else entered
    waiting, links = [(str(folder), prefix)], list[tuple[str, str]]()
    while waiting or links:
        path, begin = waiting.pop() if waiting else links.pop(0)
        try:
            if (here := identity(path)) in entered:
                continue
            entered.add(here)
            with os.scandir(path) as entries:
                below = list[tuple[str, str]]()
                for entry in entries:
                    if is_hidden(entry.name):
                        continue
                    if leads_to_directory(entry):
                        (links if entry.is_symlink() else below).append((entry.path, f"{begin}{entry.name}/"))
                    elif _has_image_suffix(entry.name):
                        yield begin + entry.name
                    else:
                        skipped(begin + entry.name)
        except OSError as error:
            if closed is None:
                raise RequestError(f"{path}: cannot be listed: {reason(error)}") from None
            closed(error)
            continue
        waiting += below
        links.sort()


def read_image(path: str | Path) -> bytes:
    """The bytes of an image file.

    Raises:
        OSError: It cannot be read, is larger than any image, or a device, which may have no end.
    """
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            raise OSError(0, "a device, not a file")
        if status.st_size > MOST_BYTES:
            raise OSError(0, f"too large: {status.st_size:,} bytes, at most {MOST_BYTES:,} are read")
        if status.st_size:
            return file.read(status.st_size)
        data = bytearray()  # a pipe, or a file in /proc, tells no size
        while block := file.read(1 << 20):
            data += block
            if len(data) > MOST_BYTES:
                raise OSError(0, f"too large: more than {MOST_BYTES:,} bytes")
        return bytes(data)


def skipped_note(where: str, names: Sequence[str], one: str, many: str) -> str:
    """A note on what is not used, with a few of the names; `one` and `many` are what these are called."""
    some = ", ".join(map(shown, sorted(names)[:3])) + (", ..." if len(names) > 3 else "")
    return f"{where}: skipped {len(names)} {one if len(names) == 1 else many} ({some})"
