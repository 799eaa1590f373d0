"""What depends on the device: precision, and seeding its random generator."""

from __future__ import annotations

import torch

from gaeanet.errors import RequestError, counted

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def precision_for(requested: str, device: torch.device) -> str:
    """`fp32`, `bf16` or `fp16` for a request that may be `auto`.

    `auto` is bf16 on GPUs that have it and fp16 on older ones; fp32 elsewhere, since PyTorch's depthwise convolutions
    are slower in bf16 than in fp32 on CPUs.

    Raises:
        RequestError: fp16 on a CPU, or bf16 on a GPU without it.
    """
    if device.type != "cuda":
        if requested == "fp16":
            raise RequestError(
                f"hyperparameters.precision: fp16 needs a GPU, this runs on {device.type}: use fp32 or auto"
            )
        return "fp32" if requested == "auto" else requested
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if requested == "bf16" and not has_bf16:
        raise RequestError("hyperparameters.precision: this GPU has no bf16: use fp16 or auto")
    return ("bf16" if has_bf16 else "fp16") if requested == "auto" else requested


def check_sync_batch_norm(device: torch.device) -> None:
    """Raises `RequestError` where PyTorch has no synchronised batch norm."""
    if device.type != "cuda":
        raise RequestError(
            f"hyperparameters.sync_batch_norm: PyTorch has it on GPUs only, this runs on {device.type}: set it to false"
        )


def seed_draws(seed: int, device: torch.device) -> None:
    """Seeds what the network draws on this device; `torch.manual_seed` would take the time to seed every device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def describe(device: torch.device) -> str:
    """The device's name, as text."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    if device.type != "cpu":
        return device.type.upper()
    return f"CPU, {counted(torch.get_num_threads(), 'thread')}"
