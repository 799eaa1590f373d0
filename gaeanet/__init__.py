"""gaeanet: train the ImageNet network found by GAEA (Li et al. 2020, arXiv 2004.07802) and its relatives.

The names in `__all__` are what scripts use (docs/python.md). Each is imported when it is first asked for, and
PyTorch not before something needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gaeanet.artifacts.find import Trained as Trained
    from gaeanet.artifacts.find import find as find
    from gaeanet.cells.genotype import Genotype as Genotype
    from gaeanet.cells.read import read_genotype as read_genotype
    from gaeanet.cli.script import evaluate as evaluate
    from gaeanet.cli.script import export as export
    from gaeanet.cli.script import predict as predict
    from gaeanet.cli.script import search_cell as search_cell
    from gaeanet.cli.script import train as train
    from gaeanet.config.experiment import Experiment as Experiment
    from gaeanet.config.experiment import load_experiment as load_experiment
    from gaeanet.errors import GaeanetError as GaeanetError
    from gaeanet.errors import RequestError as RequestError
    from gaeanet.errors import RunError as RunError
    from gaeanet.errors import Stopped as Stopped
    from gaeanet.models.network import CellNetwork as CellNetwork
    from gaeanet.models.registry import register_networks as register_networks

__version__ = "0.1.0"

__all__ = [
    "CellNetwork",
    "Experiment",
    "GaeanetError",
    "Genotype",
    "RequestError",
    "RunError",
    "Stopped",
    "Trained",
    "__version__",
    "evaluate",
    "export",
    "find",
    "load_experiment",
    "predict",
    "read_genotype",
    "register_networks",
    "search_cell",
    "train",
]

_HOMES = {
    "CellNetwork": "models.network",
    "Experiment": "config.experiment",
    "GaeanetError": "errors",
    "Genotype": "cells.genotype",
    "RequestError": "errors",
    "RunError": "errors",
    "Stopped": "errors",
    "Trained": "artifacts.find",
    "evaluate": "cli.script",
    "export": "cli.script",
    "find": "artifacts.find",
    "load_experiment": "config.experiment",
    "predict": "cli.script",
    "read_genotype": "cells.read",
    "register_networks": "models.registry",
    "search_cell": "cli.script",
    "train": "cli.script",
}
"""The module that defines each public name."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gaeanet' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"gaeanet.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
