"""Compiles the GPU kernels of a network in several processes, before it is tried: see `proof.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import torch

from gaeanet.config.experiment import Hyperparameters
from gaeanet.models.build import build_network
from gaeanet.models.fused import fuse
from gaeanet.models.network import CellNetwork
from gaeanet.runtime.host import usable_cores

IMAGES = 16
"""In the batch of a trial: the kernels of another size differ only where it is no multiple of 16."""

MOST_PROCESSES = 16
"""Beyond this many, starting them takes longer than the work they divide."""


def network_in_training(hp: Hyperparameters, device: torch.device) -> CellNetwork:
    """A network of random weights as a run has it in its last step: in training mode, with the whole drop-path rate."""
    network = build_network(hp).to(device).to(memory_format=torch.channels_last).train()
    network.set_drop_path_rate(hp.drop_path_prob)
    return network


def compile_ahead(request: dict[str, Any], capability: int) -> None:
    """Compiles the kernels of a request's network (see `trial.main`) into Triton's cache; a failure changes nothing."""
    of = min(usable_cores(), MOST_PROCESSES)
    processes = []
    for shard in range(of):
        command = [sys.executable, "-m", "gaeanet.training.compilation"]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )
        processes.append(process)
        assert process.stdin is not None
        json.dump({**request, "capability": capability, "shard": shard, "of": of}, process.stdin)
        process.stdin.close()
    for process in processes:
        process.wait()


def compile_shard(hp: Hyperparameters, capability: int, shard: int, of: int) -> int:
    """Compiles this process's shard of the kernels of a training step; returns how many those are."""
    from gaeanet.kernels.gpu.ahead import compiling

    kernels = set()
    torch.set_num_threads(1)
    network = network_in_training(hp, torch.device("cpu"))
    fuse(network)
    side = hp.training_sizes[0]
    images = torch.zeros(IMAGES, 3, side, side).contiguous(memory_format=torch.channels_last)
    with compiling(capability, lambda kernel, constants: kernels.add(kernel.hash), shard=shard, of=of):
        with torch.autocast("cpu", torch.bfloat16):
            outputs = network(images)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.cat([logits.float() for logits in outputs]).sum().backward()
    return len(kernels)


if __name__ == "__main__":
    request = json.load(sys.stdin)
    compile_shard(Hyperparameters(**request["hyperparameters"]), request["capability"], request["shard"], request["of"])
