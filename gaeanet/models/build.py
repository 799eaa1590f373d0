"""From hyperparameters to a network."""

from __future__ import annotations

import torch

from gaeanet.config.experiment import Hyperparameters
from gaeanet.models.network import CellNetwork


def build_network(hp: Hyperparameters) -> CellNetwork:
    """The network that the hyperparameters describe, with the initial weights of their seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(hp.seed)
        network = CellNetwork(
            hp.num_classes,
            **hp.architecture,
            drop_rate=hp.drop_prob,
            drop_path_rate=hp.drop_path_prob,
            # A tower that the loss ignores would only cost time and trip up DistributedDataParallel.
            auxiliary=hp.auxiliary and hp.auxiliary_weight > 0,
            auxiliary_second_norm=hp.auxiliary_second_norm,
        )
    network.set_operation_gamma(hp.initial_gamma)
    return network
