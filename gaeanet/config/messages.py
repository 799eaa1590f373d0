"""What is wrong with a block of an experiment file, in one line."""

from __future__ import annotations

import re
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from gaeanet.errors import did_you_mean


def one_line(error: ValidationError, model: type[BaseModel], where: str) -> str:
    """The first fault in words: which key, what it must be, what it is."""
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
    if not path:
        return f"{key}: must be a block of keys ({', '.join(model.model_fields)}), got {_shown(first['input'])}"
    return f"{key}: must be {_expected(model.model_fields[path[0]])}, got {_shown(first['input'])}"


def _block(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The block that a key of a block holds; None for any other key."""
    field = model.model_fields.get(key)
    kinds = () if field is None else (field.annotation, *get_args(field.annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _expected(field: FieldInfo) -> str:
    """What a field takes, in words, from its annotation and bounds."""
    annotation = str(field.annotation)
    choices = re.findall(r"Literal\[([^\]]*)\]", annotation)
    words = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
    kinds = [" or ".join(choices[0].replace("'", "").split(", "))] if choices else []
    rest = re.sub(r"Literal\[[^\]]*\]", "", annotation)
    kinds += [
        text
        for name, text in words.items()
        if re.search(rf"\b{name}\b", rest) and not (name == "str" and "dict" in rest)
    ]
    if "list[int]" in rest or "List[int]" in rest:
        kinds.append("two whole numbers")
    if "list[str]" in rest:
        kinds = ["a list of names"]
    if "dict" in rest:
        kinds.append("a name, a file or four lists")
    if "None" in rest:
        kinds.append("null")
    bounds = []
    for constraint in field.metadata:
        for attribute, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
            if (bound := getattr(constraint, attribute, None)) is not None:
                bounds.append(f"{sign} {bound}")
        if (factor := getattr(constraint, "multiple_of", None)) is not None:
            bounds.append(f"a multiple of {factor}")
    return " or ".join(kinds) + (f" {' and '.join(bounds)}" if bounds else "")
