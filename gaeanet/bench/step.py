"""Times the stages of a training step where a run has them, and measures its memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from gaeanet.bench import memory
from gaeanet.bench.timing import repeated, wait
from gaeanet.config.experiment import Hyperparameters
from gaeanet.optim.rates import Rates, Row
from gaeanet.training.examples import Timer
from gaeanet.training.learner import Learner
from gaeanet.training.objective import Classification
from gaeanet.training.recorded import Stepper
from gaeanet.training.step import step

STEP = ("transfer", "forward", "backward", "optimizer")
"""The stages of a step; the last is all that remains: clipping, update, average, counters."""


class Laps:
    """A timer for the stages of a step: adds up the seconds of each, and waits for the device at their ends."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        wait(self._device)
        began = time.perf_counter()
        yield
        wait(self._device)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began


class Steps:
    """Repeated steps of a learner on given images, at a learning rate of 0: same cost, weights unchanged.

    Args:
        images: uint8 (3, size, size) each, as the augmentation makes them.
        labels: Labels, repeated as needed.

    Attributes:
        count: Images in a step that is measured.
    """

    def __init__(
        self,
        learner: Learner,
        hp: Hyperparameters,
        images: Sequence[Tensor],
        labels: NDArray[np.int32],
    ) -> None:
        self._learner, self._device = learner, learner.device
        self._objective = Classification(hp)
        self._rates = idle_rates(hp, learner.device)
        self._stepper = Stepper(learner, self._objective, self._rates)
        self._images, self._labels = images, labels
        self.count = 2

    def grow(self, micro_batch: int, side: int, prepared: int, seconds: float) -> memory.StepMemory | None:
        """Sets `count` to the most images, up to `micro_batch`, that fit into memory and into a third of `seconds`.

        On a GPU it starts with `micro_batch` images, and halves them until they fit.

        Args:
            side: Of the images, in pixels, with which memory is measured.
            prepared: Bytes of prefetched batches in the same memory.

        Returns:
            The memory of a step; None where the system does not report it.
        """
        estimate: memory.StepMemory | None = None
        peaks: dict[int, int] = {}
        self.count = 2 if self._device.type == "cpu" else micro_batch
        self._first_step()
        before = memory.allocated(self._device) if self._device.type in ("cpu", "cuda") else 0
        while True:
            work = self._full_step(self.count, side)
            peak = memory.peak_of(work, self._device)
            (took,) = repeated(work, 0)
            if peak is not None:
                peaks[self.count] = peak
                available = memory.available(self._device)
                estimate = memory.StepMemory.of(peaks, before, micro_batch, prepared, available)
            fits = max(self.count, estimate.fits) if estimate else micro_batch
            more = min(micro_batch, fits, 8 * self.count, int(self.count * seconds / 3 / took))
            if len(peaks) == 1 and self.count == 2:  # one size does not separate the memory per image
                more = max(more, min(4, micro_batch))
            if more <= self.count or (more < 2 * self.count and more < micro_batch):
                return estimate
            self.count = more

    def time(self, seconds: float) -> tuple[dict[str, float], float]:
        """Median seconds of each stage of a step of `count` images, and of the full step."""
        work = self._full_step(self.count)
        laps, rests = list[dict[str, float]](), list[float]()

        def timed() -> None:
            began, lap = time.perf_counter(), Laps(self._device)
            work(lap)
            rests.append(time.perf_counter() - began - sum(lap.seconds.values()))
            laps.append(lap.seconds)

        work()
        # Timing the stages synchronises a GPU between them: there the full step is timed separately.
        separately = self._device.type != "cpu"
        times = repeated(timed, seconds / 2 if separately else seconds)
        if separately:
            times = repeated(work, seconds / 2)
        stages = {stage: statistics.median(lap[stage] for lap in laps) for stage in STEP[:-1]}
        return {**stages, STEP[-1]: statistics.median(rests)}, statistics.median(times)

    def time_whole(self, seconds: float) -> float:
        """Median seconds of the full step of `count` images."""
        work = self._full_step(self.count)
        work()  # records or compiles
        return statistics.median(repeated(work, seconds))

    def _first_step(self) -> None:
        """Runs a step that compiles kernels and the network, and allocates the momenta."""
        while True:
            try:
                self._full_step(self.count)()
                return
            except torch.OutOfMemoryError:
                if self.count <= 2:
                    raise
            self.count //= 2
            self._learner.network.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()

    def _full_step(self, count: int, side: int | None = None) -> Callable[..., None]:
        """A step on `count` images scaled to `side`, which takes a timer."""
        block = torch.stack([self._images[k % len(self._images)] for k in range(count)])
        block = block.contiguous(memory_format=torch.channels_last)
        if side not in (None, block.shape[-1]):
            block = F.interpolate(block.float(), side).byte().contiguous(memory_format=torch.channels_last)
        labels = torch.from_numpy(np.resize(self._labels, count)).long()

        learner = self._learner

        def work(timer: Timer = nullcontext) -> None:
            if timer is nullcontext:
                self._stepper.step(block, labels)
            else:
                shard = self._objective.prepare(learner, block, labels, timer)
                step(learner, shard, self._objective, self._rates.at(learner.updates), timer)
            wait(self._device)

        return work


def idle_rates(hp: Hyperparameters, device: torch.device) -> Rates:
    """Rates of 0 for the weights: a step costs the same and changes no weight."""
    return Rates.constant(Row(0.0, hp.drop_path_prob / 2, 1.0 - hp.ema_decay), device)
