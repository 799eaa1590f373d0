"""Everything that changes while a network trains: one step of it, and its way to disk and back."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gaeanet import __version__, checkpoint, devices, finetune, kernels
from gaeanet.augment import normalize
from gaeanet.config import OPERATIONAL, Data, Experiment, Hyperparameters
from gaeanet.data.catalog import check_table
from gaeanet.data.loader import Source
from gaeanet.ema import WeightAverage
from gaeanet.errors import RequestError, reason
from gaeanet.evaluate import Meter
from gaeanet.lineage import Lineage, lineage_of
from gaeanet.network import CellNetwork
from gaeanet.processes import Processes
from gaeanet.run_directory import CHECKPOINTS


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
            auxiliary_second_norm=hp.auxiliary_second_norm,
            stem=hp.stem,
        )


class TrainingState:
    """A network in training, its optimizer and average, and how far it is.

    Attributes:
        network: The network in training.
        average: Its moving average; None where `ema_decay` is 0.
        meter: Sums since the last training line, of this process.
        batches: Global batches worked off: the position in the data.
        updates: Optimizer steps made: the position in the schedule. Less than `batches` by the skipped ones.
        skipped, bad_steps: Steps skipped for a gradient that was not finite, in all and since the last good one.
        rate_scale: Factor on the learning rate, halved by each rewind.
        best: The best validations so far, best first: accuracy, epoch, batches and kind of weights (`raw` or `ema`).
        validated_at: `batches` at the last validation.
        parent: What is known of the checkpoint that the run started from; None for random weights.
    """

    def __init__(self, experiment: Experiment, source: Source, processes: Processes) -> None:
        hp = self._hp = experiment.hyperparameters
        device = self._device = processes.device
        self._source, self._processes = source, processes
        self._data = portable_data(experiment.data)
        self.precision = devices.precision_for(hp.precision, device)
        self.network = build_network(hp).to(device).to(memory_format=torch.channels_last)
        if hp.sync_batch_norm and processes.world_size > 1:
            devices.check_sync_batch_norm(device)
            self.network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(self.network)
        self._frozen = finetune.freeze(self.network, hp.freeze)
        self.average = WeightAverage(self.network, hp.ema_decay) if hp.ema_decay > 0 else None
        self.compilation = devices.compile_for(hp.compile, self.network, device)
        if device.type == "cpu" and self.precision == "fp32" and self.compilation == "not compiled":
            self.compilation = kernels.accelerate(self.network)
        self._shared: nn.Module = self.network
        if processes.world_size > 1:
            # Before each forward the first process's batch-norm statistics replace the others'.
            ids = [device] if device.type == "cuda" else None
            self._shared = DistributedDataParallel(self.network, device_ids=ids, gradient_as_bucket_view=True)
        groups = finetune.learning_groups(self.network, hp.layer_decay)
        self._learning = [name for _, entries in groups for name, _ in entries]
        self.optimizer = torch.optim.SGD(
            [{"params": [value for _, value in entries], "factor": factor} for factor, entries in groups],
            lr=hp.learning_rate,
            momentum=hp.momentum,
            weight_decay=hp.weight_decay,
        )
        self._scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        self._statistics = [buffer for buffer in self.network.buffers() if buffer.is_floating_point()]
        self._kept_statistics = [buffer.clone() for buffer in self._statistics]
        self.meter = Meter(device)
        self.batches = self.updates = self.skipped = self.bad_steps = 0
        self.rate_scale = 1.0
        self.best: list[dict[str, Any]] = []
        self.validated_at = 0
        self.parent: Lineage | None = None

    @property
    def networks(self) -> list[nn.Module]:
        """The networks that are validated: the one in training, and its average if there is one."""
        return [self.network, *([self.average.network] if self.average else [])]

    def step(self, images: Tensor, labels: Tensor, learning_rate: float, drop_path_rate: float) -> None:
        """One optimizer step on this process's share of a global batch.

        A step whose gradient is not finite leaves weights, momentum, average and batch-norm statistics as they were.

        Args:
            images, labels: uint8 (N, 3, H, W) and int64 (N,).
        """
        hp, network = self._hp, self.network
        network.train()
        finetune.evaluation_mode(self._frozen)
        network.set_drop_path_rate(drop_path_rate)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["factor"]
        torch._foreach_copy_(self._kept_statistics, self._statistics)
        sums = torch.zeros_like(self.meter.sums)

        self.optimizer.zero_grad(set_to_none=True)
        parts = hp.parts(len(labels))
        for part, (x, y) in enumerate(zip(images.tensor_split(parts), labels.tensor_split(parts)), 1):
            # Gradients travel between the processes once a step, with the last part.
            apart = isinstance(self._shared, DistributedDataParallel) and part < parts
            exchange = self._shared.no_sync() if apart else nullcontext()  # type: ignore[operator]
            with exchange:
                self._backward(self._loss(*self._on_device(x, y), sums))

        self._scaler.unscale_(self.optimizer)  # a scaled gradient would be clipped thousands of times too hard
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), hp.clip_gradients_l2_norm or torch.inf)
        if torch.isfinite(norm):
            self._scaler.step(self.optimizer)
            if self.average:
                self.average.update(self.updates)
            self.updates += 1
            self.bad_steps = 0
            self.meter.sums += sums
        else:
            torch._foreach_copy_(self._statistics, self._kept_statistics)
            self.skipped += 1
            self.bad_steps += 1
        self._scaler.update()
        self.batches += 1

    def _on_device(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """A part as the network takes it: normalised float32 images, and labels, on the device."""
        images = normalize(images.to(self._device, non_blocking=True))
        return images, labels.to(self._device, non_blocking=True)

    def _backward(self, loss: Tensor) -> None:
        """Adds a part's gradients up."""
        self._scaler.scale(loss).backward()

    def _loss(self, images: Tensor, labels: Tensor, sums: Tensor) -> Tensor:
        """A part's contribution to the mean loss over the global batch, tower included; counts into `sums`."""
        hp = self._hp
        dtype = devices.DTYPES[self.precision]
        with torch.autocast(self._device.type, dtype, enabled=dtype is not torch.float32):
            outputs = self._shared(images)
        logits, *tower = outputs if isinstance(outputs, tuple) else (outputs,)

        def smoothed(logits: Tensor) -> Tensor:
            return F.cross_entropy(logits.float(), labels, label_smoothing=hp.label_smoothing_rate, reduction="sum")

        loss = smoothed(logits)
        sums += Meter.count(logits.detach(), labels, loss.detach()).to(sums)
        for auxiliary in tower:
            loss = loss + hp.auxiliary_weight * smoothed(auxiliary)
        # DistributedDataParallel averages over processes, whatever their shares; this makes it the mean over images.
        return loss * (self._processes.world_size / hp.global_batch_size)

    def agree_on_statistics(self) -> None:
        """Gives all processes the first one's batch-norm statistics, as the next training step would."""
        buffers = list(self.network.buffers())
        if self.average:
            buffers += list(self.average.network.buffers())
        self._processes.broadcast(buffers)

    def note_validation(self, validation: dict[str, Any]) -> bool:
        """Remembers a validation line; whether it is the best so far (ties keep the older, NaN is never best)."""
        self.validated_at = self.batches
        candidates = [
            (validation[f"{prefix}top1_accuracy"], weights)
            for weights, prefix in (("raw", ""), ("ema", "ema_"))
            if f"{prefix}top1_accuracy" in validation and math.isfinite(validation[f"{prefix}loss"])
        ]
        if not candidates:
            return False
        accuracy, weights = max(candidates, key=lambda candidate: candidate[0])
        entry = {"top1_accuracy": accuracy, "epoch": validation["epoch"], "batches": self.batches, "weights": weights}
        ranked = sorted([*self.best, entry], key=lambda known: -known["top1_accuracy"])  # stable: the older stays first
        self.best = ranked[: self._hp.keep_best]
        return self.best[0] is entry

    def saved(self) -> tuple[dict[str, dict[str, Tensor]], checkpoint.State]:
        """What a checkpoint holds: groups of tensors, and plain values that say all about them."""
        names = self._learning
        momenta = self.optimizer.state_dict()["state"]
        tensors = {
            "model": self.network.state_dict(),
            "optimizer": {
                names[i]: entry["momentum_buffer"]
                for i, entry in momenta.items()
                if entry.get("momentum_buffer") is not None
            },
            "meter": {"sums": self._processes.sum(self.meter.sums.clone())},
        }
        if self.average:
            tensors["ema"] = self.average.network.state_dict()
        catalog = self._source.catalog
        state = {
            "gaeanet": __version__,
            "torch": torch.__version__,
            "world_size": self._processes.world_size,
            **{name: getattr(self, name) for name in _COUNTERS},
            "scaler": self._scaler.state_dict(),
            "hyperparameters": portable_hyperparameters(self._hp),
            "classes": list(catalog.classes),
            "class_names": list(catalog.class_names),
            "data": {
                "location": self._source.location,
                "fingerprint": catalog.fingerprint,
                "generated": self._source.generated,
                "settings": self._data,
            },
        }
        return tensors, {**state, "lineage": lineage_of(state, self._hp.seed, self.parent)}

    def start_from(self, start: finetune.Start) -> list[str]:
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

    def load(self, path: Path, tensors: dict[str, dict[str, Tensor]], state: checkpoint.State) -> list[str]:
        """Takes over a checkpoint as `checkpoint.load` reads it; returns sentences on what is not as it was.

        Raises:
            RequestError: It was made by other hyperparameters or from other classes.
        """
        run = path.parent.parent if path.parent.name == CHECKPOINTS else path
        for key, value in portable_hyperparameters(self._hp).items():
            if key not in OPERATIONAL and (saved := state["hyperparameters"].get(key, value)) != value:
                raise RequestError(
                    f"hyperparameters.{key} is {value!r}, but the run to resume in {run} has {saved!r}: "
                    "a resumed run keeps its recipe; start another with --run-dir"
                )
        check_table(
            self._source.catalog, state["classes"], f"{self._source.location}, against the run to resume in {run}"
        )
        try:
            self.network.load_state_dict(tensors["model"])
            if self.average:
                self.average.network.load_state_dict(tensors["ema"])
            names = self._learning
            saved_momenta = tensors["optimizer"]
            momenta = {i: {"momentum_buffer": saved_momenta[n]} for i, n in enumerate(names) if n in saved_momenta}
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": momenta})
            if self._processes.is_first:
                self.meter.sums.copy_(tensors["meter"]["sums"])
            else:
                self.meter.reset()
            for name in _COUNTERS:
                setattr(self, name, state[name])
        except (KeyError, RuntimeError) as error:
            raise RequestError(f"{path}: the checkpoint of another network: {reason(error)}") from None
        if state["scaler"] and self._scaler.is_enabled():
            self._scaler.load_state_dict(state["scaler"])
        self.parent = state.get("lineage", {}).get("parent")
        notes = []
        if state["world_size"] != self._processes.world_size:
            notes.append(
                f"this run goes on with {self._processes.world_size} processes after {state['world_size']}: the order "
                "of images, their augmentation and the schedule go on exactly; batch-norm statistics, drop-path draws "
                "and rounding are those of the new number"
            )
        return notes


_COUNTERS = ("batches", "updates", "skipped", "bad_steps", "rate_scale", "best", "validated_at")


def portable_data(data: Data) -> dict[str, Any]:
    """The data block with a directory's full name, so that the images are found from any other directory."""
    values = data.model_dump()
    for key in ("location", "data_download_dir"):
        if values[key] is not None and "://" not in values[key]:
            values[key] = str(Path(values[key]).expanduser().absolute())
    return values


def portable_hyperparameters(hp: Hyperparameters) -> dict[str, Any]:
    """All hyperparameters, the genotype spelled out, so that no file of this machine is needed to read them."""
    return {**hp.model_dump(), "genotype": hp.cell.to_dict()}
