"""Compiles kernels ahead of their first launch, without a GPU, so that several processes can divide the work.

A network has some hundred variants of the kernels, and Triton takes a second or more for each. Here a launch compiles
its kernel into Triton's cache and runs nothing: tensors are on the CPU, and what is computed with them is meaningless.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from gaeanet.kernels.gpu import availability


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
def compiling(
    capability: int,
    note: Callable[[Any, dict[str, Any]], None] = lambda kernel, constants: None,
    *,
    shard: int = 0,
    of: int = 1,
) -> Iterator[None]:
    """Launches compile and run nothing; bf16 maps on the CPU count as a GPU's.

    Args:
        capability: Of the GPU to compile for, as 80 or 90.
        note: Is called with each compiled kernel and its constants.
        shard: Of the variants, which are divided evenly among `of` processes, those of this process are compiled.
    """
    usual, drivers = JITFunction.__getitem__, triton.runtime.driver
    before = dict(vars(drivers))  # the attribute that holds the active one differs between Triton's releases

    def getitem(self: Any, grid: Any) -> Callable[..., None]:
        def launch(*arguments: Any, **constants: Any) -> None:
            if _number(self, arguments, constants) % of == shard:
                note(self.warmup(*arguments, grid=(1,), **constants), constants)

        return launch

    JITFunction.__getitem__ = getitem
    drivers.set_active(_Driver(capability))
    availability.ahead = True
    try:
        yield
    finally:
        availability.ahead = False
        vars(drivers).update(before)  # reset_active() wants a GPU
        JITFunction.__getitem__ = usual


def _number(kernel: Any, arguments: tuple[Any, ...], constants: dict[str, Any]) -> int:
    """The same for all launches of a variant, in every process."""
    types = [argument.dtype if isinstance(argument, torch.Tensor) else type(argument) for argument in arguments]
    text = repr((kernel.__name__, types, sorted((name, repr(value)) for name, value in constants.items())))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
