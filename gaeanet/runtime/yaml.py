"""The one reader of YAML, for experiment files, `--set` and genotypes: YAML 1.2, and nothing read in silence as 1.1.

PyYAML reads YAML 1.1, where `no` is false, `010` eight, `1:30` ninety and `2026-11-27` a date. Here scalars are those
of YAML 1.2's core schema; keys are text and given once; every fault is one line that has its number.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any, ClassVar, NoReturn

import yaml

from gaeanet.errors import RequestError, reason
from gaeanet.runtime.names import shown

MOST_NODES = 100_000
"""Scalars, lists and mappings of a document, aliases written out: a thousand times the largest experiment."""
DEEPEST = 60
"""Lists and mappings within each other."""

_TAG = "tag:yaml.org,2002:"
_SCALARS = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("merge", r"<<", "<"),
)
"""Kinds of plain scalars, what they look like and begin with; all others are text."""


class Loader(yaml.SafeLoader):
    """YAML 1.2's scalars; refuses keys that are no text or given twice, depth, and aliases that multiply."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]
    yaml_constructors: ClassVar[dict[str | None, Any]] = {}
    _depth = 0

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            self._expanded(node, {})
        return node

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > DEEPEST:
            _refuse(f"lists or blocks nested more than {DEEPEST} deep", self.peek_event())  # type: ignore[no-untyped-call]
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def _expanded(self, node: yaml.Node, sizes: dict[int, int]) -> int:
        """Nodes in and below `node` with all aliases written out."""
        if isinstance(node, yaml.ScalarNode):
            return 1
        if id(node) not in sizes:
            sizes[id(node)] = 0
            inner = [x for pair in node.value for x in pair] if isinstance(node, yaml.MappingNode) else node.value
            sizes[id(node)] = 1 + sum(self._expanded(x, sizes) for x in inner)
        elif sizes[id(node)] == 0:
            _refuse("an alias within what it stands for", node)
        if sizes[id(node)] > MOST_NODES:
            _refuse(f"more than {MOST_NODES:,} values, aliases written out", node)
        return sizes[id(node)]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.tag == f"{_TAG}merge":
                continue
            if key_node.tag != f"{_TAG}str" or not isinstance(key_node, yaml.ScalarNode):
                given = f" {key_node.value!r}" if isinstance(key_node, yaml.ScalarNode) else ""
                _refuse(f"key{given} is no text: put it in quotes, if it is meant", key_node)
            if key_node.value in seen:
                _refuse(f"key {key_node.value!r} is given twice", key_node)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def integer(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node))
        if re.fullmatch(r"[-+]?0[0-9]+", text):
            octal = f" or 0o{text.lstrip('+-0') or '0'}" if re.fullmatch(r"[-+]?[0-7]+", text) else ""
            plain = text.lstrip("+-0") or "0"
            _refuse(f"{text} has a zero before it, which some read as octal: write {plain}{octal}, or quotes", node)
        try:
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        except ValueError:
            _refuse(f"{text[:40]} is no whole number", node)

    def number(self, node: yaml.ScalarNode) -> float:
        text = str(self.construct_scalar(node)).lower()
        try:
            return float(re.sub(r"\.(?=inf|nan)", "", text))
        except ValueError:
            _refuse(f"{text[:40]} is no number", node)

    def truth(self, node: yaml.ScalarNode) -> bool:
        text = str(self.construct_scalar(node)).lower()
        if text not in ("true", "false"):
            _refuse(f"{text[:40]} is neither true nor false", node)
        return text == "true"

    def unknown(self, node: yaml.Node) -> None:
        _refuse(f"the tag {str(node.tag).replace(_TAG, '!!')} is not read", node)


def _refuse(what: str, node: Any) -> NoReturn:
    raise yaml.constructor.ConstructorError(None, None, shown(what), node.start_mark)


class _Dumper(yaml.SafeDumper):
    """Puts into quotes what YAML 1.1 or 1.2 would take for anything but text, so that both read the same."""


for _kind, _pattern, _first in _SCALARS:
    for _class in (Loader, _Dumper):
        _class.add_implicit_resolver(
            f"{_TAG}{_kind}", re.compile(f"(?:{_pattern})\\Z"), [c.replace("\0", "") for c in _first]
        )
for _kind, _construct in {
    "null": Loader.construct_yaml_null,
    "bool": Loader.truth,
    "int": Loader.integer,
    "float": Loader.number,
    "str": Loader.construct_yaml_str,
    "seq": Loader.construct_yaml_seq,
    "map": Loader.construct_yaml_map,
}.items():
    Loader.add_constructor(f"{_TAG}{_kind}", _construct)
Loader.add_constructor(None, Loader.unknown)


def parse(text: str, origin: str) -> Any:
    """The value of a YAML text; `origin` is what messages call it. Raises `RequestError` where it is not valid YAML."""
    try:
        return yaml.load(text, Loader=Loader)  # noqa: S506 (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RequestError(f"{origin}{line}: not valid YAML: {shown(str(error.problem))}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise RequestError(f"{origin}: not valid YAML: {shown(reason(error))}") from None
    except RecursionError:
        raise RequestError(f"{origin}: not valid YAML: nested too deep") from None


def dump(tree: Any, *, width: int = 120) -> str:
    """A tree of plain values as YAML, lists of scalars on one line; `parse` gives the same tree."""
    return str(yaml.dump(tree, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=width))
