"""A network in training, and everything that changes with its weights: optimizer, average, scaler, counters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gaeanet.config.experiment import Hyperparameters
from gaeanet.evaluation.meter import Meter
from gaeanet.models.build import build_network
from gaeanet.models.fast import accelerate
from gaeanet.models.network import CellNetwork
from gaeanet.optim.ema import WeightAverage
from gaeanet.optim.groups import Group, freeze, learning_groups
from gaeanet.optim.muon import Muon
from gaeanet.runtime import devices
from gaeanet.runtime.host import keep_freed_memory
from gaeanet.runtime.processes import Processes
from gaeanet.training.acceleration import NOT_COMPILED, Way, choose
from gaeanet.training.buffers import Buffers

Tensors = dict[str, dict[str, Tensor]]
"""Groups of named tensors, as a checkpoint keeps them."""


@dataclass
class Learner:
    """A network, its optimizer and average, and counters, all on one device.

    Attributes:
        network: The network in training; checkpoints and validations use it.
        forward: What computes its outputs in training: the network, or its DDP wrapper.
        momenta: The optimizer's, by the names of the network's parameters; none where it has no momentum.
        average: The network's moving average; None where there is none.
        precision: fp32, bf16 or fp16.
        way: How its steps are computed.
        max_norm: Largest norm of the gradient (L2, all parameters); beyond it the gradient is clipped.
        loss_scale: Factor that makes a sum of losses this process's contribution to their mean over the global batch.
        micro_batch: Most images of a micro-batch; None for all.
        buffers: The flat buffers that hold all of this on a GPU; None elsewhere.
        autocast: Makes the context in which the network computes in this precision.
        no_sync: Makes the context in which a backward pass exchanges no gradients with other processes.
        batches: Global batches processed.
        counts: Optimizer steps made; steps skipped for a gradient that was not finite, in all and in a row (int64).
        updates: Optimizer steps made (0-d, a view of `counts`): the position in the schedule.
        drop_path_rate: The network's, which a step sets; None where it has none.
        updated: What the optimizer updates: the network's parameters, or flat ones.
        statistics, statistics_before: The batch-norm statistics, and as they were before the last step.
        meter: Sums since the last training line, of this process.
    """

    network: nn.Module
    forward: nn.Module
    optimizer: torch.optim.Optimizer
    momenta: Mapping[str, Tensor]
    average: WeightAverage | None
    frozen: Sequence[nn.Module]
    processes: Processes
    precision: str
    way: Way
    max_norm: float
    loss_scale: float
    micro_batch: int | None
    buffers: Buffers | None = None

    def __post_init__(self) -> None:
        self.device = self.processes.device
        dtype = devices.DTYPES[self.precision]
        self.autocast = partial(torch.autocast, self.device.type, dtype, enabled=dtype is not torch.float32)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.no_sync = self.forward.no_sync if isinstance(self.forward, DistributedDataParallel) else nullcontext
        self.counts = torch.zeros(3, dtype=torch.int64, device=self.device)
        self.updates = self.counts[0]
        self.batches = 0
        self.meter = Meter(self.device)
        # Drop-path's rate is a buffer too, but none that a checkpoint keeps; the schedule sets it each step.
        self.drop_path_rate = self.network.drop_path_rate if isinstance(self.network, CellNetwork) else None
        self.updated = list(self.network.parameters())
        self.statistics = [buffer for buffer in self.network.buffers() if buffer.is_floating_point()]
        if self.buffers:
            self.updated = [parameter for group in self.buffers.parameters for parameter in group]
            self.statistics = list(self.buffers.statistics)
        self.statistics_before = [statistic.clone() for statistic in self.statistics]

    @property
    def networks(self) -> dict[str, nn.Module]:
        """What a validation evaluates, by the prefix of its columns in the log: the network and its average."""
        return {"": self.network, **({"ema_": self.average.network} if self.average else {})}

    def broadcast_statistics(self) -> None:
        """Broadcasts the first process's batch-norm statistics to all, as the next training step would."""
        for network in self.networks.values():
            self.processes.broadcast(list(network.buffers()))

    def tensors(self, weights: str = "model") -> Tensors:
        """Everything in groups of named tensors; the network's have the name `weights`. All processes must call this.

        Momenta of a run that has made no step are left out: they are zero.
        """
        tensors: Tensors = {
            weights: self.network.state_dict(),
            "optimizer": dict(self.momenta) if self.updates else {},
            "meter": {"sums": self.processes.sum(self.meter.sums.clone())},
        }
        return {**tensors, **({"ema": self.average.network.state_dict()} if self.average else {})}

    @torch.no_grad()
    def load(self, tensors: Tensors, weights: str = "model") -> None:
        """Loads what `tensors` gave; raises KeyError or RuntimeError where it is another network's."""
        self.network.load_state_dict(tensors[weights])
        for name, momentum in self.momenta.items():
            # In the weight's own memory format, which the file does not keep and SGD's fused step needs.
            momentum.copy_(tensors["optimizer"].get(name, torch.zeros(())))
        if self.average:
            self.average.network.load_state_dict(tensors["ema"])
        if self.processes.is_first:
            self.meter.sums.copy_(tensors["meter"]["sums"])
        else:
            self.meter.reset()

    @torch.no_grad()
    def snapshot(self) -> Callable[[], None]:
        """Copies all that a step changes, except `batches`; returns a function that restores it."""
        networks = [*self.networks.values()]
        tensors = [self.counts, self.meter.sums, *self.momenta.values()]
        tensors += [tensor.detach() for network in networks for tensor in (*network.parameters(), *network.buffers())]
        copies = [tensor.clone() for tensor in tensors]

        def restore() -> None:
            for tensor, copy in zip(tensors, copies):
                tensor.copy_(copy)

        return restore

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Loads a state dict as the initial weights, and as the average's."""
        self.network.load_state_dict(weights)
        if self.average:
            self.average.network.load_state_dict(weights)


def build_learner(hp: Hyperparameters, processes: Processes, *, flat: bool | None = None) -> Learner:
    """The network that the hyperparameters describe, ready to learn on this process's device.

    Args:
        flat: Whether it has flat buffers; by default on a GPU.

    Raises:
        RequestError: Precision, compilation or synchronised batch norm is not available here.
    """
    device = processes.device
    precision = devices.precision_for(hp.precision, device)
    network = build_network(hp).to(device).to(memory_format=torch.channels_last)
    if hp.sync_batch_norm and processes.world_size > 1:
        devices.check_sync_batch_norm(device)
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    frozen = freeze(network, hp.freeze)
    way = choose(hp, network, precision, processes)
    groups, averaged = learning_groups(network, hp), hp.ema_decay > 0
    return assemble(network, groups, hp, processes, precision, way, frozen, averaged=averaged, flat=flat)


def assemble(
    network: nn.Module,
    groups: Sequence[Group],
    hp: Hyperparameters,
    processes: Processes,
    precision: str,
    way: Way = NOT_COMPILED,
    frozen: Sequence[nn.Module] = (),
    *,
    averaged: bool = False,
    flat: bool | None = None,
) -> Learner:
    """A learner of a network that is on its device (and compiled, if asked for), with the fastest kernels available.

    Args:
        averaged: Whether it has a moving average.
        flat: Whether it has flat buffers; by default on a GPU.
    """
    device = processes.device
    if device.type == "cpu":
        keep_freed_memory()
        if precision == "fp32" and way == NOT_COMPILED:
            way = Way(accelerate(network))
    if flat is None:
        flat = device.type == "cuda"
    if flat:
        processes.broadcast([*network.parameters(), *network.buffers()])
    average = WeightAverage(network) if averaged else None
    buffers = Buffers(network, groups, average, stacked=hp.optimizer == "muon") if flat else None
    forward = network
    if processes.world_size > 1 and not flat:
        # Before each forward the first process's batch-norm statistics replace the others'.
        forward = DistributedDataParallel(network, gradient_as_bucket_view=True)
    optimizer = build_optimizer(groups, hp, buffers)
    return Learner(
        network=network,
        forward=forward,
        optimizer=optimizer,
        momenta=make_momenta(optimizer, groups, buffers) if hp.momentum else {},
        average=average,
        frozen=frozen,
        processes=processes,
        precision=precision,
        way=way,
        max_norm=hp.clip_gradients_l2_norm or torch.inf,
        # A sum over the global batch becomes its mean. DistributedDataParallel averages over processes, whatever their
        # shards; flat buffers are added up.
        loss_scale=(1 if buffers else processes.world_size) / hp.global_batch_size,
        micro_batch=hp.max_batch_per_slot,
        buffers=buffers,
    )


def build_optimizer(
    groups: Sequence[Group], hp: Hyperparameters, buffers: Buffers | None = None
) -> torch.optim.Optimizer:
    """SGD or Muon over the groups, or over their flat buffers; its steps can be skipped on the device (`found_inf`)."""
    own = [[parameter for _, parameter in group.parameters] for group in groups]
    rated = [
        {"params": parameters, "factor": group.factor, "weight_decay": hp.weight_decay if group.decays else 0.0}
        for group, parameters in zip(groups, buffers.parameters if buffers else own)
    ]
    if hp.optimizer == "muon":
        return Muon(rated, lr=hp.learning_rate, momentum=hp.momentum)
    return torch.optim.SGD(rated, lr=hp.learning_rate, momentum=hp.momentum, fused=True)


def make_momenta(
    optimizer: torch.optim.Optimizer, groups: Sequence[Group], buffers: Buffers | None
) -> dict[str, Tensor]:
    """Gives an optimizer momenta of zero: SGD would make them in its first step, from its gradient, finite or not.

    Returns:
        The momenta by the parameters' names.
    """
    if buffers:
        return buffers.momenta(optimizer)
    momenta = {name: torch.zeros_like(parameter) for group in groups for name, parameter in group.parameters}
    for group in groups:
        for name, parameter in group.parameters:
            optimizer.state[parameter]["momentum_buffer"] = momenta[name]
    return momenta
