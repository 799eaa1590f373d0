"""A quick start: imports of PyTorch and what is built on it without looking for garbage meanwhile."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager


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
    """Around imports of what is large: a third of their time is looking for garbage, and there is none.

    Args:
        torch: Imports PyTorch first and sets its 300,000 objects, which stay to the end, apart from what is looked
            through later (`gc.freeze`). PyTorch's alone: Triton's must be freed when Python ends, or its binding
            complains of each on standard error, and Triton comes with torchvision and timm.
    """
    with uncollected():
        if torch and "torch" not in sys.modules:
            importlib.import_module("torch")
            if "triton" not in sys.modules:
                gc.freeze()
        yield
