"""Calls a kernel of the compiled library by its name."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from gaeanet.kernels.build import library

_POINTER, _LONG, _DOUBLE, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double, ctypes.c_int
_SIGNATURES: dict[str, list[Any]] = {
    "depthwise_forward": [_POINTER] * 6 + [_INT] * 2,
    "depthwise_backward": [_POINTER] * 8 + [_INT] * 2,
    "batch_norm_statistics": [_POINTER] * 9 + [_LONG] * 2 + [_DOUBLE] * 2 + [_INT],
    "scale_and_shift": [_POINTER] * 4 + [_LONG] * 2 + [_INT],
    "batch_norm_backward": [_POINTER] * 8 + [_LONG] * 3 + [_INT],
    "pointwise_forward": [_POINTER] * 11 + [_LONG] * 3 + [_DOUBLE] * 2 + [_INT] * 2,
    "pointwise_backward": [_POINTER] * 11 + [_LONG] * 4 + [_INT] * 2,
    "sums_over_pixels": [_POINTER] * 3 + [_LONG] * 3 + [_INT],
    "scale_and_shift_images": [_POINTER] * 4 + [_LONG] * 3 + [_INT],
    "colour_jitter": [_POINTER, _LONG, _POINTER] + [_DOUBLE] * 3 + [_INT] * 2,
    "count_levels": [_POINTER, _LONG, _POINTER, _INT],
    "map_levels": [_POINTER, _LONG, _POINTER, _INT],
    "jpeg_region": [_POINTER] + [_LONG] * 5 + [_POINTER, _INT],
    "jpeg_soundness": [_POINTER, _LONG, _INT],
}


@cache
def _kernel(name: str) -> Any:
    kernel = getattr(library(), name)
    kernel.argtypes = _SIGNATURES[name]
    return kernel


_NO_MEMORY = 1


def call(name: str, *arguments: Any) -> int:
    """Calls a kernel on tensors (by their address), bytes and numbers, with as many threads as PyTorch uses.

    Returns its answer, which is 0 unless a kernel documents another.
    """
    passed = [argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments]
    answer: int = _kernel(name)(*passed, torch.get_num_threads())
    if answer == _NO_MEMORY:
        raise MemoryError(f"no memory for {name}")
    return answer
