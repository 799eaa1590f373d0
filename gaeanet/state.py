"""Everything that changes while a network trains: one step of it, and its way to disk and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gaeanet import __version__, checkpoint, devices
from gaeanet.augment import normalize
from gaeanet.config import Experiment, Hyperparameters
from gaeanet.data.catalog import check_table
from gaeanet.data.loader import Source
from gaeanet.ema import WeightAverage
from gaeanet.errors import RequestError
from gaeanet.evaluate import Meter
from gaeanet.model import CellNetwork


def build_network(hp: Hyperparameters) -> CellNetwork:
    """The network that the hyperparameters describe, with the initial weights of their seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(hp.seed)
        return CellNetwork(
            hp.num_classes,
            drop_rate=hp.drop_prob,
            drop_path_rate=hp.drop_path_prob,
            genotype=hp.cell,
            init_channels=hp.init_channels,
            layers=hp.layers,
            activation=hp.activation,
            squeeze_excite=hp.do_SE,
            # A tower that the loss ignores would only cost time and trip up DistributedDataParallel.
            auxiliary=hp.auxiliary and hp.auxiliary_weight > 0,
        )


class TrainingState:
    """A network in training, its optimizer and average, and how far it is.

    Attributes:
        network: The network in training.
        average: Its moving average; None where `ema_decay` is 0.
        meter: Sums since the last training line.
        batches: Optimizer steps done.
        best: Accuracy, epoch and kind of weights (`raw` or `ema`) of the best validation so far.
    """

    def __init__(self, experiment: Experiment, source: Source, device: torch.device) -> None:
        hp = self._hp = experiment.hyperparameters
        self._experiment, self._source, self._device = experiment, source, device
        self.precision = devices.precision_for(hp.precision, device)
        self.network = build_network(hp).to(device).to(memory_format=torch.channels_last)
        self.average = WeightAverage(self.network, hp.ema_decay) if hp.ema_decay > 0 else None
        self.compilation = devices.compile_for(hp.compile, self.network, device)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), lr=hp.learning_rate, momentum=hp.momentum, weight_decay=hp.weight_decay
        )
        self._scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        self.meter = Meter(device)
        self.batches = 0
        self.best: dict[str, Any] | None = None

    def step(self, images: Tensor, labels: Tensor, learning_rate: float, drop_path_rate: float) -> None:
        """One optimizer step on images uint8 (N, 3, H, W) and labels int64 (N,)."""
        hp, network = self._hp, self.network
        network.train()
        network.set_drop_path_rate(drop_path_rate)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        images = normalize(images.to(self._device, non_blocking=True))
        labels = labels.to(self._device, non_blocking=True)

        dtype = devices.DTYPES[self.precision]
        with torch.autocast(self._device.type, dtype, enabled=dtype is not torch.float32):
            outputs = network(images)
        logits, *tower = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=hp.label_smoothing_rate)
        total = loss
        for auxiliary in tower:
            smoothed = F.cross_entropy(auxiliary.float(), labels, label_smoothing=hp.label_smoothing_rate)
            total = total + hp.auxiliary_weight * smoothed

        self.optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(total).backward()
        if hp.clip_gradients_l2_norm > 0:
            self._scaler.unscale_(self.optimizer)  # a scaled gradient would be clipped thousands of times too hard
            torch.nn.utils.clip_grad_norm_(network.parameters(), hp.clip_gradients_l2_norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        if self.average:
            self.average.update(self.batches)
        self.batches += 1
        self.meter.add(logits.detach(), labels, loss.detach() * len(labels))

    def note_best(self, validation: dict[str, Any]) -> bool:
        """Remembers a validation line if one of its accuracies beats the best so far; ties keep the older."""
        found = False
        for weights, prefix in (("raw", ""), ("ema", "ema_")):
            accuracy = validation.get(f"{prefix}top1_accuracy")
            if accuracy is not None and (self.best is None or accuracy > self.best["top1_accuracy"]):
                self.best = {"top1_accuracy": accuracy, "epoch": validation["epoch"], "weights": weights}
                found = True
        return found

    def saved(self) -> tuple[dict[str, dict[str, Tensor]], checkpoint.State]:
        """What a checkpoint holds: groups of tensors, and plain values that say all about them."""
        names = [name for name, _ in self.network.named_parameters()]
        momenta = self.optimizer.state_dict()["state"]
        tensors = {
            "model": self.network.state_dict(),
            "optimizer": {
                names[i]: entry["momentum_buffer"]
                for i, entry in momenta.items()
                if entry.get("momentum_buffer") is not None
            },
            "meter": {"sums": self.meter.sums},
        }
        if self.average:
            tensors["ema"] = self.average.network.state_dict()
        catalog = self._source.catalog
        state = {
            "gaeanet": __version__,
            "torch": torch.__version__,
            "batches": self.batches,
            "best": self.best,
            "scaler": self._scaler.state_dict(),
            "hyperparameters": self._portable_hyperparameters(),
            "classes": list(catalog.classes),
            "class_names": list(catalog.class_names),
            "data": {
                "location": self._source.location,
                "fingerprint": catalog.fingerprint,
                "generated": self._source.generated,
            },
        }
        return tensors, state

    def _portable_hyperparameters(self) -> dict[str, Any]:
        """All hyperparameters, the genotype spelled out, so that no file of this machine is needed to read them."""
        return {**self._hp.model_dump(), "genotype": self._hp.cell.to_dict()}

    def load(self, path: Path) -> None:
        """Takes over the checkpoint directory `path`.

        Raises:
            RequestError: It is damaged, or was made by other hyperparameters or from other classes.
        """
        tensors, state = checkpoint.load(path)
        for key, value in self._portable_hyperparameters().items():
            if (saved := state["hyperparameters"].get(key, value)) != value:
                raise RequestError(
                    f"hyperparameters.{key} is {value!r}, but the run to resume in {path.parent.parent} has {saved!r}: "
                    "a resumed run keeps its recipe; start another with --run-dir"
                )
        where = f"{self._source.location}, against the run to resume in {path.parent.parent}"
        check_table(self._source.catalog, state["classes"], where)
        self.network.load_state_dict(tensors["model"])
        if self.average:
            self.average.network.load_state_dict(tensors["ema"])
        names = [name for name, _ in self.network.named_parameters()]
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = {
            i: {"momentum_buffer": tensors["optimizer"][name]}
            for i, name in enumerate(names)
            if name in tensors["optimizer"]
        }
        self.optimizer.load_state_dict(optimizer)
        if state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
        self.meter.sums.copy_(tensors["meter"]["sums"])
        self.batches, self.best = state["batches"], state["best"]
