"""The parts of a training step, timed inside of the step itself, and the memory that it takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from gaeanet.bench import memory
from gaeanet.bench.timing import repeated, wait
from gaeanet.config.experiment import Hyperparameters
from gaeanet.training.learner import TrainingState

T = TypeVar("T")

STEP = ("transfer", "forward", "backward", "optimizer")
"""The parts of a step; the last is all that is neither of the others: clipping, the update, the average, counting."""


class TimedState(TrainingState):
    """A state whose steps, while `laps` is a mapping, add the seconds of their parts up in it."""

    laps: dict[str, float] | None = None

    def _examples(self, images: Tensor, labels: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        return self._lap("transfer", lambda: super(TimedState, self)._examples(images, labels, part))

    def _loss(self, images: Tensor, labels: Tensor, sums: Tensor) -> Tensor:
        return self._lap("forward", lambda: super(TimedState, self)._loss(images, labels, sums))

    def _backward(self, loss: Tensor) -> None:
        self._lap("backward", lambda: super(TimedState, self)._backward(loss))

    def _lap(self, stage: str, work: Callable[[], T]) -> T:
        if self.laps is None:
            return work()
        wait(self._device)
        began = time.perf_counter()
        done = work()
        wait(self._device)
        self.laps[stage] = self.laps.get(stage, 0.0) + time.perf_counter() - began
        return done


class Steps:
    """Steps of `state` on given images, over and over.

    Args:
        images: uint8 (3, size, size) each, as the augmentation makes them.
        labels: To take labels from.

    Attributes:
        count: Images in a step that is measured.
    """

    def __init__(
        self,
        state: TimedState,
        device: torch.device,
        hp: Hyperparameters,
        images: Sequence[Tensor],
        labels: NDArray[np.int32],
    ) -> None:
        self._state, self._device, self._hp = state, device, hp
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
        state, work = self._state, self._whole_step(self.count)
        laps, rests = list[dict[str, float]](), list[float]()

        def timed() -> None:
            began, state.laps = time.perf_counter(), {}
            work()
            rests.append(time.perf_counter() - began - sum(state.laps.values()))
            laps.append(state.laps)

        work()
        # A GPU is held up where the clock is looked at between the parts: there the whole is timed apart.
        apart = self._device.type != "cpu"
        times = repeated(timed, seconds / 2 if apart else seconds)
        state.laps = None
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
            self._state.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()

    def _whole_step(self, count: int, side: int | None = None) -> Callable[[], None]:
        """A step on `count` images scaled to `side`; its rate of 0 costs the same and keeps the weights as they are."""
        block = torch.stack([self._images[place % len(self._images)] for place in range(count)])
        block = block.contiguous(memory_format=torch.channels_last)
        if side not in (None, block.shape[-1]):
            block = F.interpolate(block.float(), side).byte().contiguous(memory_format=torch.channels_last)
        labels = torch.from_numpy(np.resize(self._labels, count)).long()

        def step() -> None:
            self._state.step(block, labels, 0.0, self._hp.drop_path_prob / 2)
            wait(self._device)

        return step
