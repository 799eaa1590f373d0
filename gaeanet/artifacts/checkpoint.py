"""State on disk: atomic, verified, safe to load.

A checkpoint is a directory `step-<optimizer steps>` of safetensors files and a `manifest.json`, which holds everything
that is not a tensor and digests of every file and of itself. It is written under a temporary name, flushed to the disk
and renamed, so that a directory with the final name is always complete. `latest` and `best` are links beside it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from gaeanet.artifacts import manifest
from gaeanet.artifacts.directory import MANIFEST
from gaeanet.errors import RequestError, RunError, reason
from gaeanet.runtime.files import digest_of, entries_of, is_directory, is_file, read_text
from gaeanet.runtime.names import inside

if TYPE_CHECKING:  # reading a manifest, and refusing one, takes no torch
    from torch import Tensor

NAME = re.compile(r"step-(\d{9})")
"""What checkpoints are called."""


State = dict[str, Any]
"""Plain values (numbers, texts, lists, mappings) that go into the manifest."""


def name_of(step: int) -> str:
    """What the checkpoint of an optimizer step is called."""
    return f"step-{step:09d}"


def save(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: State) -> Path:
    """Writes the checkpoint of optimizer step `step` into `folder` and returns its directory; see `write`."""
    path = folder / name_of(step)
    write(path, step, tensors, state)
    return path


def write(final: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: State) -> None:
    """Writes the checkpoint directory `final`, replacing one that is there.

    Args:
        tensors: Groups of named tensors; each group becomes `<group>.safetensors`.
        state: Goes into the manifest.

    Raises:
        RunError: The disk is full or cannot be written; what was there before is untouched.
    """
    from safetensors.torch import save

    draft = final.with_name(f".{final.name}.{os.getpid()}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        digests = {}
        for group, values in tensors.items():
            path = draft / f"{group}.safetensors"
            # Not save_file, which makes files that their owner alone may read.
            path.write_bytes(save({name: value.detach().cpu().contiguous() for name, value in values.items()}))
            digests[path.name] = digest_of(path)
            _flush(path)
        (draft / MANIFEST).write_text(manifest.text_of(step, digests, state), encoding="utf-8")
        _flush(draft / MANIFEST)
        _flush(draft)
        shutil.rmtree(final, ignore_errors=True)
        draft.rename(final)
        _flush(final.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise RunError(f"{final}: cannot save the checkpoint: {reason(error)}; earlier ones are intact") from None


def point(folder: Path, name: str, target: Path) -> None:
    """Makes the link `folder/name` (`latest`, `best`) lead to a checkpoint beside it, in one step.

    Some network and object-store file systems have no links: there it does nothing, for checkpoints record themselves
    which is the newest and which the best.
    """
    draft = folder / f".{name}.{os.getpid()}"
    with contextlib.suppress(OSError):
        draft.unlink(missing_ok=True)
        draft.symlink_to(target.name)
        draft.replace(folder / name)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    if not is_directory(folder):
        return []
    return [path for path in entries_of(folder) if NAME.fullmatch(path.name) and is_directory(path)]


def prune(folder: Path, keep_latest: int, keep: Iterable[int] = ()) -> None:
    """Removes all but the newest checkpoints and those of the steps to keep, and what a killed process left over."""
    kept_names = {name_of(step) for step in keep}
    for path in checkpoints(folder)[: -keep_latest or None]:
        if path.name not in kept_names:
            shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the checkpoint directory `path`; raises `RequestError` where there is none or it is damaged."""
    file = path / MANIFEST
    try:
        text = read_text(file, manifest.MOST_BYTES)
    except UnicodeDecodeError:
        text = ""
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise RequestError(f"{file}: cannot be read: {reason(error)}") from None
        text = ""
    return manifest.parsed(text, str(path))


def load(path: Path) -> tuple[dict[str, dict[str, Tensor]], State]:
    """Groups of tensors, on the CPU, and state of the checkpoint directory `path`, every file checked.

    Raises:
        RequestError: It is not a checkpoint, or a file does not have the digest that was noted when it was saved.
    """
    content = read_manifest(path)
    groups = {}
    for name, digest in content["files"].items():
        groups[name.removesuffix(".safetensors")] = load_group(inside(path, name), digest)
    return groups, content["state"]


def load_group(file: Path, digest: str) -> dict[str, Tensor]:
    """The tensors of one safetensors file, on the CPU; raises `RequestError` unless it has this SHA-256 digest."""
    from safetensors.torch import load_file

    if not is_file(file):
        raise RequestError(f"{file}: missing")
    try:
        if digest_of(file) != digest:
            raise RequestError(f"{file}: damaged (wrong checksum)")
        tensors: dict[str, Tensor] = load_file(file)
    except OSError as error:
        raise RequestError(f"{file}: cannot be read: {reason(error)}") from None
    except SafetensorError as error:
        raise RequestError(f"{file}: not a file of weights: {reason(error)}") from None
    return tensors


def _flush(path: Path) -> None:
    """Waits until a file or directory is on the disk; some file systems cannot wait, or not for a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF):
            raise
    finally:
        os.close(descriptor)
