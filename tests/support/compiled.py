"""Compiles what launches Triton kernels, for a GPU that need not be there, and reads what the machine code needs."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import triton

from gaeanet.kernels.gpu.ahead import compiling

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class Compiled(NamedTuple):
    """A kernel's needs: registers of a thread, bytes of stack (not zero where registers spill) and of shared memory."""

    name: str
    registers: int
    stack: int
    shared: int
    constants: dict[str, Any]


def compiled(launch: Callable[[], Any], capability: int, folder: Path) -> list[Compiled]:
    """Each kernel that `launch` launches on CPU tensors, once for each variant; none of them runs.

    Args:
        capability: Of the GPU, as 80 or 90.
        folder: For machine code, while it is read.
    """
    kernels: dict[str, tuple[Any, dict[str, Any]]] = {}
    with compiling(capability, lambda kernel, constants: kernels.setdefault(kernel.hash, (kernel, constants))):
        launch()
    return [_needs(kernel, constants, folder / "kernel.cubin") for kernel, constants in kernels.values()]


def _needs(kernel: Any, constants: dict[str, Any], cubin: Path) -> Compiled:
    cubin.write_bytes(kernel.asm["cubin"])
    command = [str(CUOBJDUMP), "--dump-resource-usage", str(cubin)]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    needs = re.search(r"REG:(\d+) STACK:(\d+).*LOCAL:(\d+)", report)
    assert needs is not None, report
    registers, stack, local = map(int, needs.groups())
    return Compiled(kernel.metadata.name, registers, stack + local, kernel.metadata.shared, constants)
