"""What a cell is, as data: reading, checking and printing genotypes, and the zoo of published cells.

A network of the DARTS family repeats two cells, a normal one and a reduction one. A cell is a small graph. Its states
0 and 1 are the outputs of the two cells before it; every further state (a *node*) is the sum of two operations, each
applied to an earlier state. So a cell is a list of edges `(operation, input state)`, two for each node in order, and
`concat`, the states that are concatenated to form its output. Node k (from 0) is state k + 2 and owns edges 2k and
2k + 1.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from gaeanet.errors import RequestError, did_you_mean, reason

OPERATIONS = (
    "skip_connect",
    "max_pool_3x3",
    "avg_pool_3x3",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "sep_conv_7x7",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "conv_7x1_1x7",
)
"""Names of the operations an edge may carry, as the DARTS family spells them."""

_FIELDS = ("normal", "normal_concat", "reduce", "reduce_concat")


class Edge(NamedTuple):
    """One edge of a cell: `operation` applied to the state number `input`."""

    operation: str
    input: int


@dataclass(frozen=True)
class Genotype:
    """A normal and a reduction cell.

    Attributes:
        normal, reduce: Edges of the two cells, two for each node, in order.
        normal_concat, reduce_concat: States whose concatenation is the cell's output.

    Raises:
        RequestError: A cell is malformed; the message names the edge or state.
    """

    normal: tuple[Edge, ...]
    normal_concat: tuple[int, ...]
    reduce: tuple[Edge, ...]
    reduce_concat: tuple[int, ...]

    def __post_init__(self) -> None:
        for cell in ("normal", "reduce"):
            edges = _checked_edges(cell, getattr(self, cell))
            object.__setattr__(self, cell, edges)
            concat = _checked_concat(f"{cell}_concat", getattr(self, f"{cell}_concat"), len(edges) // 2)
            object.__setattr__(self, f"{cell}_concat", concat)

    def to_dict(self) -> dict[str, Any]:
        """The genotype in plain lists, as it is written to JSON and YAML and as timm keeps it."""
        return {
            "normal": [list(edge) for edge in self.normal],
            "normal_concat": list(self.normal_concat),
            "reduce": [list(edge) for edge in self.reduce],
            "reduce_concat": list(self.reduce_concat),
        }

    def to_json(self) -> str:
        """One JSON object, an edge a pair `[operation, input]`."""
        return json.dumps(self.to_dict())

    def to_yaml(self) -> str:
        """The same object as YAML, a field a line."""
        return yaml.safe_dump(self.to_dict(), default_flow_style=None, sort_keys=False, width=1000)

    def to_text(self) -> str:
        """The spelling of the DARTS repositories, `Genotype(normal=[('sep_conv_3x3', 1), ...], ...)`."""
        cells = []
        for cell in ("normal", "reduce"):
            edges = [tuple(edge) for edge in getattr(self, cell)]
            cells += [f"{cell}={edges!r}", f"{cell}_concat={list(getattr(self, f'{cell}_concat'))!r}"]
        return f"Genotype({', '.join(cells)})"

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that tell this genotype from any other, whatever it is called."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]


def _checked_edges(cell: str, edges: Any) -> tuple[Edge, ...]:
    if isinstance(edges, str) or not hasattr(edges, "__iter__"):
        raise RequestError(f"genotype: {cell} must be a list of [operation, input] pairs, not {edges!r}")
    checked: list[Edge] = []
    for number, edge in enumerate(edges):
        where = f"genotype: {cell} edge {number}"
        if isinstance(edge, str) or not hasattr(edge, "__len__") or len(edge) != 2:
            raise RequestError(f"{where}: expected a pair [operation, input], got {edge!r}")
        operation, source = edge
        if operation not in OPERATIONS:
            hint = did_you_mean(str(operation), OPERATIONS)
            raise RequestError(f"{where}: unknown operation {operation!r}; {hint}")
        node = number // 2 + 2
        if isinstance(source, bool) or not isinstance(source, int) or not 0 <= source < node:
            raise RequestError(
                f"{where} enters state {node}: its input must be a state from 0 to {node - 1}, got {source!r}"
            )
        checked.append(Edge(operation, source))
    if not checked or len(checked) % 2:
        raise RequestError(f"genotype: {cell} has {len(checked)} edges; every node needs exactly two")
    return tuple(checked)


def _checked_concat(name: str, concat: Any, nodes: int) -> tuple[int, ...]:
    if isinstance(concat, str) or not hasattr(concat, "__iter__"):
        raise RequestError(f"genotype: {name} must be a list of states, not {concat!r}")
    states = tuple(concat)
    for state in states:
        if isinstance(state, bool) or not isinstance(state, int) or not 2 <= state < nodes + 2:
            raise RequestError(f"genotype: {name} may hold the nodes 2 to {nodes + 1}, got {state!r}")
    if not states or len(set(states)) != len(states):
        raise RequestError(f"genotype: {name} must name at least one node and none twice, got {list(states)}")
    return states


def from_dict(fields: Any, origin: str = "genotype") -> Genotype:
    """A genotype from the mapping that `Genotype.to_dict` gives; further keys (name, source, lineage) are left alone.

    Raises:
        RequestError: `fields` is not such a mapping, or the cell is malformed.
    """
    if not isinstance(fields, dict):
        raise RequestError(f"{origin}: expected a mapping with {', '.join(_FIELDS)}, got {type(fields).__name__}")
    missing = [name for name in _FIELDS if name not in fields]
    if missing:
        raise RequestError(f"{origin}: no {' and no '.join(missing)}; a genotype has {', '.join(_FIELDS)}")
    try:
        return Genotype(**{name: fields[name] for name in _FIELDS})
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
        raise RequestError(f"genotype: no Genotype(...) in {_shortened(text)!r}")
    try:
        call = ast.parse(_balanced(text[start.start() :]), mode="eval").body
    except (SyntaxError, ValueError):
        raise RequestError(f"genotype: cannot parse {_shortened(text[start.start() :])!r}") from None
    assert isinstance(call, ast.Call)
    fields = dict(zip(_FIELDS, map(_literal, call.args)))
    for keyword in call.keywords:
        if keyword.arg not in _FIELDS:
            raise RequestError(f"genotype: unknown field {keyword.arg!r}; {did_you_mean(str(keyword.arg), _FIELDS)}")
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
        raise RequestError(f"genotype: {_shortened(ast.unparse(node))!r} is not a plain list, number or name") from None


def _shortened(text: str, limit: int = 80) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


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
    path = Path(reference).expanduser()
    try:
        if not path.is_file():
            raise RequestError(
                f"genotype {_shortened(reference)!r}: neither a file nor a known cell; {did_you_mean(reference, ZOO)}"
            )
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RequestError(f"genotype {_shortened(reference)!r}: cannot be read: {reason(error)}") from None
    if re.search(r"Genotype\s*\(", text):
        return from_text(text)
    try:
        fields = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        raise RequestError(f"{path}: neither JSON nor YAML nor a Genotype(...) text") from None
    return from_dict(fields, origin=str(path))


@dataclass(frozen=True)
class PublishedCell:
    """A cell as its authors published it.

    Attributes:
        genotype: The cell.
        source: Where it was found and published.
        errors: Published test errors in percent, keyed `imagenet_top1`, `imagenet_top5`, `cifar10`.
    """

    genotype: Genotype
    source: str
    errors: dict[str, float] = field(default_factory=dict)


def _cell(edges: str, concat: tuple[int, ...]) -> tuple[tuple[Edge, ...], tuple[int, ...]]:
    """Reads the zoo's notation: `operation input operation input | ...`, a node between bars."""
    words = edges.replace("|", " ").split()
    return tuple(Edge(operation, int(source)) for operation, source in zip(words[::2], words[1::2])), concat


def _genotype(
    normal: str,
    reduce: str,
    normal_concat: tuple[int, ...] = (2, 3, 4, 5),
    reduce_concat: tuple[int, ...] = (2, 3, 4, 5),
) -> Genotype:
    return Genotype(*_cell(normal, normal_concat), *_cell(reduce, reduce_concat))


ZOO: dict[str, PublishedCell] = {
    "gaea-imagenet": PublishedCell(
        _genotype(
            "skip_connect 1 skip_connect 0 | sep_conv_3x3 2 sep_conv_3x3 1"
            " | sep_conv_5x5 2 sep_conv_3x3 0 | sep_conv_5x5 3 sep_conv_5x5 2",
            "max_pool_3x3 1 sep_conv_3x3 0 | sep_conv_5x5 1 dil_conv_5x5 2"
            " | sep_conv_3x3 1 sep_conv_3x3 3 | sep_conv_5x5 1 max_pool_3x3 2",
        ),
        "GAEA PC-DARTS searched on ImageNet; Li et al. 2020, arXiv 2004.07802",
        {"imagenet_top1": 24.0, "imagenet_top5": 7.3},
    ),
    "gaea-cifar10-a": PublishedCell(
        _genotype(
            "sep_conv_3x3 1 skip_connect 0 | sep_conv_3x3 1 skip_connect 2"
            " | sep_conv_3x3 1 sep_conv_3x3 2 | sep_conv_3x3 0 dil_conv_3x3 4",
            "max_pool_3x3 0 max_pool_3x3 1 | sep_conv_5x5 0 sep_conv_5x5 2"
            " | dil_conv_3x3 3 sep_conv_5x5 2 | sep_conv_5x5 4 sep_conv_3x3 1",
        ),
        "GAEA PC-DARTS searched on CIFAR-10 (one of two cells in Determined's GAEA example); arXiv 2004.07802",
    ),
    "gaea-cifar10-b": PublishedCell(
        _genotype(
            "sep_conv_3x3 1 skip_connect 0 | sep_conv_3x3 0 sep_conv_3x3 2"
            " | sep_conv_3x3 2 sep_conv_5x5 1 | sep_conv_3x3 1 sep_conv_5x5 0",
            "max_pool_3x3 0 sep_conv_5x5 1 | dil_conv_5x5 2 max_pool_3x3 0"
            " | sep_conv_3x3 2 skip_connect 0 | dil_conv_3x3 4 max_pool_3x3 0",
        ),
        "GAEA PC-DARTS searched on CIFAR-10 (the other one); arXiv 2004.07802",
    ),
    "pc-darts-imagenet": PublishedCell(
        _genotype(
            "skip_connect 1 sep_conv_3x3 0 | sep_conv_3x3 0 skip_connect 1"
            " | sep_conv_3x3 1 sep_conv_3x3 3 | sep_conv_3x3 1 dil_conv_5x5 4",
            "sep_conv_3x3 0 skip_connect 1 | dil_conv_5x5 2 max_pool_3x3 1"
            " | sep_conv_3x3 2 sep_conv_3x3 1 | sep_conv_5x5 0 sep_conv_3x3 3",
        ),
        "PC-DARTS searched on ImageNet; Xu et al. 2020, arXiv 1907.05737",
        {"imagenet_top1": 24.2, "imagenet_top5": 7.3},
    ),
    "pc-darts-cifar10": PublishedCell(
        _genotype(
            "sep_conv_3x3 1 skip_connect 0 | sep_conv_3x3 0 dil_conv_3x3 1"
            " | sep_conv_5x5 0 sep_conv_3x3 1 | avg_pool_3x3 0 dil_conv_3x3 1",
            "sep_conv_5x5 1 max_pool_3x3 0 | sep_conv_5x5 1 sep_conv_5x5 2"
            " | sep_conv_3x3 0 sep_conv_3x3 3 | sep_conv_3x3 1 sep_conv_3x3 2",
        ),
        "PC-DARTS searched on CIFAR-10; Xu et al. 2020, arXiv 1907.05737",
        {"cifar10": 2.57, "imagenet_top1": 25.1, "imagenet_top5": 7.8},
    ),
    "p-darts-cifar10": PublishedCell(
        _genotype(
            "skip_connect 0 dil_conv_3x3 1 | skip_connect 0 sep_conv_3x3 1"
            " | sep_conv_3x3 1 sep_conv_3x3 3 | sep_conv_3x3 0 dil_conv_5x5 4",
            "avg_pool_3x3 0 sep_conv_5x5 1 | sep_conv_3x3 0 dil_conv_5x5 2"
            " | max_pool_3x3 0 dil_conv_3x3 1 | dil_conv_3x3 1 dil_conv_5x5 3",
        ),
        "P-DARTS searched on CIFAR-10; Chen et al. 2019, arXiv 1904.12760",
        {"cifar10": 2.5, "imagenet_top1": 24.4, "imagenet_top5": 7.4},
    ),
    "darts-v2": PublishedCell(
        _genotype(
            "sep_conv_3x3 0 sep_conv_3x3 1 | sep_conv_3x3 0 sep_conv_3x3 1"
            " | sep_conv_3x3 1 skip_connect 0 | skip_connect 0 dil_conv_3x3 2",
            "max_pool_3x3 0 max_pool_3x3 1 | skip_connect 2 max_pool_3x3 1"
            " | max_pool_3x3 0 skip_connect 2 | skip_connect 2 max_pool_3x3 1",
        ),
        "DARTS second order; Liu et al. 2019, arXiv 1806.09055",
        {"cifar10": 2.76, "imagenet_top1": 26.7, "imagenet_top5": 8.7},
    ),
    "darts-v1": PublishedCell(
        _genotype(
            "sep_conv_3x3 1 sep_conv_3x3 0 | skip_connect 0 sep_conv_3x3 1"
            " | skip_connect 0 sep_conv_3x3 1 | sep_conv_3x3 0 skip_connect 2",
            "max_pool_3x3 0 max_pool_3x3 1 | skip_connect 2 max_pool_3x3 0"
            " | max_pool_3x3 0 skip_connect 2 | skip_connect 2 avg_pool_3x3 0",
        ),
        "DARTS first order; Liu et al. 2019, arXiv 1806.09055",
        {"cifar10": 3.0},
    ),
    "nasnet-a": PublishedCell(
        _genotype(
            "sep_conv_5x5 1 sep_conv_3x3 0 | sep_conv_5x5 0 sep_conv_3x3 0 | avg_pool_3x3 1 skip_connect 0"
            " | avg_pool_3x3 0 avg_pool_3x3 0 | sep_conv_3x3 1 skip_connect 1",
            "sep_conv_5x5 1 sep_conv_7x7 0 | max_pool_3x3 1 sep_conv_7x7 0 | avg_pool_3x3 1 sep_conv_5x5 0"
            " | skip_connect 3 avg_pool_3x3 2 | sep_conv_3x3 2 max_pool_3x3 1",
            normal_concat=(2, 3, 4, 5, 6),
            reduce_concat=(4, 5, 6),
        ),
        "NASNet-A as written in the DARTS code; Zoph et al. 2018, arXiv 1707.07012",
        {"imagenet_top1": 26.0, "imagenet_top5": 8.4},
    ),
    "amoebanet-a": PublishedCell(
        _genotype(
            "avg_pool_3x3 0 max_pool_3x3 1 | sep_conv_3x3 0 sep_conv_5x5 2 | sep_conv_3x3 0 avg_pool_3x3 3"
            " | sep_conv_3x3 1 skip_connect 1 | skip_connect 0 avg_pool_3x3 1",
            "avg_pool_3x3 0 sep_conv_3x3 1 | max_pool_3x3 0 sep_conv_7x7 2 | sep_conv_7x7 0 avg_pool_3x3 1"
            " | max_pool_3x3 0 max_pool_3x3 1 | conv_7x1_1x7 0 sep_conv_3x3 5",
            normal_concat=(4, 5, 6),
            reduce_concat=(3, 4, 6),
        ),
        "AmoebaNet-A as written in the DARTS code; Real et al. 2019, arXiv 1802.01548",
        {"imagenet_top1": 25.5, "imagenet_top5": 8.0},
    ),
}
"""Published cells by name, with their source and, where known, their published test errors."""
