"""A quick start."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Around imports that bring PyTorch and friends: a third of their time is looking for garbage, and there is none.

    What they make, a million objects, stays to the end. So it is set apart from what is looked through later too, and
    at the end of the process, where Python would look through everything once more.
    """
    known, collects = len(sys.modules), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > known:
            gc.freeze()
            atexit.unregister(gc.freeze)
            atexit.register(gc.freeze)
        if collects:
            gc.enable()
