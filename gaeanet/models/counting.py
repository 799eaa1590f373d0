"""Parameters and multiply-adds of a network, counted layer by layer by PyTorch's own counter.

A multiply-add is one product added to a sum: two of the operations that `torch.utils.flop_counter` counts. It counts
those of convolutions and linear layers; biases, batch norm, activations, pooling and additions it leaves out.
Published figures come from several counters and differ from each other by as much as a tenth. The auxiliary tower is
never part of the network's count, since it is thrown away after training.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gaeanet.models.network import CellNetwork

COUNTED = "multiply-adds of convolutions and linear layers for one image; no biases, batch norm, activations or pooling"


@dataclass(frozen=True)
class Counts:
    """What a network costs, without its auxiliary tower, and what the tower would add in training.

    Attributes:
        parameters, multiply_adds: The network as it is used after training.
        parts: The multiply-adds by part: `stem`, `pointwise`, `depthwise` and `dense` convolutions of the cells,
            `squeeze_excite`, `classifier`; parts that the network does not have are left out.
        tower_parameters, tower_multiply_adds: The auxiliary tower alone; 0 where there is none.
    """

    parameters: int
    multiply_adds: int
    parts: dict[str, int]
    tower_parameters: int
    tower_multiply_adds: int


def count(network: CellNetwork, image_size: int) -> Counts:
    """Counts `network` on one square image of `image_size` pixels.

    On the meta device nothing is computed and it takes a moment at any size. The network's mode and buffers are left
    as they were.
    """
    image = torch.zeros(1, network.in_chans, image_size, image_size, device=next(network.parameters()).device)
    whole = _WithTower(network)
    with _evaluating(network), FlopCounterMode(display=False) as counter:
        whole(image)
    operations = {name: sum(by_kind.values()) for name, by_kind in counter.get_flop_counts().items()}

    parts: dict[str, int] = {}
    for name, layer in network.named_modules():
        # The tower runs a slice of its layers, which the counter then knows by other names: it is counted as one.
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and not name.startswith("auxiliary_head."):
            part = _part(name, layer)
            parts[part] = parts.get(part, 0) + operations[f"_WithTower.network.{name}"] // 2
    tower = operations.get("_WithTower.network.auxiliary_head", 0) // 2
    head = network.auxiliary_head
    tower_parameters = _parameters(head) if head is not None else 0
    return Counts(_parameters(network) - tower_parameters, sum(parts.values()), parts, tower_parameters, tower)


def count_operation(operation: nn.Module, channels: int, side: int) -> tuple[int, int]:
    """Parameters and multiply-adds of an operation on a square map of `channels` channels, `side` pixels wide."""
    device = next((parameter.device for parameter in operation.parameters()), torch.device("meta"))
    with _evaluating(operation), FlopCounterMode(display=False) as counter:
        operation(torch.zeros(1, channels, side, side, device=device))
    return _parameters(operation), counter.get_total_flops() // 2


class _WithTower(nn.Module):
    """All of a network on one image: in evaluation it does not run its tower itself."""

    def __init__(self, network: CellNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> None:
        features, inner = self.network.forward_cells(image)
        self.network.forward_head(features)
        if self.network.auxiliary_head is not None:
            self.network.auxiliary_head(inner)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; each part's mode is restored."""
    modes = {part: part.training for part in module.modules()}
    try:
        with torch.no_grad():
            module.eval()
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _part(name: str, layer: nn.Module) -> str:
    child = name.split(".")[0]
    if child == "cells":
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            return "depthwise"
        return "pointwise" if getattr(layer, "kernel_size", None) == (1, 1) else "dense"
    return {"stem0": "stem", "stem1": "stem", "cells_SE": "squeeze_excite"}.get(child, child)
