"""Parameters and multiply-adds of a network, counted layer by layer.

A multiply-add is one product added to a sum. Those of convolutions and linear layers are counted, biases, batch norm,
activations, pooling and additions are not: this is half of what `torch.utils.flop_counter` gives for the same pass.
Published figures come from several counters and differ from each other by as much as a tenth. The auxiliary tower is
never part of the network's count, since it is thrown away after training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

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
    by_layer: dict[str, int] = {}
    handles: list[RemovableHandle] = []
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))}
    for name, layer in layers.items():
        handles.append(layer.register_forward_hook(_counter(name, by_layer)))
    modes = {module: module.training for module in network.modules()}
    image = torch.zeros(1, network.in_chans, image_size, image_size, device=next(network.parameters()).device)
    try:
        network.eval()
        with torch.no_grad():
            features, inner = network.forward_cells(image)
            network.forward_head(features)
            if network.auxiliary_head is not None:
                network.auxiliary_head(inner)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode

    parts: dict[str, int] = {}
    for name, multiply_adds in by_layer.items():
        part = _part(name, layers[name])
        parts[part] = parts.get(part, 0) + multiply_adds
    tower = parts.pop("auxiliary_head", 0)
    head = network.auxiliary_head
    tower_parameters = sum(parameter.numel() for parameter in head.parameters()) if head is not None else 0
    parameters = sum(parameter.numel() for parameter in network.parameters()) - tower_parameters
    return Counts(parameters, sum(parts.values()), parts, tower_parameters, tower)


def _counter(name: str, by_layer: dict[str, int]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    """A hook that adds up a layer's products: for every number in its output, one for each weight that went into it."""

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        products = output[0].numel() * weight[0].numel()  # weight: (outputs, inputs of one group, *kernel)
        by_layer[name] = by_layer.get(name, 0) + products

    return add


def _part(name: str, layer: nn.Module) -> str:
    room = name.split(".")[0]
    if room == "cells":
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            return "depthwise"
        return "pointwise" if getattr(layer, "kernel_size", None) == (1, 1) else "dense"
    return {"stem0": "stem", "stem1": "stem", "cells_SE": "squeeze_excite"}.get(room, room)
