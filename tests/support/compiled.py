"""Compiles what launches Triton kernels, for a GPU that need not be there, and reads what the machine code needs."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class Compiled(NamedTuple):
    """A kernel's needs: registers of a thread, bytes of stack (not zero where registers spill) and of shared memory."""

    name: str
    registers: int
    stack: int
    shared: int
    constants: dict[str, Any]


class _Driver:
    """What Triton asks of a driver before it compiles. Triton keeps kernels by device, so each target is its own."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextmanager
def _compiling(capability: int, record: Callable[[Any, dict[str, Any]], None]) -> Iterator[None]:
    """Launches compile for this capability and run nothing."""
    usual, driver = JITFunction.__getitem__, triton.runtime.driver._active

    def getitem(self: Any, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **constants: Any) -> None:
            record(self.warmup(*args, grid=(1,), **constants), constants)

        return launch

    JITFunction.__getitem__ = getitem
    triton.runtime.driver.set_active(_Driver(capability))
    try:
        yield
    finally:
        triton.runtime.driver._active = driver  # reset_active() wants a GPU
        JITFunction.__getitem__ = usual


def compiled(launch: Callable[[], Any], capability: int, folder: Path) -> list[Compiled]:
    """Each kernel that `launch` launches on CPU tensors, once for each variant; none of them runs.

    Args:
        capability: Of the GPU, as 80 or 90.
        folder: For machine code, while it is read.
    """
    kernels: dict[str, tuple[Any, dict[str, Any]]] = {}
    with _compiling(capability, lambda kernel, constants: kernels.setdefault(kernel.hash, (kernel, constants))):
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
