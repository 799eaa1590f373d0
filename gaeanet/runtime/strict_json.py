"""JSON by the standard (RFC 8259), which Python's own writer leaves for numbers that are not finite and odd names."""

from __future__ import annotations

import json
import math
from typing import Any

from gaeanet.runtime.names import shown


def dumps(value: Any, indent: int | None = None) -> str:
    """Plain values as JSON that any strict parser takes: no NaN or infinity (null), no text that is not Unicode."""
    return json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {_plain(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        return shown(value)
    return value
