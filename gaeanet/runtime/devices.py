"""What a device can do: which precision helps on it, whether compiling pays, and how its draws are seeded."""

from __future__ import annotations

import shutil

import torch
from torch import nn

from gaeanet.errors import RequestError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def precision_for(asked: str, device: torch.device) -> str:
    """`fp32`, `bf16` or `fp16` for a request that may be `auto`.

    `auto` is bf16 on GPUs that have it and fp16 on older ones; fp32 elsewhere, since PyTorch's depthwise convolutions
    are slower in bf16 than in fp32 on CPUs.

    Raises:
        RequestError: fp16 on a CPU, or bf16 on a GPU without it.
    """
    if device.type != "cuda":
        if asked == "fp16":
            raise RequestError(
                f"hyperparameters.precision: fp16 needs a GPU, this runs on {device.type}: use fp32 or auto"
            )
        return "fp32" if asked == "auto" else asked
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if asked == "bf16" and not has_bf16:
        raise RequestError("hyperparameters.precision: this GPU has no bf16: use fp16 or auto")
    return ("bf16" if has_bf16 else "fp16") if asked == "auto" else asked


def check_sync_batch_norm(device: torch.device) -> None:
    """Raises `RequestError` where PyTorch cannot synchronise batch norm."""
    if device.type != "cuda":
        raise RequestError(
            f"hyperparameters.sync_batch_norm: PyTorch has it on GPUs only, this runs on {device.type}: set it to false"
        )


def compile_for(asked: str | bool, network: nn.Module, device: torch.device) -> str:
    """Compiles `network` in place where that is asked for; returns a sentence on what was done.

    `auto` compiles on GPUs only: on CPUs compiling takes minutes and gains next to nothing.

    Raises:
        RequestError: `true` was asked for and there is no C++ compiler.
    """
    if asked is False or (asked == "auto" and device.type != "cuda"):
        return "not compiled"
    if asked == "graphs":
        return "replayed from a CUDA graph"
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        if asked is True:
            raise RequestError(
                "hyperparameters.compile: needs a C++ compiler (g++ or clang++), there is none: use auto or false"
            )
        return "not compiled (no C++ compiler)"
    network.compile()
    return "compiled (the first steps take minutes)"


def seed_draws(seed: int, device: torch.device) -> None:
    """Seeds what the network draws on this device; `torch.manual_seed` would take the time to seed every device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def describe(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"CPU, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type.upper()
