"""The house: arrows between packages and files run downward only, and what refuses a request imports no torch."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "gaeanet"

FLOORS = (
    {"cli"},
    {"bench", "search"},
    {"training"},
    {"report"},
    {"runs", "evaluation"},
    {"artifacts", "optim"},
    {"models", "data"},
    {"config"},
    {"cells"},
    {"runtime"},
    {"kernels", "errors"},
)
"""Packages from the top down: each may import what is below its floor, and nothing beside it."""

DATA_FLOORS = ({"prepare", "loading"}, {"images", "sources"}, {"storage"})

FREE_OF_TORCH = (
    "errors",
    "cells",
    "config",
    "data.sources",
    "data.storage",
    "runtime.imports",
    "runtime.names",
    "runtime.yaml",
)
FREE_OF_TORCH += (
    "runtime.host",
    "runtime.ranks",
    "runtime.slurm",
    "runtime.load",
    "runtime.files",
    "runtime.yaml",
    "artifacts.directory",
    "artifacts.checkpoint",
    "artifacts.find",
    "artifacts.start",
)
FREE_OF_TORCH += ("artifacts.lineage", "artifacts.metadata", "runs.mirror", "runs.trackers", "cli", "report.describe")

ONLY_IN = {
    "determined": ("runs.determined",),
    "obstore": ("data.storage",),
    "matplotlib": ("report",),
    "jinja2": ("report",),
    "triton": ("kernels.gpu",),
}

FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(ROOT.rglob("*.py"))}
FILES = {name.removesuffix(".__init__"): path for name, path in FILES.items() if name != "__init__"}


@functools.cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text())


@functools.cache
def imported(name: str) -> list[tuple[str, ast.stmt]]:
    return list(_imported(tree_of(name)))


def _imported(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """Every module that is imported, wherever: `a.b` for `from a.b import c` and, where that is a module, `a.b.c`."""
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}".removeprefix("gaeanet.")
                yield (f"gaeanet.{inner}" if inner in FILES else node.module), node


def arrows() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name in FILES:
        modules = (module for module, _ in imported(name))
        inner = (module.removeprefix("gaeanet.") for module in modules if module.startswith("gaeanet."))
        found[name] = {module for module in inner if module != name}
    return found


def floor_of(part: str, floors: tuple[set[str], ...]) -> int:
    return next(number for number, floor in enumerate(floors) if part in floor)


def test_arrows_run_downward_between_packages() -> None:
    wrong = []
    for name, targets in arrows().items():
        for target in targets:
            here, there = name.split("."), target.split(".")
            if here[0] != there[0] and floor_of(here[0], FLOORS) >= floor_of(there[0], FLOORS):
                wrong.append(f"{name} -> {target}")
            if here[0] == there[0] == "data" and min(len(here), len(there)) > 2 and here[1] != there[1]:
                if floor_of(here[1], DATA_FLOORS) >= floor_of(there[1], DATA_FLOORS):
                    wrong.append(f"{name} -> {target}")
    assert not wrong


def test_no_circle_of_files() -> None:
    graph, done, trail = arrows(), set[str](), list[str]()

    def visit(name: str) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name in done:
            return
        trail.append(name)
        for target in sorted(graph.get(name, ())):
            visit(target)
        trail.pop()
        done.add(name)

    for name in graph:
        visit(name)


def test_names_are_imported_from_where_they_are_defined() -> None:
    wrong = []
    for name in FILES:
        for node in ast.walk(tree_of(name)):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("gaeanet."):
                continue
            origin = str(node.module).removeprefix("gaeanet.")
            assert origin in FILES, (name, origin)
            body = tree_of(origin).body
            passed_on = {
                alias.asname or alias.name for part in body if isinstance(part, ast.ImportFrom) for alias in part.names
            }
            wrong += [f"{name}: {alias.name} from {origin}" for alias in node.names if alias.name in passed_on]
    assert not wrong


@pytest.mark.parametrize("part", FREE_OF_TORCH)
def test_what_refuses_a_request_imports_no_torch(part: str) -> None:
    heavy = ("torch", "torchvision", "timm")
    for name in FILES:
        if name == part or name.startswith(f"{part}."):
            top = set(tree_of(name).body)
            for module, node in imported(name):
                assert node not in top or module.split(".")[0] not in heavy, (name, module)


def test_only_one_package_imports_each_of_these_and_lazily() -> None:
    for name in FILES:
        for module, _ in imported(name):
            homes = ONLY_IN.get(module.split(".")[0])
            assert homes is None or any(f"{name}.".startswith(f"{home}.") for home in homes), (name, module)


def test_nothing_else_stands_in_the_hall() -> None:
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "errors.py"}


def test_no_file_is_longer_than_it_should_be() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in FILES.items()}
    assert {name: length for name, length in lengths.items() if length > 420} == {}
