"""How a step is computed: launched kernel by kernel, compiled, or replayed from one CUDA graph.

`hyperparameters.compile: auto` takes the fastest way that this device, precision and network allow, and says which.
"""

from __future__ import annotations

import shutil
from typing import NamedTuple

import torch
from torch import nn

from gaeanet.config.experiment import Hyperparameters
from gaeanet.errors import RequestError
from gaeanet.models.fused import fuse
from gaeanet.models.network import CellNetwork
from gaeanet.runtime.processes import Processes
from gaeanet.training.proof import Doubts, doubts


class Way(NamedTuple):
    """How a learner computes its steps.

    Attributes:
        text: What was chosen and, where it is not the fastest, why; for messages.
        recorded: Whether steps are replayed from a CUDA graph.
    """

    text: str
    recorded: bool = False


NOT_COMPILED = Way("not compiled")


def choose(hp: Hyperparameters, network: nn.Module, precision: str, processes: Processes) -> Way:
    """The way that `hp.compile` asks for, and the network changed to take it, in place.

    Raises:
        RequestError: `graphs` or `true` was asked for and cannot be had here.
    """
    on_gpu = processes.device.type == "cuda"
    if hp.compile is True:
        return _compiled(network)
    if hp.compile is False or (hp.compile == "auto" and not on_gpu):
        return NOT_COMPILED
    why_not = recording_obstacle(hp, precision, processes)
    if hp.compile == "graphs":
        if why_not is not None:
            raise RequestError(f"hyperparameters.compile: graphs {why_not}: use auto or false")
        return Way("each step one CUDA graph", recorded=True)
    if not isinstance(network, CellNetwork):
        return NOT_COMPILED
    kernels, graph = _doubts(hp, precision, processes, why_not)
    if kernels is None:
        fuse(network)
        torch.backends.cudnn.deterministic = True  # in the stem; our own kernels repeat bit for bit anyway
    names = "own kernels" if kernels is None else f"PyTorch's kernels (not our own: {kernels})"
    if graph is None:
        return Way(f"{names}, each step one CUDA graph", recorded=True)
    return Way(f"{names}, launched one by one (a CUDA graph {graph})")


def _doubts(hp: Hyperparameters, precision: str, processes: Processes, graph: str | None) -> Doubts:
    """What the first process finds against the fast ways, for all."""
    shard = -(-hp.global_batch_size // processes.world_size)
    micro_batch = -(-shard // hp.micro_batches(shard))
    verdict = doubts(hp, precision, processes.device, micro_batch, graph) if processes.is_first else None
    return Doubts(*processes.from_first(verdict))


def recording_obstacle(hp: Hyperparameters, precision: str, processes: Processes) -> str | None:
    """Why a CUDA graph cannot hold the steps of an experiment, briefly; None where it can."""
    if processes.device.type != "cuda":
        return f"is for GPUs, this runs on {processes.device.type}"
    if precision == "fp16":
        return "cannot hold the loss scale of fp16"
    if hp.sync_batch_norm and processes.world_size > 1:
        return "cannot hold synchronised batch norm"
    if hp.search is not None and processes.world_size > 1:
        return "cannot hold a search of several processes"
    return None


def _compiled(network: nn.Module) -> Way:
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise RequestError(
            "hyperparameters.compile: needs a C++ compiler (g++ or clang++), there is none: use auto or false"
        )
    network.compile()
    return Way("compiled (the first steps take minutes)")
