"""Files and directories: what is there, reading text of a bounded size, writing it whole. Needs no torch.

`pathlib` answers "not there" or raises, depending on Python's version, where a directory may not be entered. Here it is
a refusal that names the file and whose it is.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gaeanet.errors import RequestError, reason

MOST_BYTES = 4_000_000
"""Of an experiment or genotype file: a thousand times the largest one in use."""

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ELOOP, errno.ENAMETOOLONG)

Name = str | os.PathLike[str]


def exists(path: Name) -> bool:
    """Whether there is something of this name; raises `RequestError` where that may not be looked at."""
    return _is(path, lambda mode: True)


def is_file(path: Name) -> bool:
    """Whether this is a regular file; raises `RequestError` where that may not be looked at."""
    return _is(path, stat.S_ISREG)


def is_directory(path: Name) -> bool:
    """Whether this is a directory; raises `RequestError` where that may not be looked at."""
    return _is(path, stat.S_ISDIR)


def _is(path: Name, kind: Callable[[int], bool]) -> bool:
    try:
        return kind(os.stat(path).st_mode)
    except OSError as error:
        if error.errno in _NOT_THERE:
            return False
        raise RequestError(f"{path}: cannot be read: {reason(error)}") from None
    except ValueError:  # a null byte in the name
        return False


def expanded(path: Name) -> Path:
    """A path with `~` written out; raises `RequestError` where there is no such user or home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise RequestError(f"{path}: there is no such home directory: write the path out") from None


def entries_of(directory: Name) -> list[Path]:
    """What a directory holds, by name; raises `RequestError` where it cannot be listed."""
    try:
        return sorted(Path(directory).iterdir())
    except OSError as error:
        raise RequestError(f"{directory}: cannot be listed: {reason(error)}") from None


def read_text(path: Name, most: int = MOST_BYTES, *, regular: bool = True) -> str:
    """A text file, UTF-8.

    Args:
        regular: Refuses what is no regular file, such as a pipe, which might never end or never begin.

    Raises:
        OSError: It cannot be read, or has more than `most` bytes, which are not read.
        UnicodeDecodeError: It is no text.
    """
    mode = os.stat(path).st_mode
    if regular and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # of a directory the system reports so itself
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    with open(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"too large: more than {most:,} bytes", str(path))
    return data.decode("utf-8").replace("\r\n", "\n")


def check_replaceable(path: Path) -> None:
    """Raises OSError where no file can take this place: a device, a pipe, or a link to one, as `/dev/stdout` is."""
    try:
        mode = os.stat(path).st_mode
    except OSError:  # nothing is there, or the writing will say why not
        return
    is_stream = path.is_symlink() and os.readlink(path).startswith("/proc/")
    if is_stream or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "a device or pipe, not a file", str(path))


def replace_text(path: Path, text: str, errors: str = "strict") -> None:
    """Writes a text file, UTF-8, in one step: what was there stays until all of the new one is on the disk.

    Args:
        errors: What becomes of text that UTF-8 has no bytes for, as `str.encode` takes it.

    Raises:
        OSError: It cannot be written.
    """
    check_replaceable(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8", errors=errors)
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def read_json(path: Name, most: int) -> Any:
    """The content of a regular file of JSON; raises OSError as `read_text`, and ValueError where it is no JSON."""
    try:
        return json.loads(read_text(path, most))
    except RecursionError:
        raise ValueError("nested too deep") from None


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest_3_10(file)
        )


def _digest_3_10(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
