"""The state of a run, as a checkpoint keeps it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from gaeanet import __version__
from gaeanet.artifacts import checkpoint
from gaeanet.artifacts.directory import CHECKPOINTS
from gaeanet.artifacts.lineage import Lineage, lineage_of
from gaeanet.config.data import Data
from gaeanet.config.experiment import OPERATIONAL, Experiment
from gaeanet.data.sources.catalog import check_table
from gaeanet.data.sources.source import Source
from gaeanet.errors import RequestError, counted, reason
from gaeanet.runtime.files import expanded
from gaeanet.training.learner import Learner, Tensors


class Extra(Protocol):
    """Further state of a run, beside its network's: a search has an architecture."""

    def tensors(self) -> Tensors: ...
    def values(self) -> dict[str, Any]: ...
    def load(self, tensors: Tensors, state: Mapping[str, Any]) -> None: ...


@dataclass
class RunState:
    """A run: its learner, its position in the data, and the best validations so far.

    Attributes:
        source: The images that it learns from; its catalog and fingerprint go into checkpoints.
        weights: The group of a checkpoint's tensors that holds the network's.
        rate_scale: Factor on the learning rate, halved by each rewind.
        best: The best validations so far, best first: accuracy, epoch, batches and kind of weights (`raw` or `ema`).
        validated_at: `learner.batches` at the last validation.
        parent: What is known of the checkpoint that the run started from; None for random weights.
    """

    experiment: Experiment
    source: Source
    learner: Learner
    extra: Extra | None = None
    weights: str = "model"
    rate_scale: float = 1.0
    best: list[dict[str, Any]] = field(default_factory=list)
    validated_at: int = 0
    parent: Lineage | None = None

    @property
    def batches(self) -> int:
        """Global batches processed: the position in the data."""
        return self.learner.batches

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
        self.best = ranked[: self.experiment.hyperparameters.keep_best]
        return self.best[0] is entry

    def saved(self) -> tuple[Tensors, checkpoint.State]:
        """Groups of tensors, and the plain values that belong to them. All processes must call this."""
        learner, hp, catalog = self.learner, self.experiment.hyperparameters, self.source.catalog
        updates, skipped, bad_steps = learner.counts.tolist()
        state = {
            "gaeanet": __version__,
            "torch": torch.__version__,
            "world_size": learner.processes.world_size,
            "batches": learner.batches,
            "updates": updates,
            "skipped": skipped,
            "bad_steps": bad_steps,
            "rate_scale": self.rate_scale,
            "best": self.best,
            "validated_at": self.validated_at,
            "scaler": learner.scaler.state_dict(),
            "hyperparameters": hp.spelled_out(),
            "classes": list(catalog.classes),
            "class_names": list(catalog.class_names),
            "data": {
                "location": self.source.location,
                "fingerprint": self.source.fingerprint,
                "sizes": self.source.sizes_fingerprint,
                "generated": self.source.generated,
                "images": _counts(self.source),
                "settings": portable_data(self.experiment.data),
            },
        }
        tensors = learner.tensors(self.weights)
        if self.extra:
            tensors |= self.extra.tensors()
            state |= self.extra.values()
        return tensors, {**state, "lineage": lineage_of(state, hp.seed, self.parent)}

    def load(self, path: Path, tensors: Tensors, state: checkpoint.State) -> list[str]:
        """Loads a checkpoint as `checkpoint.load` reads it; returns messages on what differs from before.

        Raises:
            RequestError: It was made by other hyperparameters, or from other classes or images.
        """
        learner = self.learner
        self._check(path.parent.parent if path.parent.name == CHECKPOINTS else path, state)
        try:
            learner.load(tensors, self.weights)
            learner.batches = state["batches"]
            learner.counts.copy_(torch.tensor([state["updates"], state["skipped"], state["bad_steps"]]))
            self.rate_scale, self.best = state["rate_scale"], state["best"]
            self.validated_at = state["validated_at"]
            if self.extra:
                self.extra.load(tensors, state)
        except (KeyError, RuntimeError) as error:
            raise RequestError(f"{path}: the checkpoint of another network: {reason(error)}") from None
        if state["scaler"] and learner.scaler.is_enabled():
            learner.scaler.load_state_dict(state["scaler"])
        self.parent = state.get("lineage", {}).get("parent")
        notes = []
        if state["world_size"] != learner.processes.world_size:
            mixes = self.experiment.hyperparameters.mixes
            notes.append(
                f"this run resumes with {counted(learner.processes.world_size, 'process')} after "
                f"{state['world_size']}: the order of images, their augmentation and the schedule are as before; "
                "batch-norm statistics, drop-path "
                f"draws{', partners of mixed images' * mixes} and rounding are those of the new number"
            )
        return notes

    def _check(self, run: Path, state: checkpoint.State) -> None:
        """Refuses the checkpoint of another recipe, or of other images."""
        experiment = self.experiment
        for key, value in experiment.hyperparameters.spelled_out().items():
            if key not in OPERATIONAL and (saved := state["hyperparameters"].get(key, value)) != value:
                raise RequestError(
                    f"hyperparameters.{key} is {value!r}, but the run to resume in {run} has {saved!r}: "
                    "a resumed run keeps its recipe; start another with --run-dir"
                )
        minival, saved = experiment.data.minival, state["data"].get("settings", {}).get("minival")
        if minival != saved:
            raise RequestError(
                f"data.minival is {_yaml(minival)}, but the run to resume in {run} has {_yaml(saved)}: it would learn "
                "from images that it was validated on, or the other way round; start another with --run-dir"
            )
        check_table(
            self.source.catalog, state["classes"], f"{self.source.location}, against the run to resume in {run}"
        )
        self._check_images(run, state["data"])

    def _check_images(self, run: Path, saved: Mapping[str, Any]) -> None:
        """Refuses other images than those that the position in the data, and the order of an epoch, belong to."""
        fingerprint, before, now = saved.get("fingerprint"), saved.get("images"), _counts(self.source)
        sizes, sizes_now = saved.get("sizes"), self.source.sizes_fingerprint
        if fingerprint in (None, self.source.fingerprint):
            if None in (sizes, sizes_now) or sizes == sizes_now:
                return
            difference = f"{_counted(now)} of the same names as before, but files of other sizes"
        elif before is None:  # of a version that did not save the counts
            difference = f"{_counted(now)}, not those that it learned from"
        elif before == now:
            difference = f"{_counted(now)} as before, but with other names"
        else:
            difference = f"{_counted(now)}, {_counted(before)} before"
        weights = "" if self.extra else f" and --init {run}, which starts from these weights"  # a search has no --init
        raise RequestError(
            f"{self.source.location}: the images have changed since the run to resume in {run} was stopped: "
            f"{difference} (fingerprint {self.source.fingerprint}, {fingerprint} before): restore them, or start "
            f"another run with --run-dir{weights}"
        )


def _counts(source: Source) -> dict[str, int]:
    return {"train": len(source.catalog.train), "val": len(source.catalog.val)}


def _counted(images: Mapping[str, int]) -> str:
    return f"{images['train']:,} training and {counted(images['val'], 'validation image')}"


def _yaml(value: float | None) -> str:
    return "null" if value is None else f"{value:g}"


def portable_data(data: Data) -> dict[str, Any]:
    """The data block with a directory's full name, so that the images are found from any other directory."""
    values = data.model_dump()
    for key in ("location", "data_download_dir"):
        if values[key] is not None and "://" not in values[key]:
            values[key] = str(expanded(values[key]).absolute())
    return values
