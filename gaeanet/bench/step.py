"""The parts of a training step, timed inside of the step itself, and the memory that it takes."""

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
from gaeanet.training.learner import Learner
from gaeanet.training.objective import Classification
from gaeanet.training.step import Timer, step

STEP = ("transfer", "forward", "backward", "optimizer")
"""The parts of a step; the last is all that is neither of the others: clipping, the update, the average, counting."""


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
    """Steps of a learner on given images, over and over, at a rate of 0, which costs the same and keeps the weights.

    Args:
        images: uint8 (3, size, size) each, as the augmentation makes them.
        labels: To take labels from.

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
        self._rates = still(hp, learner.device)
        self._images, self._labels = images, labels
        self.count = 2

    def grow(self, at_once: int, side: int, prepared: int, seconds: float) -> memory.StepMemory | None:
        """Finds how many images, `at_once` at most, a step can have in the memory there is and in a third of `seconds`.

        On a GPU it begins with all of them, and halves them where they do not fit.

        Args:
            side: Of the images for which memory is to be found.
            prepared: Bytes of batches that will wait in the same memory.

        Returns:
            What memory they take; None where the system does not tell.
        """
        found: memory.StepMemory | None = None
        peaks: dict[int, int] = {}
        self.count = 2 if self._device.type == "cpu" else at_once
        self._first_step()
        before = memory.held(self._device) if self._device.type in ("cpu", "cuda") else 0
        while True:
            work = self._whole_step(self.count, side)
            peak = memory.peak_of(work, self._device)
            (took,) = repeated(work, 0)
            if peak is not None:
                peaks[self.count] = peak
                found = memory.StepMemory.of(peaks, before, at_once, prepared, memory.room(self._device))
            fits = max(self.count, found.fits) if found else at_once
            more = min(at_once, fits, 8 * self.count, int(self.count * seconds / 3 / took))
            if len(peaks) == 1 and self.count == 2:  # one size tells too little of memory
                more = max(more, min(4, at_once))
            if more <= self.count or (more < 2 * self.count and more < at_once):
                return found
            self.count = more

    def time(self, seconds: float) -> tuple[dict[str, float], float]:
        """Seconds of each part of a step of `count` images, and of the whole: medians."""
        work = self._whole_step(self.count)
        laps, rests = list[dict[str, float]](), list[float]()

        def timed() -> None:
            began, lap = time.perf_counter(), Laps(self._device)
            work(lap)
            rests.append(time.perf_counter() - began - sum(lap.seconds.values()))
            laps.append(lap.seconds)

        work()
        # A GPU is held up where the clock is looked at between the parts: there the whole is timed apart.
        apart = self._device.type != "cpu"
        times = repeated(timed, seconds / 2 if apart else seconds)
        if apart:
            times = repeated(work, seconds / 2)
        parts = {stage: statistics.median(lap[stage] for lap in laps) for stage in STEP[:-1]}
        return {**parts, STEP[-1]: statistics.median(rests)}, statistics.median(times)

    def _first_step(self) -> None:
        """A step that builds and compiles what is to be, and begins the momenta."""
        while True:
            try:
                self._whole_step(self.count)()
                return
            except torch.OutOfMemoryError:
                if self.count <= 2:
                    raise
            self.count //= 2
            self._learner.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()

    def _whole_step(self, count: int, side: int | None = None) -> Callable[..., None]:
        """A step on `count` images scaled to `side`, which takes a timer."""
        block = torch.stack([self._images[place % len(self._images)] for place in range(count)])
        block = block.contiguous(memory_format=torch.channels_last)
        if side not in (None, block.shape[-1]):
            block = F.interpolate(block.float(), side).byte().contiguous(memory_format=torch.channels_last)
        labels = torch.from_numpy(np.resize(self._labels, count)).long()

        def work(timer: Timer = nullcontext) -> None:
            step(self._learner, block, labels, self._objective, self._rates, timer)
            wait(self._device)

        return work


def still(hp: Hyperparameters, device: torch.device) -> Rates:
    """Rates under which a step costs what it always does, and moves no weight."""
    return Rates.constant(Row(0.0, hp.drop_path_prob / 2, 1.0 - hp.ema_decay), device)
