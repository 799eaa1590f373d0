"""Whether the GPU kernels can be used, asked without importing Triton."""

from __future__ import annotations

import functools
import os
from importlib.util import find_spec

import torch

ahead = False
"""Whether launches compile and run nothing (see `ahead.py`): then maps are on the CPU."""


def obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot be used for maps of this dtype on this device, briefly; None where they can.

    They are for bf16 on NVIDIA's GPUs from sm_80 on. In Triton's interpreter, which tests use, they take float32 on the
    CPU.
    """
    if not _installed():
        return "Triton is not installed"
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return None if dtype is torch.float32 else _name(dtype)
    if device.type == "cpu" and ahead:
        return None if dtype is torch.bfloat16 else _name(dtype)
    if device.type != "cuda" or torch.version.hip is not None:
        return "not on an NVIDIA GPU"
    if dtype is not torch.bfloat16:
        return _name(dtype)
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the GPU is older than sm_80"
    return None


@functools.cache
def _installed() -> bool:
    return find_spec("triton") is not None


def _name(dtype: torch.dtype) -> str:
    return {torch.float16: "fp16", torch.float32: "fp32"}.get(dtype, str(dtype).removeprefix("torch."))
