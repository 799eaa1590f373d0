"""Measures the time of each stage of training on this machine and data set, within a budget of seconds.

The stages are those of a run and not copies of them: the source reads, `training.step.step` steps, `checkpoint.save`
saves. Of a large batch on a slow machine only as many images are measured as the budget allows, assuming that the
time per image is the same in the full batch, and that the optimizer's time does not depend on the batch.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from gaeanet.artifacts import checkpoint
from gaeanet.bench.memory import StepMemory
from gaeanet.bench.step import STEP, Steps, idle_rates
from gaeanet.bench.timing import clamped, repeated, wait
from gaeanet.config.experiment import Experiment
from gaeanet.data.images.decode import ImageError, opened
from gaeanet.data.images.transforms import TrainingTransform, ValidationTransform, image_size
from gaeanet.data.loading.loader import Augmentation, Batch, training_batches, validation_batches
from gaeanet.data.loading.workers import usable_workers
from gaeanet.data.sources.order import steps_per_epoch
from gaeanet.data.sources.source import Contents, Source
from gaeanet.errors import RequestError, RunError, counted, reason
from gaeanet.evaluation.meter import evaluate
from gaeanet.runtime import devices
from gaeanet.runtime.processes import Processes
from gaeanet.training.learner import build_learner
from gaeanet.training.objective import Classification
from gaeanet.training.preflight import check_open_files, check_shared_memory, needed_bytes
from gaeanet.training.recorded import Stepper
from gaeanet.training.state import RunState

T = TypeVar("T")

INPUT = ("reading", "decoding", "augmenting")
BUDGET = {
    "input": 0.15,
    "step": 0.25,
    "other ways": 0.05,
    "checkpoint": 0.03,
    "validation": 0.1,
    "pipeline": 0.1,
    "end to end": 0.17,
}
"""The fraction of the budget for each measurement; the rest is for starting."""
WAYS: dict[str, tuple[str | bool, ...]] = {"cuda": ("auto", "graphs", False)}
"""Values of `hyperparameters.compile` that are compared, by the type of the device."""
_IMAGES = 64
"""Most images that are measured one by one."""


@dataclass
class Findings:
    """The measurements.

    Attributes:
        seconds: Of each stage for one image: in one process for `INPUT`, of the whole pipeline for `input`, of `STEP`
            and `step` in a batch of the experiment's size. Of `listing` and `checkpoint` for one listing, one write.
        validation_start: Seconds until a validation's first batch.
        images: Number of images that each was measured on.
        memory: None where the system does not report it.
    """

    micro_batch: int
    seconds: dict[str, float] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    validation_start: float = 0.0
    memory: StepMemory | None = None
    facts: dict[str, Any] = field(default_factory=dict)


class Bench:
    """Measures the stages of one experiment, one after the other.

    Args:
        seconds: The budget. A stage is measured at least once, even if that takes longer.
        log: Receives the name of what is being measured.
    """

    def __init__(self, experiment: Experiment, source: Source, seconds: float, log: Callable[[str], None]) -> None:
        check_open_files(experiment)
        check_shared_memory(experiment)
        self.experiment, self.source, self.budget, self.log = experiment, source, seconds, log
        self.hp = hp = experiment.hyperparameters
        log("starting")
        self._processes = Processes()
        self.device = self._processes.device
        self.state = RunState(experiment, source, build_learner(hp, self._processes))
        self.findings = Findings(-(-hp.global_batch_size // hp.micro_batches(hp.global_batch_size)))
        self.workers = usable_workers(experiment.data.num_workers_train)
        self.epoch, self.largest = _epochs(hp.training_sizes, hp.epochs)
        self._training = TrainingTransform(hp)
        self._transform = _OfEpoch(self._training, self.epoch)

    def run(self, beside: Path) -> Findings:
        """Measures everything; checkpoints are written to the file system of the directory `beside`, and removed."""
        images = self._input()
        self._step(images)
        ways = self._other_ways(images)
        self._checkpoint(beside)
        self._validation()
        self._pipeline()
        self._end_to_end()
        self.findings.facts = {
            "device": devices.describe(self.device),
            "precision": self.state.learner.precision,
            "compilation": self.state.learner.way.text,
            "workers": self.workers,
            "ways": ways,
        }
        return self.findings

    def _note(self, stage: str, seconds: float, images: int) -> None:
        self.findings.seconds[stage], self.findings.images[stage] = seconds, images

    def _input(self) -> list[Tensor]:
        """Reads, decodes and augments image by image, as one worker does; returns the augmented images.

        As in training, only a random crop of each image is decoded; the crops decoded last are augmented.
        """
        seconds = self.budget * BUDGET["input"] / 3
        threads = torch.get_num_threads()
        torch.set_num_threads(1 if self.workers else threads)
        try:
            self.log("reading")
            contents = self._read(seconds)
            self.log("decoding")
            torch.default_generator.manual_seed(self.hp.seed)
            crops = [crop for crop in self._each("decoding", self._crop, contents, seconds) if crop is not None]
            if not crops:
                raise RunError(f"{self.source.location}: none of {len(contents)} training images decodes")
            self.log("augmenting")
            torch.default_generator.manual_seed(self.hp.seed)
            return self._each("augmenting", self._training.after_crop(self.epoch), crops, seconds)
        finally:
            torch.set_num_threads(threads)

    def _crop(self, data: Contents) -> Tensor | None:
        try:
            return self._training.crop(opened(data))
        except ImageError:  # a run reports and replaces them
            return None

    def _read(self, seconds: float) -> list[Contents]:
        """Reads new images each time: images read again would come from the page cache."""
        order = self.source.epoch_order(self.hp.seed, self.epoch)

        def fetch(begin: int, count: int) -> tuple[list[Contents], float]:
            indices = np.take(order, range(begin, begin + count), mode="wrap").tolist()
            began = time.perf_counter()
            images = list(self.source.fetch("train", indices))
            return images, (time.perf_counter() - began) / count

        fetch(0, 1)  # opens files and connections
        contents, once = fetch(1, 1)
        count = clamped(seconds / 6 / once, most=min(_IMAGES, self.hp.global_batch_size))
        rates, done, end = list[float](), 2, time.monotonic() + seconds
        while not rates or (time.monotonic() + rates[-1] * count < end and done < 50 * count):
            images, rate = fetch(done, count)
            contents = [*contents, *images][-_IMAGES:]
            rates.append(rate)
            done += count
        self._note("reading", statistics.median(rates), done - 2)
        return contents

    def _each(self, stage: str, work: Callable[[T], Any], items: Sequence[T], seconds: float) -> list[Any]:
        """Notes the median over passes of the mean time per item; returns the results of the last pass."""
        work(items[0])
        began = time.perf_counter()
        work(items[-1])
        few = items[: clamped(seconds / 6 / (time.perf_counter() - began), most=len(items))]
        done = list[Any]()

        def one_pass() -> None:
            done[:] = [work(item) for item in few]

        passes = repeated(one_pass, seconds)
        self._note(stage, statistics.median(passes) / len(few), len(few) * len(passes))
        return done

    def _step(self, images: Sequence[Tensor]) -> None:
        self.log("forward, backward, optimizer")
        steps = Steps(self.state.learner, self.hp, images, self.source.catalog.train.labels)
        prepared = needed_bytes(self.experiment, 1, 1) if self.device.type == "cpu" else 0
        seconds = self.budget * BUDGET["step"]
        self.findings.memory = steps.grow(self.findings.micro_batch, self.largest, prepared, seconds / 2)
        stages, total = steps.time(seconds / 2)
        count, batch = steps.count, self.hp.global_batch_size
        for stage in STEP[:-1]:
            self._note(stage, stages[stage] / count, count)
        self._note("optimizer", stages["optimizer"] / batch, count)
        self._fixed = stages["optimizer"] / batch - stages["optimizer"] / count
        self._note("step", total / count + self._fixed, count)

    def _other_ways(self, images: Sequence[Tensor]) -> dict[str, float]:
        """Images/s of a step by the other values of `compile`; those that do not work here are left out."""
        others = [way for way in WAYS.get(self.device.type, ()) if way != self.hp.compile]
        rates = {}
        for way in others:
            self.log(f"a step with compile: {str(way).lower()}")
            hp = self.hp.model_copy(update={"compile": way})
            try:
                learner = build_learner(hp, self._processes)
                steps = Steps(learner, hp, images, self.source.catalog.train.labels)
                steps.count = self.findings.images["step"]
                took = steps.time_whole(self.budget * BUDGET["other ways"] / len(others))
            except (RequestError, torch.OutOfMemoryError):
                continue
            rates[str(way).lower()] = steps.count / took
        return rates

    def _checkpoint(self, beside: Path) -> None:
        self.log("checkpoint")
        try:
            with tempfile.TemporaryDirectory(dir=beside, prefix=".gaeanet-bench-") as folder:
                times = repeated(
                    lambda: checkpoint.save(Path(folder), 0, *self.state.saved()),
                    self.budget * BUDGET["checkpoint"],
                )
        except OSError as error:
            raise RunError(f"{beside}: cannot write a checkpoint there: {reason(error)}") from None
        self._note("checkpoint", statistics.median(times), 0)

    def _validation(self) -> None:
        """Evaluates both networks on validation images, with workers; a second batch starts only if there is time."""
        self.log("validation")
        hp, networks, seconds = self.hp, list(self.state.learner.networks.values()), self.budget * BUDGET["validation"]
        per_image = self.findings.seconds["forward"] * len(networks) + sum(self.findings.seconds[s] for s in INPUT)
        size = clamped(seconds / 6 / per_image, most=min(hp.global_batch_size, 256))
        workers = usable_workers(self.experiment.data.num_workers_val)
        batches = validation_batches(
            self.source,
            ValidationTransform(hp.image_size),
            batch=size,
            workers=workers,
            pin_memory=self.device.type == "cuda",
        )
        asked, counts, end = list[float](), list[int](), time.monotonic() + seconds

        def watched() -> Iterator[Batch]:
            with _closing(batches) as stream:
                for batch in stream:
                    asked.append(time.perf_counter())
                    counts.append(len(batch.labels))
                    yield batch
                    if len(counts) > 1 and time.monotonic() > end:
                        break

        began = time.perf_counter()
        evaluate(networks, watched(), self.device)
        wait(self.device)
        ended = time.perf_counter()
        if not workers:  # each batch is prepared when it is asked for, the first one too
            self._note("validation", (ended - began) / sum(counts), sum(counts))
            return
        self.findings.validation_start = asked[0] - began
        first = 1 if len(counts) > 2 else 0  # the network's first pass in this mode takes longer
        # The last batch has nothing prepared beside it, and a GPU's queue may be long when it is handed over.
        until_ended = (ended - asked[first]) / sum(counts[first:])
        until_last = (asked[-1] - asked[first]) / max(1, sum(counts[first:-1]))
        self._note("validation", max(until_ended, until_last), sum(counts[first:]))

    def _batches(self, size: int, fraction: float) -> Any:
        """Training batches of `size` images from a `fraction` of an epoch on; the caller closes them."""
        steps = steps_per_epoch(len(self.source.catalog.train), size)
        batches = training_batches(
            self.source,
            self._transform,
            global_batch=size,
            epochs=2**31,
            seed=self.hp.seed,
            start=(self.epoch, int(fraction * steps)),
            workers=self.workers,
            pin_memory=self.device.type == "cuda",
            max_bad=self.experiment.data.max_bad,
        )
        return _closing(batches)

    def _pipeline(self) -> None:
        """The throughput of all workers, with no training step beside them."""
        self.log(f"the input pipeline ({counted(self.workers, 'worker')})")
        seconds, workers = self.budget * BUDGET["pipeline"], max(1, self.workers)
        per_image = sum(self.findings.seconds[stage] for stage in INPUT)
        size = clamped(seconds / 6 / per_image, most=self.hp.global_batch_size)
        turns = workers * clamped(0.1 / (size * per_image), most=100)  # each worker's batch comes once a round
        with self._batches(size, 1 / 3) as batches:
            times = repeated(lambda: [next(batches) for _ in range(turns)], seconds, warm_up=True)
        self._note("input", statistics.median(times) / (turns * size), turns * size * len(times))

    def _end_to_end(self) -> None:
        """Steps on batches as they arrive: the mean, so that occasional waits are included."""
        self.log("end to end")
        count, device, times = self.findings.images["step"], self.device, list[float]()
        stepper = Stepper(self.state.learner, Classification(self.hp), idle_rates(self.hp, device))
        seconds = self.budget * BUDGET["end to end"]
        with self._batches(count, 2 / 3) as batches:

            def work() -> None:
                batch = next(batches)
                devices.seed_draws(self.hp.seed, device)
                stepper.step(batch.images, batch.labels)

            repeated(work, seconds / 3)  # workers prefetch meanwhile, as far as they can
            began = time.perf_counter()
            times = repeated(work, seconds * 2 / 3, most=10**6)
            wait(device)
            took = (time.perf_counter() - began) / (len(times) * count)
        # No faster than the pipeline, even if batches had been prefetched.
        self._note("end to end", max(took + self._fixed, self.findings.seconds["input"]), len(times) * count)


@dataclass(frozen=True)
class _OfEpoch:
    """A transform fixed at one epoch: a few images may be many epochs of a small data set."""

    transform: TrainingTransform
    epoch: int

    def at(self, _: int) -> Augmentation:
        return self.transform.at(self.epoch)


def _epochs(sizes: tuple[int, int], epochs: int) -> tuple[int, int]:
    """The epoch whose images have the run's mean area, and the largest side."""
    first, last = sizes
    areas = [image_size(epoch, first=first, last=last, epochs=epochs) ** 2 for epoch in range(epochs)]
    mean = statistics.mean(areas)
    return min(range(epochs), key=lambda epoch: abs(areas[epoch] - mean)), round(max(areas) ** 0.5)


def _closing(batches: Iterable[Batch]) -> Any:
    """A context manager around an iterator of batches; on exit its workers end."""
    return closing(cast(Any, iter(batches)))
