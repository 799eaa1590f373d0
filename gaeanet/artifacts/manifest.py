"""A checkpoint's manifest: covered by a digest of its own, and of the types and ranges that a run writes.

The digest reveals damage. It does not show who wrote it, and older checkpoints have none, so every value is looked at
too.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from gaeanet.errors import RequestError
from gaeanet.runtime.names import shortened, shown

FORMAT = 1
MOST_BYTES = 64 << 20
"""Of a manifest; one of ImageNet's thousand classes has 200 kB."""
_MOST = 2**53
"""The largest count."""

Rules = Mapping[str, tuple[Callable[[Any], bool], str]]


def text_of(step: int, files: Mapping[str, str], state: Mapping[str, Any]) -> str:
    """The manifest as it is written."""
    content = {"format": FORMAT, "step": step, "files": dict(files), "state": dict(state)}
    return json.dumps({**content, "digest": _digest(json.loads(json.dumps(content)))}, indent=1)


def _digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of all but the digest itself, however it is spaced and ordered."""
    plain = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def parsed(text: str, where: str) -> dict[str, Any]:
    """A manifest, checked.

    Raises:
        RequestError: It is none, or damaged, or has a value that no run writes.
    """
    try:
        manifest = json.loads(text)
        format_, _, _ = manifest["format"], manifest["files"], manifest["state"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise RequestError(f"{where}: not a gaeanet checkpoint, or its manifest.json is damaged") from None
    if format_ != FORMAT:
        raise RequestError(
            f"{where}: checkpoint format {_quoted(format_)}; this version of gaeanet reads format {FORMAT}"
        )
    if "digest" in manifest and manifest["digest"] != _digest(manifest):
        raise RequestError(f"{where}: its manifest.json is damaged (wrong checksum)")
    _check(manifest, _MANIFEST, f"{where}: its manifest.json")
    check_state(manifest["state"], f"{where}: its manifest.json")
    return dict(manifest)


def check_state(state: Any, where: str) -> None:
    """Raises `RequestError` where a checkpoint's state, or what an export took over of it, has other values."""
    if not isinstance(state, dict):
        raise RequestError(f"{where} is damaged: the state must be a block, is {_quoted(state)}")
    _check(state, _STATE, where)


def _check(values: Mapping[str, Any], rules: Rules, where: str) -> None:
    for key, (fits, expected) in rules.items():
        if key in values and not fits(values[key]):
            raise RequestError(f"{where} is damaged: {key} must be {expected}, is {_quoted(values[key])}")


def _quoted(value: Any) -> str:
    return shortened(shown(repr(value)[:200]))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MOST


def _is_fraction(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_block(value: Any) -> bool:
    return isinstance(value, dict)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(_is_text, value))


def _or_nothing(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _are_files(value: Any) -> bool:
    """Names of files beside the manifest, which `names.inside` will join, and their SHA-256 digests."""
    return isinstance(value, dict) and all(
        isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) for digest in value.values()
    )


def _are_best(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(entry, dict)
        and _is_count(entry.get("batches"))
        and entry.get("weights") in ("raw", "ema")
        and all(
            type(entry.get(key)) in (int, float) and 0 <= entry[key] <= most
            for key, most in (("top1_accuracy", 100), ("epoch", _MOST))
        )
        for entry in value
    )


def _is_scaler(value: Any) -> bool:
    return isinstance(value, dict) and all(
        type(number) in (int, float) and math.isfinite(number) and number >= 0 for number in value.values()
    )


def _is_data(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(value.get(key) is None or isinstance(value[key], str) for key in ("location", "fingerprint", "sizes"))
        and isinstance(value.get("generated", False), bool)
        and _or_nothing(_are_counts)(value.get("images"))
        and isinstance(value.get("settings") or {}, dict)
    )


def _are_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_count(value.get(split)) for split in ("train", "val"))


def _is_lineage(value: Any) -> bool:
    """A chain of parents, each with the values that `lineage.chain` prints."""
    while value is not None:
        if not isinstance(value, dict) or not _is_data(value.get("data") or {}):
            return False
        parent = value.get("parent")
        if parent is None:
            return True
        if not isinstance(parent, dict) or not _is_text(parent.get("path")):
            return False
        if parent.get("weights") not in ("raw", "ema"):
            return False
        if not _or_nothing(_is_text)(parent.get("digest")) or not _or_nothing(_is_count)(parent.get("batches")):
            return False
        value = parent.get("lineage")
    return True


_COUNT = (_is_count, "a whole number from 0")
_TEXT = (_is_text, "text")

_MANIFEST: Rules = {
    "step": _COUNT,
    "files": (_are_files, "a block of files and their digests"),
    "state": (_is_block, "a block"),
}
_STATE: Rules = {
    "batches": _COUNT,
    "updates": _COUNT,
    "skipped": _COUNT,
    "bad_steps": _COUNT,
    "validated_at": _COUNT,
    "settled": _COUNT,
    "world_size": (lambda value: _is_count(value) and value > 0, "a whole number from 1"),
    "rate_scale": (_is_fraction, "a number above 0, at most 1"),
    "crop_share": (_is_fraction, "a number above 0, at most 1"),
    "best": (_or_nothing(_are_best), "a list of validations"),
    "scaler": (_is_scaler, "a block of numbers"),
    "hyperparameters": (_is_block, "a block"),
    "classes": (_or_nothing(_are_names), "a list of names"),
    "class_names": (_or_nothing(_are_names), "a list of names"),
    "data": (_or_nothing(_is_data), "what the run learned from"),
    "lineage": (_is_lineage, "a chain of parents"),
    "gaeanet": _TEXT,
    "torch": _TEXT,
    "imported_from": (_or_nothing(_is_text), "text"),
}
"""What values of a manifest may be, where they are there."""
