"""Copies batches to a GPU beside its work."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; to a GPU it travels on a stream of its own, while the step before it runs.

    The current stream waits for it. Only pinned memory travels beside the host's work.
    """
    if device.type != "cuda" or tensor.device == device:
        return tensor.to(device, non_blocking=True)
    current, copies = torch.cuda.current_stream(device), _copies(device)
    with torch.cuda.stream(copies):
        copy = tensor.to(device, non_blocking=True)
    current.wait_stream(copies)
    copy.record_stream(current)  # its memory is not given away while the current stream reads it
    return copy


@functools.cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
