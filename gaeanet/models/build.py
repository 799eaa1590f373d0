"""Builds a network from its configuration."""

from __future__ import annotations

import torch

from gaeanet.config.network import Network
from gaeanet.models.network import CellNetwork


def build_network(config: Network) -> CellNetwork:
    """The network that the configuration describes, with the initial weights of its seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        network = CellNetwork(
            config.num_classes,
            **config.architecture,
            drop_rate=config.drop_prob,
            drop_path_rate=config.drop_path_prob,
            # A tower that the loss ignores would only cost time and trip up DistributedDataParallel.
            auxiliary=config.auxiliary and config.auxiliary_weight > 0,
            auxiliary_second_norm=config.auxiliary_second_norm,
        )
    network.set_operation_gamma(config.initial_gamma)
    return network
