"""Records of a forward pass whose tensors autograd keeps.

A record is a tuple, list or dataclass that holds tensors somewhere inside. Only what goes through `save_for_backward`
can be dropped by gradient checkpointing or moved by hooks, so the tensors are taken out of the records for the time
between the passes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Reference:
    """Stands for the tensor with this index."""

    index: int


def taken_out(record: Any) -> tuple[Any, list[Tensor]]:
    """The record with references for its tensors, and those: each once, however often it occurs."""
    tensors: list[Tensor] = []
    references: dict[int, Reference] = {}

    def reference(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) not in references:
            references[id(value)] = Reference(len(tensors))
            tensors.append(value)
        return references[id(value)]

    return _mapped(record, reference), tensors


def put_back(record: Any, tensors: tuple[Tensor, ...]) -> Any:
    """The record that `taken_out` was given, with these tensors."""
    return _mapped(record, lambda value: tensors[value.index] if isinstance(value, Reference) else value)


def _mapped(record: Any, leaf: Callable[[Any], Any]) -> Any:
    if isinstance(record, Reference):
        return leaf(record)
    if isinstance(record, tuple) and hasattr(record, "_fields"):
        return type(record)(*(_mapped(part, leaf) for part in record))
    if isinstance(record, (tuple, list)):
        return type(record)(_mapped(part, leaf) for part in record)
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        parts = {field.name: _mapped(getattr(record, field.name), leaf) for field in dataclasses.fields(record)}
        return type(record)(**parts)
    return leaf(record)
