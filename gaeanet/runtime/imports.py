"""Fast start-up: imports of PyTorch and its dependents with the garbage collector paused."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gaeanet.errors import RequestError


@contextmanager
def uncollected() -> Iterator[None]:
    """Pauses the garbage collector, for imports and for commands that end soon anyway."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@contextmanager
def importing(*, torch: bool = False) -> Iterator[None]:
    """Pauses the garbage collector around large imports: collection takes a third of their time and frees nothing.

    Args:
        torch: Imports PyTorch first and excludes its 300,000 objects, which live to the end, from later collections
            (`gc.freeze`). Only PyTorch's: Triton's, which come with torchvision and timm, must be freed at exit, or
            its binding reports each as leaked on standard error.
    """
    with uncollected():
        if torch and "torch" not in sys.modules:
            importlib.import_module("torch")
            if "triton" not in sys.modules:
                gc.freeze()
        yield


def needed(module: str, extra: str) -> Any:
    """A module of an optional dependency.

    Raises:
        RequestError: It is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.split(".")[0]
        raise RequestError(f"{package} is not installed: pip install 'gaeanet[{extra}]'") from None
