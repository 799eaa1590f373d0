"""A network of cells in training: one step of it, its moving average, and its way to disk and back."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gaeanet.artifacts import checkpoint
from gaeanet.artifacts.start import Start
from gaeanet.config.experiment import Experiment
from gaeanet.data.sources.order import mix_seed
from gaeanet.data.sources.source import Source
from gaeanet.evaluation.meter import Meter
from gaeanet.models.build import build_network
from gaeanet.models.network import CellNetwork
from gaeanet.optim.ema import WeightAverage
from gaeanet.optim.groups import evaluation_mode, freeze, learning_groups
from gaeanet.runtime import devices
from gaeanet.runtime.processes import Processes
from gaeanet.training.cuda_graph import Recorded, check_recordable
from gaeanet.training.mixing import Mix, Mixing
from gaeanet.training.state import RunState


class TrainingState(RunState):
    """A network in training, its optimizer and average, and how far it is.

    Attributes:
        average: The network's moving average; None where `ema_decay` is 0.
    """

    def __init__(self, experiment: Experiment, source: Source, processes: Processes) -> None:
        super().__init__(experiment, source, processes)
        hp, device = self._hp, self._device
        self._network = build_network(hp).to(device).to(memory_format=torch.channels_last)
        if hp.sync_batch_norm and processes.world_size > 1:
            devices.check_sync_batch_norm(device)
            self._network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(self._network)
        self._mixing = Mixing(hp)
        self._mix: Mix | None = None
        self._frozen = freeze(self._network, hp.freeze)
        self.average = WeightAverage(self._network, hp.ema_decay) if hp.ema_decay > 0 else None
        compilation = devices.compile_for(hp.compile, self._network, device)
        self._take(self._network, learning_groups(self._network, hp), compilation)
        if hp.compile == "graphs":
            self._record()

    def _record(self) -> None:
        check_recordable(self._hp, self._processes)
        self._into_training_mode()
        dtype = devices.DTYPES[self.precision]
        self._shared = Recorded(self._network, self._hp.global_batch_size, self._hp.training_sizes[0], dtype)

    def _into_training_mode(self) -> None:
        """All but what is frozen, whose batch norms keep to their statistics."""
        self._network.train()
        evaluation_mode(self._frozen)

    @property
    def network(self) -> CellNetwork:
        return self._network

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {**super().networks, **({"ema_": self.average.network} if self.average else {})}

    def step(self, images: Tensor, labels: Tensor, learning_rate: float, drop_path_rate: float) -> None:
        """One optimizer step on this process's share of a global batch.

        A step whose gradient is not finite leaves weights, momentum, average and batch-norm statistics as they were.

        Args:
            images, labels: uint8 (N, 3, H, W) and int64 (N,).
        """
        self._into_training_mode()
        self.network.set_drop_path_rate(drop_path_rate)
        self._mix = self._mixing.draw(mix_seed(self._hp.seed, self.batches), *images.shape[2:])
        sums = self._begin_step(learning_rate)
        self._learn(images, labels, sums)
        if self._update(sums) and self.average:
            self.average.update(self.updates - 1)

    def _examples(self, images: Tensor, labels: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """Images and labels, int64 (N,); where images are mixed, the label of each and of its partner, (N, 2)."""
        found, own = super()._examples(images, labels, part)
        if self._mix is None:
            return found, own
        after = part.stop % len(labels)
        follower, its_label = self._on_device(images[after : after + 1], labels[after : after + 1])
        return self._mix.images(found, follower), self._mix.labels(own, its_label)

    def _loss(self, images: Tensor, labels: Tensor, sums: Tensor) -> Tensor:
        """A part's contribution to the mean loss over the global batch, tower included; counts into `sums`.

        Guesses at mixed images count as right where they name what has the larger share.
        """
        hp, mix = self._hp, self._mix
        dtype = devices.DTYPES[self.precision]
        with torch.autocast(self._device.type, dtype, enabled=dtype is not torch.float32):
            outputs = self._shared(images)
        logits, *tower = outputs if isinstance(outputs, tuple) else (outputs,)

        def smoothed(logits: Tensor) -> Tensor:
            def against(labels: Tensor) -> Tensor:
                return F.cross_entropy(logits.float(), labels, label_smoothing=hp.label_smoothing_rate, reduction="sum")

            return mix.loss(against, labels) if mix else against(labels)

        loss = smoothed(logits)
        sums += Meter.count(logits.detach(), mix.larger(labels) if mix else labels, loss.detach()).to(sums)
        for auxiliary in tower:
            loss = loss + hp.auxiliary_weight * smoothed(auxiliary)
        return self._mean_over_global_batch(loss)

    def agree_on_statistics(self) -> None:
        super().agree_on_statistics()
        if self.average:
            self._processes.broadcast(list(self.average.network.buffers()))

    def saved(self) -> tuple[dict[str, dict[str, Tensor]], checkpoint.State]:
        tensors, state = super().saved()
        if self.average:
            tensors["ema"] = self.average.network.state_dict()
        return tensors, state

    def start_from(self, start: Start) -> list[str]:
        """Takes over a trained network's weights before the first step; returns sentences on what was taken over.

        Raises:
            RequestError: It is of another network, or damaged.
        """
        weights, words = start.weights_for(self.network)
        self.network.load_state_dict(weights)
        if self.average:
            self.average.network.load_state_dict(weights)
        self.parent = start.parent
        return words

    def _load_tensors(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        super()._load_tensors(tensors)
        if self.average:
            self.average.network.load_state_dict(tensors["ema"])
