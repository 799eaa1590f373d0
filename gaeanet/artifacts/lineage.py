"""Where a file came from: program, configuration, data, seeds and the checkpoint it started from. Needs no torch.

Every checkpoint and export carries this, its parents' included, so that the file alone has the whole chain.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from gaeanet import __version__
from gaeanet.config.data import describe_minival
from gaeanet.errors import counted

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
    """What a checkpoint records of its own origin, in plain values.

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
    """What a child records of the checkpoint it started from: where it was, which weights, and their own chain."""
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


def chain(metadata: Mapping[str, Any]) -> Iterator[str]:
    """The chain as text, a line each, from the file back to the first weights."""
    state = metadata["state"]
    if metadata.get("format") not in (None, "checkpoint"):
        folded = ", batch norm folded" if metadata.get("folded") else ""
        yield f"export: {metadata['format']}, {metadata['weights']} weights{folded}, of {metadata.get('source')}"
    hp = state.get("hyperparameters", {})
    link: Mapping[str, Any] | None = state.get("lineage")
    where = f"after {counted(state['batches'], 'step')}" if state.get("batches") else "no step trained"
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
            yield f"  but for {describe_minival(data['minival'])}, on which it was validated"
        parent = link.get("parent")
        if parent is None:
            yield "  from random weights"
            return
        yield f"parent: {parent['path']}, {parent['weights']} weights, {parent.get('num_classes')} classes"
        if parent.get("digest"):
            yield f"  sha256 {parent['digest'][:16]}, after {counted(parent.get('batches') or 0, 'step')}"
        if parent.get("imported_from"):
            yield f"  imported from {parent['imported_from']}"
        link = parent.get("lineage")
    if state.get("imported_from"):
        yield f"  imported from {state['imported_from']}: what it was trained on is not known"
