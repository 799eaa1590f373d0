"""What is wrong with a block of an experiment file, in one line."""

from __future__ import annotations

from collections.abc import Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from gaeanet.errors import did_you_mean
from gaeanet.runtime.names import shortened


def one_line(error: ValidationError, model: type[BaseModel], where: str) -> str:
    """The first fault as text: which key, what it must be, what it is."""
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    while path and (inner := _block(model, path[0])):
        where, model, path = f"{where}.{path[0]}", inner, path[1:]
    key = f"{where}.{path[0]}" if path else where
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown key; {did_you_mean(path[0], model.model_fields)}"
    if first["type"] == "value_error":
        message = str(first["ctx"]["error"])
        return f"{key} {message}" if message.startswith("is ") else f"{key}: {message}"
    given = shortened(repr(first["input"]))
    if not path:
        return f"{key}: must be a block of keys ({', '.join(model.model_fields)}), got {given}"
    return f"{key}: must be {expected(model.model_fields[path[0]])}, got {given}"


def _block(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The block that a key of a block holds; None for any other key."""
    field = model.model_fields.get(key)
    kinds = () if field is None else (field.annotation, *get_args(field.annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def expected(field: FieldInfo) -> str:
    """What a field takes: kinds of values and their bounds, from its annotation."""
    kinds = _kinds(field.annotation, field.metadata)
    if any(" >" in kind or " <" in kind for kind in kinds[:-1]):
        return f"{' or '.join(kinds[:-1])}, or {kinds[-1]}"
    return " or ".join(kinds)


_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list[str]: "a list of names",
    type(None): "null",
}


def _kinds(annotation: Any, constraints: Sequence[Any]) -> list[str]:
    """Each kind of value that an annotation allows; bounds belong to numbers."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        own = [rule for outer in inner[1:] for rule in getattr(outer, "metadata", [outer])]
        return _kinds(inner[0], [*constraints, *own])
    if origin in (Union, UnionType):
        if str in inner and dict[str, Any] in inner:
            return ["a name, a file or four lists"]
        return [kind for part in inner for kind in _kinds(part, constraints)]
    if origin is Literal:
        return [str(value) for value in inner]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return ["a block of keys"]
    if annotation != list[str] and origin is list:  # of bounded numbers
        rules = [rule for outer in get_args(inner[0])[1:] for rule in getattr(outer, "metadata", [outer])]
        return [f"two whole numbers {_bounds(rules)}".rstrip()]
    bounds = _bounds(constraints) if annotation in (int, float) else ""
    return [f"{_WORDS[annotation]} {bounds}".rstrip()]


def _bounds(constraints: Sequence[Any]) -> str:
    bounds = []
    for constraint in constraints:
        for attribute, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
            if (bound := getattr(constraint, attribute, None)) is not None:
                bounds.append(f"{sign} {'2^63' if bound == 2**63 else bound}")
        if (factor := getattr(constraint, "multiple_of", None)) is not None:
            bounds.append(f"a multiple of {factor}")
    return " and ".join(bounds)
