"""Gives the real harness a container of its own: what it keeps in /run/determined lies where TASK_CONTAINER says.

Nothing else that it does is changed. So tests need no root, run side by side and leave nothing behind.
"""

from __future__ import annotations

import atexit
import gc
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from types import CodeType, ModuleType

CONTAINER = os.environ.get("TASK_CONTAINER", "")


class Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType | None:
        source = self.get_data(self.path)
        if b"/run/determined" not in source:
            return super().get_code(fullname)
        return compile(source.replace(b"/run/determined", CONTAINER.encode()), self.path, "exec")


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] != "determined":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec and spec.origin and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = Loader(spec.loader.name, spec.origin)
        return spec


if CONTAINER:
    # A trial is some ten processes; each would look for garbage among all that it imports, and at its end again.
    gc.set_threshold(100_000, 50, 100)
    atexit.register(gc.freeze)
    sys.meta_path.insert(0, Finder())
