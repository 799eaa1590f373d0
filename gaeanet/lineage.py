"""Where a file came from: program, configuration, data, seeds and the checkpoint it started from. Needs no torch.

Every checkpoint and export carries this, its parents' included, so that the whole chain is told by the file alone.
"""

from __future__ import annotations

import json
import struct
import subprocess
import zipfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from gaeanet import __version__
from gaeanet.data.minival import in_words
from gaeanet.errors import RequestError, reason
from gaeanet.trained import EXPORT_CONFIG, find

METADATA = "gaeanet"
"""Under this name an ONNX file's metadata and a torch.export program's extra files hold what gaeanet says of them."""

Lineage = dict[str, Any]


@cache
def revision() -> str | None:
    """The git commit of this program's source, with `-dirty` where files differ from it; None where it is no clone."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + "-dirty" * bool(changed)


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()


def lineage_of(state: Mapping[str, Any], seed: int, parent: Lineage | None) -> Lineage:
    """What a checkpoint says of its own origin, in plain values.

    Args:
        state: The checkpoint's other values: data and versions.
        seed: Of the run; data order, augmentation and initial weights follow from it.
        parent: The checkpoint that the run started from, as `parent_of` gives it.
    """
    data = state.get("data") or {}
    return {
        "program": f"gaeanet {state.get('gaeanet', __version__)}, torch {state.get('torch')}",
        "revision": revision(),
        "seed": seed,
        "data": {
            **{key: data.get(key) for key in ("location", "fingerprint", "generated")},
            **({"minival": minival} if (minival := (data.get("settings") or {}).get("minival")) else {}),
        },
        "parent": parent,
    }


def parent_of(path: Path, kind: str, digest: str | None, state: Mapping[str, Any]) -> Lineage:
    """What a child says of the checkpoint it started from: where it was, which weights, and their own chain."""
    return {
        "path": str(path.absolute()),
        "weights": kind,
        "digest": digest,
        "batches": state.get("batches"),
        "genotype": state.get("hyperparameters", {}).get("genotype"),
        "num_classes": state.get("hyperparameters", {}).get("num_classes"),
        "imported_from": state.get("imported_from"),
        "lineage": state.get("lineage"),
    }


def read_metadata(path: Path) -> dict[str, Any] | None:
    """What gaeanet wrote into a file or directory about it: a checkpoint's state, or an export's block.

    None where it is nothing of gaeanet's.

    Raises:
        RequestError: It should be there and cannot be read.
    """
    if path.is_file() and path.suffix == ".onnx":
        return _onnx_metadata(path)
    if path.is_file() and path.suffix == ".pt2":
        return _pt2_metadata(path)
    if path.is_dir():
        for name in ("model.onnx", "model.pt2"):
            if (path / name).is_file():
                return read_metadata(path / name)
    trained = find(path)
    if (trained.path / EXPORT_CONFIG).is_file():
        return dict(json.loads((trained.path / EXPORT_CONFIG).read_text(encoding="utf-8"))[METADATA])
    weights = {kind: digest for kind, (_, digest) in trained.digests.items()}
    return {"format": "checkpoint", "path": str(trained.path), "state": trained.state, "digests": weights}


def _onnx_metadata(path: Path) -> dict[str, Any] | None:
    """The metadata of an ONNX file, read from its protocol buffer: no package is needed for that."""
    try:
        content = path.read_bytes()
        for field, value in _fields(content):
            if field == 14:  # ModelProto.metadata_props
                entry = dict(_fields(value))
                if entry.get(1) == METADATA.encode():
                    return dict(json.loads(entry[2]))
    except (OSError, ValueError, IndexError, struct.error) as error:
        raise RequestError(f"{path}: not an ONNX file, or damaged: {reason(error)}") from None
    return None


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a protocol buffer message: number and content."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while place < len(data):
        key = varint()
        kind = key & 7
        if kind == 0:
            varint()
        elif kind in (1, 5):
            place += 8 if kind == 1 else 4
        elif kind == 2:
            length = varint()
            if place + length > len(data):
                raise ValueError("it ends too early")
            yield key >> 3, data[place : place + length]
            place += length
        else:
            raise ValueError("unknown content")


def _pt2_metadata(path: Path) -> dict[str, Any] | None:
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.rsplit("/", 1)[-1] == METADATA:
                    return dict(json.loads(archive.read(name)))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise RequestError(f"{path}: not a torch.export program, or damaged: {reason(error)}") from None
    return None


def chain(metadata: Mapping[str, Any]) -> Iterator[str]:
    """The chain in words, a line each, from the file back to the first weights."""
    state = metadata["state"]
    if metadata.get("format") not in (None, "checkpoint"):
        folded = ", batch norm folded" if metadata.get("folded") else ""
        yield f"export: {metadata['format']}, {metadata['weights']} weights{folded}, of {metadata.get('source')}"
    hp = state.get("hyperparameters", {})
    link: Mapping[str, Any] | None = state.get("lineage")
    where = f"after {state['batches']:,} steps" if state.get("batches") else "no step trained"
    yield f"checkpoint: {where}, {hp.get('num_classes')} classes"
    for kind, digest in metadata.get("digests", {}).items():
        yield f"  {kind} weights: sha256 {digest[:16]}"
    while link is not None:
        data = link.get("data") or {}
        yield f"  made by {link.get('program')}, revision {link.get('revision') or 'unknown'}, seed {link.get('seed')}"
        yield f"  trained on {data.get('location')} (fingerprint {data.get('fingerprint')})" + (
            ", GENERATED IMAGES" if data.get("generated") else ""
        )
        if data.get("minival"):
            yield f"  but for {in_words(data['minival'])}, on which it was validated"
        parent = link.get("parent")
        if parent is None:
            yield "  from random weights"
            return
        yield f"parent: {parent['path']}, {parent['weights']} weights, {parent.get('num_classes')} classes"
        if parent.get("digest"):
            yield f"  sha256 {parent['digest'][:16]}, after {parent.get('batches') or 0:,} steps"
        if parent.get("imported_from"):
            yield f"  imported from {parent['imported_from']}"
        link = parent.get("lineage")
    if state.get("imported_from"):
        yield f"  imported from {state['imported_from']}: what it was trained on is not known"
