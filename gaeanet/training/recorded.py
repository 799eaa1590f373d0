"""CUDA graphs: a network's forward and backward pass on one shape of images, captured once and replayed each step."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from gaeanet.config.experiment import Hyperparameters
from gaeanet.errors import RequestError
from gaeanet.runtime.processes import Processes


def check_capturable(hp: Hyperparameters, processes: Processes) -> None:
    """Raises `RequestError` where a run's steps cannot be replayed: all must have one shape and run on one GPU."""
    first, last = hp.training_sizes
    reason = None
    if processes.device.type != "cuda":
        reason = f"is for GPUs, this runs on {processes.device.type}"
    elif processes.world_size > 1:
        reason = f"is for one process, these are {processes.world_size}"
    elif hp.parts(hp.global_batch_size) > 1:
        reason = f"needs one micro-batch a step, max_batch_per_slot is {hp.max_batch_per_slot}"
    elif first != last:
        reason = f"is for images of one size, these grow from {first} to {last}"
    if reason:
        raise RequestError(f"hyperparameters.compile: graphs {reason}: use auto or false")


class Graphed(nn.Module):
    """A network in training that replays a CUDA graph for images (batch, 3, size, size), and runs eagerly for others.

    PyTorch launches a network of cells as thousands of kernels of some microseconds each; with batches of dozens of
    images a fast GPU waits for the next launch most of the time. A CUDA graph launches all of them at once. Drop-path's
    rate, weights and batch-norm statistics are read and written where they are, and random draws follow the generator,
    so that a step does what it would do without; only its outputs are written over by the next one.

    Args:
        network: On its GPU, each of its modules in the mode (training or evaluation) that it is to train in.
        batch, size: Images in a batch, and their side in pixels.
        dtype: What it computes in.
    """

    def __init__(self, network: nn.Module, batch: int, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self._network = network
        device = next(network.parameters()).device
        sample = torch.zeros(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
        self._shape = sample.shape
        statistics = [(buffer, buffer.clone()) for buffer in network.buffers()]
        precision = torch.autocast(device.type, dtype, enabled=dtype is not torch.float32, cache_enabled=False)
        draws = torch.random.fork_rng([device] if device.type == "cuda" else [])
        with precision, draws, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of another stream and its first use: capture is both
            self._replayed = torch.cuda.make_graphed_callables(_Passes(network), (sample,), allow_unused_input=True)
        for buffer, before in statistics:  # capture runs the network some times
            buffer.copy_(before)

    def forward(self, images: Tensor) -> Any:
        return self._replayed(images) if images.shape == self._shape else self._network(images)


class _Passes(nn.Module):
    """A wrapper whose `forward` capture may replace, so that the network's stays as it is."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        return self.network(images)
