"""A network in training, and everything that changes with its weights: optimizer, average, scaler, counters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gaeanet.config.experiment import Hyperparameters
from gaeanet.evaluation.meter import Meter
from gaeanet.models.build import build_network
from gaeanet.models.fast import accelerate
from gaeanet.models.network import CellNetwork
from gaeanet.optim.ema import WeightAverage
from gaeanet.optim.groups import Group, evaluation_mode, freeze, learning_groups
from gaeanet.optim.muon import Muon
from gaeanet.runtime import devices
from gaeanet.runtime.host import keep_freed_memory
from gaeanet.runtime.processes import Processes
from gaeanet.training.cuda_graph import Graphed, check_capturable

Tensors = dict[str, dict[str, Tensor]]
"""Groups of named tensors, as a checkpoint keeps them."""


@dataclass
class Learner:
    """A network, its optimizer and average, and counters, all on one device.

    Attributes:
        network: The network in training; checkpoints and validations use it.
        forward: What computes its outputs in training: the network, or its DDP or CUDA-graph wrapper.
        learning: The parameters that learn, by name, in the optimizer's order.
        average: The network's moving average; None where there is none.
        precision: fp32, bf16 or fp16.
        compilation: How it is compiled or accelerated, as text.
        max_norm: Largest norm of the gradient (L2, all parameters); beyond it the gradient is clipped.
        loss_scale: Factor that makes a sum of losses this process's contribution to their mean over the global batch.
        micro_batch: Most images of a micro-batch; None for all.
        batches: Global batches processed.
        counts: Optimizer steps made; steps skipped for a gradient that was not finite, in all and in a row (int64).
        meter: Sums since the last training line, of this process.
    """

    network: nn.Module
    forward: nn.Module
    optimizer: torch.optim.Optimizer
    learning: Mapping[str, nn.Parameter]
    average: WeightAverage | None
    frozen: Sequence[nn.Module]
    processes: Processes
    precision: str
    compilation: str
    max_norm: float
    loss_scale: float
    micro_batch: int | None

    def __post_init__(self) -> None:
        self.device = self.processes.device
        self.dtype = devices.DTYPES[self.precision]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.counts = torch.zeros(3, dtype=torch.int64, device=self.device)
        self.batches = 0
        self.meter = Meter(self.device)
        self._statistics = [buffer for buffer in self.network.buffers() if buffer.is_floating_point()]
        # Drop-path's rate is a buffer too, but none that a checkpoint keeps; the schedule sets it each step.
        self._before = [buffer.clone() for buffer in self._statistics]

    @property
    def updates(self) -> Tensor:
        """Optimizer steps made (0-d): the position in the schedule."""
        return self.counts[0]

    @property
    def networks(self) -> dict[str, nn.Module]:
        """What a validation evaluates, by the prefix of its columns in the log: the network and its average."""
        return {"": self.network, **({"ema_": self.average.network} if self.average else {})}

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision in which the network computes."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32)

    def gradient_exchange(self, *, is_last: bool) -> AbstractContextManager[Any]:
        """Gradients travel between the processes once a step, with its last micro-batch."""
        if isinstance(self.forward, DistributedDataParallel) and not is_last:
            exchange: AbstractContextManager[Any] = self.forward.no_sync()
            return exchange
        return nullcontext()

    def begin_step(self, drop_path_rate: Tensor) -> None:
        """Training mode for all but what is frozen; no gradients; the batch-norm statistics are remembered."""
        self.training_mode()
        if isinstance(self.network, CellNetwork):
            self.network.drop_path_rate.copy_(drop_path_rate)
        torch._foreach_copy_(self._before, self._statistics)
        self.optimizer.zero_grad(set_to_none=True)

    def training_mode(self) -> None:
        """Sets training mode; batch norms of frozen parts keep their statistics."""
        self.network.train()
        evaluation_mode(self.frozen)

    def clip_gradients(self) -> Tensor:
        """Clips the gradient; returns whether its norm is a number (0-d bool)."""
        self.scaler.unscale_(self.optimizer)  # a scaled gradient would be clipped thousands of times too hard
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)
        finite: Tensor = norm < torch.inf
        return finite

    @torch.no_grad()
    def update(self, finite: Tensor, rate: Tensor) -> None:
        """Moves the weights where `finite` says so (0-d bool); else undoes what the step did to batch norm."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        # PyTorch's protocol for steps that a device may skip: see torch.amp.GradScaler.step.
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.scaler.update()
        for statistic, before in zip(self._statistics, self._before):
            torch.where(finite, statistic, before, out=statistic)

    def update_average(self, finite: Tensor, weight: Tensor) -> None:
        """Updates the moving average of the weights."""
        if self.average:
            self.average.update(torch.where(finite, weight, 0.0).float())

    @torch.no_grad()
    def count(self, finite: Tensor, sums: Tensor) -> None:
        """Adds a step to the counters, and its loss and accuracy to the meter."""
        self.batches += 1
        good = finite.long()
        self.counts += torch.stack([good, 1 - good, torch.ones_like(good)])
        self.counts[2] *= 1 - good
        self.meter.sums += torch.where(finite, sums, 0.0)

    def broadcast_statistics(self) -> None:
        """Broadcasts the first process's batch-norm statistics to all, as the next training step would."""
        for network in self.networks.values():
            self.processes.broadcast(list(network.buffers()))

    def tensors(self, weights: str = "model") -> Tensors:
        """Everything in groups of named tensors; the network's have the name `weights`. All processes must call this.

        Momenta of a run that has made no step are left out: they are zero.
        """
        momenta = {
            name: self.optimizer.state[parameter]["momentum_buffer"]
            for name, parameter in self.learning.items()
            if "momentum_buffer" in self.optimizer.state[parameter]
        }
        tensors: Tensors = {
            weights: self.network.state_dict(),
            "optimizer": momenta if self.updates else {},
            "meter": {"sums": self.processes.sum(self.meter.sums.clone())},
        }
        return {**tensors, **({"ema": self.average.network.state_dict()} if self.average else {})}

    @torch.no_grad()
    def load(self, tensors: Tensors, weights: str = "model") -> None:
        """Loads what `tensors` gave; raises KeyError or RuntimeError where it is another network's."""
        self.network.load_state_dict(tensors[weights])
        for name, parameter in self.learning.items():
            momentum = self.optimizer.state[parameter].get("momentum_buffer")
            if momentum is not None:
                # In the weight's own memory format, which the file does not keep and SGD's fused step needs.
                momentum.copy_(tensors["optimizer"].get(name, torch.zeros(())))
        if self.average:
            self.average.network.load_state_dict(tensors["ema"])
        if self.processes.is_first:
            self.meter.sums.copy_(tensors["meter"]["sums"])
        else:
            self.meter.reset()

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Loads a state dict as the initial weights, and as the average's."""
        self.network.load_state_dict(weights)
        if self.average:
            self.average.network.load_state_dict(weights)


def build_learner(hp: Hyperparameters, processes: Processes) -> Learner:
    """The network that the hyperparameters describe, ready to learn on this process's device.

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
    average = WeightAverage(network) if hp.ema_decay > 0 else None
    compilation = devices.compile_for(hp.compile, network, device)
    learner = assemble(network, learning_groups(network, hp), hp, processes, precision, compilation, frozen, average)
    if hp.compile == "graphs":
        check_capturable(hp, processes)
        learner.training_mode()
        learner.forward = Graphed(network, hp.global_batch_size, hp.training_sizes[0], learner.dtype)
    return learner


def assemble(
    network: nn.Module,
    groups: Sequence[Group],
    hp: Hyperparameters,
    processes: Processes,
    precision: str,
    compilation: str = "not compiled",
    frozen: Sequence[nn.Module] = (),
    average: WeightAverage | None = None,
) -> Learner:
    """A learner of a network that is on its device (and compiled, if asked for), with the fastest kernels available."""
    device = processes.device
    if device.type == "cpu":
        keep_freed_memory()
        if precision == "fp32" and compilation == "not compiled":
            compilation = accelerate(network)
    forward = network
    if processes.world_size > 1:
        # Before each forward the first process's batch-norm statistics replace the others'.
        ids = [device] if device.type == "cuda" else None
        forward = DistributedDataParallel(network, device_ids=ids, gradient_as_bucket_view=True)
    return Learner(
        network=network,
        forward=forward,
        optimizer=build_optimizer(groups, hp),
        learning={name: parameter for group in groups for name, parameter in group.parameters},
        average=average,
        frozen=frozen,
        processes=processes,
        precision=precision,
        compilation=compilation,
        max_norm=hp.clip_gradients_l2_norm or torch.inf,
        # DistributedDataParallel averages over processes, whatever their shards; this makes it the mean over images.
        loss_scale=processes.world_size / hp.global_batch_size,
        micro_batch=hp.max_batch_per_slot,
    )


def build_optimizer(groups: Sequence[Group], hp: Hyperparameters) -> torch.optim.Optimizer:
    """SGD or Muon over the groups, with momenta of zero; its steps can be skipped on the device (`found_inf`)."""
    rated = [
        {
            "params": [parameter for _, parameter in group.parameters],
            "factor": group.factor,
            "weight_decay": hp.weight_decay if group.decays else 0.0,
        }
        for group in groups
    ]
    optimizer: torch.optim.Optimizer
    if hp.optimizer == "muon":
        optimizer = Muon(rated, lr=hp.learning_rate, momentum=hp.momentum)
    else:
        optimizer = torch.optim.SGD(rated, lr=hp.learning_rate, momentum=hp.momentum, fused=True)
    if hp.momentum:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                # SGD would make them in its first step, from its gradient, be it finite or not.
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
