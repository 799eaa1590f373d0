"""Parameter groups of one learning rate and weight decay, and frozen layers."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from gaeanet.config.optimizer import Optimizer
from gaeanet.models.network import CellNetwork

_TOWER = "auxiliary_head."


class Group(NamedTuple):
    """A parameter group: named parameters of one learning rate and weight decay.

    Attributes:
        factor: On the learning rate.
        decays: Whether they have weight decay.
    """

    parameters: list[tuple[str, nn.Parameter]]
    factor: float = 1.0
    decays: bool = True


def freeze(network: CellNetwork, what: str | int) -> list[nn.Module]:
    """Freezes the parts that `hyperparameters.freeze` names, weights and batch-norm statistics; returns them."""
    if what == "nothing":
        return []
    first = 0 if what == "stem" else len(network.cells) if what == "cells" else min(int(what), len(network.cells))
    parts = [network.stem0, network.stem1, *network.cells[:first], *network.cells_SE[:first]]
    for part in parts:
        part.requires_grad_(False)
    return parts


def learning_groups(network: CellNetwork, optimizer: Optimizer) -> list[Group]:
    """The parameter groups of a network, layer by layer; frozen parameters are in none.

    The head has the full rate and each layer before it, back to the stem, `layer_decay` times that of the next (Bao et
    al. 2021, arXiv 2106.08254); layers are those of the network's group matcher, as timm uses them. Without
    `decay_norms_and_biases` vectors have no weight decay: these are the batch norms' weights and all biases (Goyal et
    al. 2017, arXiv 1706.02677; He et al. 2019, arXiv 1812.01187).
    """
    groups = _by_layer(network, optimizer.layer_decay)
    if optimizer.decay_norms_and_biases:
        return groups
    split = []
    for group in groups:
        for decays in (True, False):
            members = [entry for entry in group.parameters if (entry[1].ndim > 1) is decays]
            split.append(Group(members, group.factor, decays))
    return [group for group in split if group.parameters]


def _by_layer(network: CellNetwork, layer_decay: float) -> list[Group]:
    """Trainable parameters in groups of one learning rate."""
    learning = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    if layer_decay == 1.0:
        return [Group(learning)]
    from timm.models import group_parameters

    depth = group_parameters(network, network.group_matcher(), reverse=True)
    last = max(depth.values())
    # The tower reads an inner map, but is as new as the classifier.
    depths = {name: last if name.startswith(_TOWER) else depth[name] for name, _ in learning}
    return [
        Group([entry for entry in learning if depths[entry[0]] == level], layer_decay ** (last - level))
        for level in sorted(set(depths.values()))
    ]
