"""Reading genotypes: from names, files, texts and mappings."""

from __future__ import annotations

import ast
import re
import stat
from typing import Any

from gaeanet.cells.genotype import FIELDS, Genotype
from gaeanet.cells.zoo import ZOO
from gaeanet.errors import RequestError, did_you_mean, reason
from gaeanet.runtime.files import expanded, read_text
from gaeanet.runtime.names import shortened
from gaeanet.runtime.yaml import parse


def from_dict(fields: Any, origin: str = "genotype") -> Genotype:
    """A genotype from the mapping that `Genotype.to_dict` gives; further keys (name, source, lineage) are left alone.

    Raises:
        RequestError: `fields` is not such a mapping, or the cell is malformed.
    """
    if not isinstance(fields, dict):
        raise RequestError(f"{origin}: expected a mapping with {', '.join(FIELDS)}, got {type(fields).__name__}")
    missing = [name for name in FIELDS if name not in fields]
    if missing:
        raise RequestError(f"{origin}: no {' and no '.join(missing)}; a genotype has {', '.join(FIELDS)}")
    try:
        return Genotype(**{name: fields[name] for name in FIELDS})
    except RequestError as error:
        raise RequestError(str(error) if origin == "genotype" else f"{origin}: {error}") from None


def from_text(text: str) -> Genotype:
    """The first `Genotype(...)` in `text`, as printed in other projects' sources and logs.

    The text is parsed, never evaluated: only literals and `range(a, b)` are understood.

    Raises:
        RequestError: There is no genotype in the text, or it is malformed.
    """
    start = re.search(r"Genotype\s*\(", text)
    if start is None:
        raise RequestError(f"genotype: no Genotype(...) in {_quoted(text)}")
    try:
        call = ast.parse(_balanced(text[start.start() :]), mode="eval").body
    except (SyntaxError, ValueError):
        raise RequestError(f"genotype: cannot parse {_quoted(text[start.start() :])}") from None
    assert isinstance(call, ast.Call)
    fields = dict(zip(FIELDS, map(_literal, call.args)))
    for keyword in call.keywords:
        if keyword.arg not in FIELDS:
            raise RequestError(f"genotype: unknown field {keyword.arg!r}; {did_you_mean(str(keyword.arg), FIELDS)}")
        fields[keyword.arg] = _literal(keyword.value)
    return from_dict(fields)


def _balanced(text: str) -> str:
    """`text` up to the parenthesis that closes its first one."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0 and character == ")":
            return text[: position + 1]
    return text


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range" and not node.keywords:
        bounds = [_literal(argument) for argument in node.args]
        if (
            1 <= len(bounds) <= 3
            and all(type(bound) is int and abs(bound) < 1000 for bound in bounds)
            and 0 not in bounds[2:]
        ):
            return list(range(*bounds))
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, MemoryError, RecursionError):
        raise RequestError(f"genotype: {_quoted(ast.unparse(node))} is not a plain list, number or name") from None


def _quoted(text: str) -> str:
    return repr(shortened(" ".join(text.split()), 80))


def is_text(reference: str) -> bool:
    """Whether this is a `Genotype(...)` text itself, and not the name of something that holds one."""
    return re.match(r"\s*(\w+\s*=\s*)?Genotype\s*\(", reference) is not None


def read_genotype(reference: Any) -> Genotype:
    """The genotype that `reference` stands for.

    Args:
        reference: A `Genotype`, the mapping of `Genotype.to_dict`, a name from the zoo, the path of a JSON, YAML or
            text file, or the text `Genotype(normal=[...], ...)` itself.

    Raises:
        RequestError: There is no such name or file, or what it holds is not a well-formed genotype.
    """
    if isinstance(reference, Genotype):
        return reference
    if not isinstance(reference, str):
        return from_dict(reference)
    if reference in ZOO:
        return ZOO[reference].genotype
    if is_text(reference):
        return from_text(reference)
    path = expanded(reference)
    try:
        # Not is_file(): what it raises and what it takes for "not there" differs between versions of Python.
        if not stat.S_ISREG(path.stat().st_mode):
            raise FileNotFoundError
        text = read_text(path)
    except (FileNotFoundError, NotADirectoryError):
        raise RequestError(
            f"genotype {_quoted(reference)}: neither a file nor a known cell; {did_you_mean(reference, ZOO)}"
        ) from None
    except (OSError, ValueError) as error:
        raise RequestError(f"genotype {_quoted(reference)}: cannot be read: {reason(error)}") from None
    if re.search(r"Genotype\s*\(", text):
        return from_text(text)
    try:
        fields = parse(text, str(path))
    except RequestError as error:
        raise RequestError(f"{error} (nor is it JSON or a Genotype(...) text)") from None
    return from_dict(fields, origin=str(path))
