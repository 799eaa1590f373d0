"""What changes while any network learns (weights, optimizer, position, the best so far), and its way to disk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gaeanet import __version__
from gaeanet.artifacts import checkpoint
from gaeanet.artifacts.directory import CHECKPOINTS
from gaeanet.artifacts.lineage import Lineage, lineage_of
from gaeanet.config.experiment import OPERATIONAL, Data, Experiment
from gaeanet.data.images.transforms import normalize
from gaeanet.data.sources.catalog import check_table
from gaeanet.data.sources.source import Source
from gaeanet.errors import RequestError, reason
from gaeanet.evaluation.meter import Meter
from gaeanet.models.fast import accelerate
from gaeanet.optim.groups import Group
from gaeanet.optim.muon import Muon
from gaeanet.runtime import devices
from gaeanet.runtime.host import keep_freed_memory
from gaeanet.runtime.processes import Processes


class RunState:
    """A network that learns on its share of each global batch, its optimizer, and how far it is.

    Attributes:
        network: The network in training.
        compilation: A sentence on what computes it.
        meter: Sums since the last training line, of this process.
        batches: Global batches worked off: the position in the data.
        updates: Optimizer steps made: the position in the schedule. Less than `batches` by the skipped ones.
        skipped, bad_steps: Steps skipped for a gradient that was not finite, in all and since the last good one.
        rate_scale: Factor on the learning rate, halved by each rewind.
        best: The best validations so far, best first: accuracy, epoch, batches and kind of weights (`raw` or `ema`).
        validated_at: `batches` at the last validation.
        parent: What is known of the checkpoint that the run started from; None for random weights.
    """

    WEIGHTS = "model"
    """The group of a checkpoint's tensors that holds the network's."""

    COUNTERS: tuple[str, ...] = (
        "batches",
        "updates",
        "skipped",
        "bad_steps",
        "rate_scale",
        "best",
        "validated_at",
    )
    """Attributes that a checkpoint holds as they are."""

    def __init__(self, experiment: Experiment, source: Source, processes: Processes) -> None:
        hp = self._hp = experiment.hyperparameters
        self._device = processes.device
        self._source, self._processes = source, processes
        self._data = portable_data(experiment.data)
        self.precision = devices.precision_for(hp.precision, self._device)
        self.meter = Meter(self._device)
        self.batches = self.updates = self.skipped = self.bad_steps = 0
        self.rate_scale = 1.0
        self.best: list[dict[str, Any]] = []
        self.validated_at = 0
        self.parent: Lineage | None = None

    def _take(self, network: nn.Module, groups: Sequence[Group], compilation: str = "not compiled") -> None:
        """The network, on its device and compiled if it is to be, and what of it learns; makes it as fast as can be."""
        hp, device = self._hp, self._device
        if device.type == "cpu":
            keep_freed_memory()
        if device.type == "cpu" and self.precision == "fp32" and compilation == "not compiled":
            compilation = accelerate(network)
        self.compilation = compilation
        self._shared: nn.Module = network
        if self._processes.world_size > 1:
            # Before each forward the first process's batch-norm statistics replace the others'.
            ids = [device] if device.type == "cuda" else None
            self._shared = DistributedDataParallel(network, device_ids=ids, gradient_as_bucket_view=True)
        self._learning = {name: value for group in groups for name, value in group.parameters}
        rated = [
            {
                "params": [value for _, value in group.parameters],
                "factor": group.factor,
                "weight_decay": hp.weight_decay if group.decays else 0.0,
            }
            for group in groups
        ]
        self.optimizer: torch.optim.Optimizer
        if hp.optimizer == "muon":
            self.optimizer = Muon(rated, lr=hp.learning_rate, momentum=hp.momentum)
        else:
            fused = True if device.type == "cpu" else None  # None lets PyTorch choose; on CPUs it chooses the slow way
            self.optimizer = torch.optim.SGD(rated, lr=hp.learning_rate, momentum=hp.momentum, fused=fused)
        self._scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        self._statistics = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
        self._kept_statistics = [buffer.clone() for buffer in self._statistics]

    @property
    def network(self) -> nn.Module:
        """The network in training."""
        raise NotImplementedError

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The network in training, and others that follow it, by the prefix of their columns in the log."""
        return {"": self.network}

    def _loss(self, images: Tensor, labels: Tensor, sums: Tensor) -> Tensor:
        """A part's contribution to the mean loss over the global batch; counts into `sums`."""
        raise NotImplementedError

    def _begin_step(self, learning_rate: float) -> Tensor:
        """Remembers the batch-norm statistics and sets the rate; returns the sums of this step, still zero."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["factor"]
        torch._foreach_copy_(self._kept_statistics, self._statistics)
        return torch.zeros_like(self.meter.sums)

    def _learn(self, images: Tensor, labels: Tensor, sums: Tensor) -> None:
        """Adds up the gradients of this process's share, in as many parts as it takes."""
        self.optimizer.zero_grad(set_to_none=True)
        for part in self._parts(len(labels)):
            # Gradients travel between the processes once a step, with the last part.
            apart = isinstance(self._shared, DistributedDataParallel) and part.stop < len(labels)
            exchange = self._shared.no_sync() if apart else nullcontext()  # type: ignore[operator]
            with exchange:
                self._backward(self._loss(*self._examples(images, labels, part), sums))

    def _parts(self, count: int) -> list[slice]:
        """The parts in which a share of `count` images is worked off, as alike as can be, the larger ones first."""
        parts = self._hp.parts(count)
        size, larger = divmod(count, parts)
        ends = [(k + 1) * size + min(k + 1, larger) for k in range(parts)]
        return [slice(start, end) for start, end in zip([0, *ends], ends)]

    def _examples(self, images: Tensor, labels: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """What the network learns from a part of this process's share, on the device."""
        return self._on_device(images[part], labels[part])

    def _on_device(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """A part as the network takes it: normalised float32 images, and labels, on the device."""
        images = normalize(images.to(self._device, non_blocking=True))
        return images, labels.to(self._device, non_blocking=True)

    def _backward(self, loss: Tensor) -> None:
        """Adds a part's gradients up."""
        self._scaler.scale(loss).backward()

    def _update(self, sums: Tensor, others: Sequence[Tensor] = ()) -> bool:
        """Moves the weights; False where their gradient, or one of `others`, is not finite: then nothing moves."""
        self._scaler.unscale_(self.optimizer)  # a scaled gradient would be clipped thousands of times too hard
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self._hp.clip_gradients_l2_norm or torch.inf)
        good = bool(torch.isfinite(norm)) and are_finite(others)
        if good:
            self._scaler.step(self.optimizer)
        self._end_step(good, sums)
        self._scaler.update()
        return good

    def _end_step(self, good: bool, sums: Tensor) -> None:
        """Counts a step; one that is not good leaves the batch-norm statistics as they were."""
        if good:
            self.updates += 1
            self.bad_steps = 0
            self.meter.sums += sums
        else:
            torch._foreach_copy_(self._statistics, self._kept_statistics)
            self.skipped += 1
            self.bad_steps += 1
        self.batches += 1

    def _mean_over_global_batch(self, loss: Tensor) -> Tensor:
        """A part's sum of losses as its contribution to the mean over the global batch."""
        # DistributedDataParallel averages over processes, whatever their shares; this makes it the mean over images.
        return loss * (self._processes.world_size / self._hp.global_batch_size)

    def agree_on_statistics(self) -> None:
        """Gives all processes the first one's batch-norm statistics, as the next training step would."""
        self._processes.broadcast(list(self.network.buffers()))

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
        names = list(self._learning)
        momenta = self.optimizer.state_dict()["state"]
        tensors = {
            self.WEIGHTS: self.network.state_dict(),
            "optimizer": {
                names[i]: entry["momentum_buffer"]
                for i, entry in momenta.items()
                if entry.get("momentum_buffer") is not None
            },
            "meter": {"sums": self._processes.sum(self.meter.sums.clone())},
        }
        catalog = self._source.catalog
        state = {
            "gaeanet": __version__,
            "torch": torch.__version__,
            "world_size": self._processes.world_size,
            **{name: getattr(self, name) for name in self.COUNTERS},
            "scaler": self._scaler.state_dict(),
            "hyperparameters": self._hp.spelled_out(),
            "classes": list(catalog.classes),
            "class_names": list(catalog.class_names),
            "data": {
                "location": self._source.location,
                "fingerprint": self._source.fingerprint,
                "generated": self._source.generated,
                "settings": self._data,
            },
        }
        return tensors, {**state, "lineage": lineage_of(state, self._hp.seed, self.parent)}

    def load(self, path: Path, tensors: dict[str, dict[str, Tensor]], state: checkpoint.State) -> list[str]:
        """Takes over a checkpoint as `checkpoint.load` reads it; returns sentences on what is not as it was.

        Raises:
            RequestError: It was made by other hyperparameters or from other classes.
        """
        run = path.parent.parent if path.parent.name == CHECKPOINTS else path
        for key, value in self._hp.spelled_out().items():
            if key not in OPERATIONAL and (saved := state["hyperparameters"].get(key, value)) != value:
                raise RequestError(
                    f"hyperparameters.{key} is {value!r}, but the run to resume in {run} has {saved!r}: "
                    "a resumed run keeps its recipe; start another with --run-dir"
                )
        if (minival := self._data["minival"]) != (saved := state["data"].get("settings", {}).get("minival")):
            raise RequestError(
                f"data.minival is {_yaml(minival)}, but the run to resume in {run} has {_yaml(saved)}: it would learn "
                "from images that it was validated on, or the other way round; start another with --run-dir"
            )
        check_table(
            self._source.catalog, state["classes"], f"{self._source.location}, against the run to resume in {run}"
        )
        try:
            self._load_tensors(tensors)
            for name in self.COUNTERS:
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
                "of images, their augmentation and the schedule go on exactly; batch-norm statistics, drop-path "
                f"draws{', partners of mixed images' * self._hp.mixes} and rounding are those of the new number"
            )
        return notes

    def _load_tensors(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        self.network.load_state_dict(tensors[self.WEIGHTS])
        momenta = {
            # In the weight's own memory format, which the file does not keep and SGD's fused step takes for granted.
            i: {"momentum_buffer": torch.empty_like(weight).copy_(tensors["optimizer"][name])}
            for i, (name, weight) in enumerate(self._learning.items())
            if name in tensors["optimizer"]
        }
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": momenta})
        if self._processes.is_first:
            self.meter.sums.copy_(tensors["meter"]["sums"])
        else:
            self.meter.reset()


def are_finite(gradients: Sequence[Tensor]) -> bool:
    """Whether every value is a number."""
    return all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def _yaml(value: float | None) -> str:
    return "null" if value is None else f"{value:g}"


def portable_data(data: Data) -> dict[str, Any]:
    """The data block with a directory's full name, so that the images are found from any other directory."""
    values = data.model_dump()
    for key in ("location", "data_download_dir"):
        if values[key] is not None and "://" not in values[key]:
            values[key] = str(Path(values[key]).expanduser().absolute())
    return values
