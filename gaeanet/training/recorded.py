"""Steps that a GPU replays: the kernels of one step, recorded as a CUDA graph and launched as one.

PyTorch launches a step of a network of cells as thousands of kernels of some microseconds each, one by one, and a fast
GPU waits for the next of them most of the time. A CUDA graph is a single launch: forward, backward, clipping,
update, average and counters. Everything that changes from step to step is in tensors that stay where they are: images
and labels are copied to them, rates, weights and statistics are read and written in place, and random draws follow the
generator. So a replayed step does what a launched one does.

Several processes add up their gradients between two graphs, so that neither holds a collective.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gaeanet.errors import reason
from gaeanet.optim.rates import Rates, StepRates
from gaeanet.training.acceleration import Way
from gaeanet.training.examples import MicroBatch, Shard
from gaeanet.training.learner import Learner
from gaeanet.training.step import JointObjective, Objective, all_reduce, backward, step, update

WARM_UP = 2
"""Steps before a recording: kernels are compiled, libraries loaded and workspaces allocated in the first."""

IN_FLIGHT = 2
"""Most steps that the host is ahead of the GPU: enough that it never waits, few enough that it stops when asked to."""


class CannotRecord(Exception):
    """A step could not be recorded; the message gives the reason."""


@dataclass
class _Recording:
    """A step for batches of one shape.

    Attributes:
        inputs: What the graphs read: tensors to fill before a replay.
        graphs: The parts of the step; gradients are added up between the first and the second.
    """

    inputs: list[Tensor]
    graphs: list[Callable[[], None]]


class Stepper:
    """The steps of a learner, replayed or launched, by its way; launched, too, where they cannot be recorded.

    Whoever replaces the tensors of the learner or the objective, instead of writing to them, needs a new one.
    """

    def __init__(self, learner: Learner, objective: Objective, rates: Rates) -> None:
        self._learner, self._objective, self._rates = learner, objective, rates
        self._recorder = Recorder(learner, objective, rates) if learner.way.recorded else None

    def step(self, images: Tensor, labels: Tensor) -> list[str]:
        """One optimizer step; returns a message where the way changes."""
        learner, messages = self._learner, []
        if self._recorder:
            try:
                self._recorder.step(images, labels)
                return []
            except CannotRecord as error:
                self._recorder = None
                learner.way = Way(f"{learner.way.text}; launched one by one instead: {error}")
                messages = [f"steps cannot be recorded ({error}): from here on they are launched one by one"]
        shard = self._objective.prepare(learner, images, labels)
        step(learner, shard, self._objective, self._rates.at(learner.updates))
        return messages


class Recorder:
    """Replays the steps of a learner; the first of each shape is recorded.

    A recording launches each kernel on the memory that it had when it was made: the tensors of the learner and the
    objective must stay where they are.

    Args:
        rates: The rates of all steps.
    """

    def __init__(self, learner: Learner, objective: Objective, rates: Rates) -> None:
        self._learner, self._objective, self._rates = learner, objective, rates
        self._recordings: dict[object, _Recording] = {}
        self._pool: Any = None
        self._in_flight: list[torch.cuda.Event] = []

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One optimizer step, as `step.step` makes it.

        Raises:
            CannotRecord: The step could not be recorded; nothing has changed.
        """
        learner, objective = self._learner, self._objective
        shard = objective.prepare(learner, images, labels)
        shard = shard._replace(micro_batches=list(shard.micro_batches))
        given = tensors_of(shard)
        key = (objective.fixed, *((tensor.shape, tensor.dtype) for tensor in given))
        if key not in self._recordings:
            self._recordings[key] = self._record(shard)
        recording = self._recordings[key]
        for tensor, value in zip(recording.inputs, given):
            tensor.copy_(value)
        first, *rest = recording.graphs
        first()
        for graph in rest:
            all_reduce(learner)
            graph()
        learner.batches += 1
        self._wait()

    def _wait(self) -> None:
        """Waits until no more than `IN_FLIGHT` steps are under way."""
        event = torch.cuda.Event(blocking=True)
        event.record()
        self._in_flight.append(event)
        if len(self._in_flight) > IN_FLIGHT:
            self._in_flight.pop(0).synchronize()

    def _record(self, shard: Shard) -> _Recording:
        learner, objective, rates = self._learner, self._objective, self._rates
        held = Shard(
            [
                MicroBatch(images.clone(), tuple(target.clone() for target in targets), is_last)
                for images, targets, is_last in shard.micro_batches
            ],
            [(images.clone(), labels.clone()) for images, labels in shard.others],
        )
        results: list[tuple[StepRates, Tensor | None, Tensor]] = []

        def gradients() -> None:
            now = rates.at(learner.updates)  # results stay in the graphs' memory from the first part to the second
            results[:] = [(now, *backward(learner, held, objective, now))]

        def moves() -> None:
            now, finite, sums = results[0]
            update(learner, finite, sums, objective, now)

        def whole() -> None:
            gradients()
            moves()

        restorers = [learner.snapshot()]
        if isinstance(objective, JointObjective):
            restorers.append(objective.snapshot())
        try:
            with torch.random.fork_rng([learner.device]), beside():
                for _ in range(WARM_UP):
                    gradients()
                    all_reduce(learner)
                    moves()
            learner.network.zero_grad(set_to_none=True)  # their memory is not the graph's
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            parts = [whole] if learner.processes.world_size == 1 else [gradients, moves]
            graphs = [record(part, self._pool) for part in parts]
        except RuntimeError as error:  # out of memory, too
            raise CannotRecord(reason(error)) from error
        finally:
            for restore in restorers:
                restore()
        return _Recording(tensors_of(held), graphs)


def tensors_of(shard: Shard) -> list[Tensor]:
    """All tensors of a shard, in one order."""
    others = [tensor for examples in shard.others for tensor in examples]
    return [*others, *(tensor for micro in shard.micro_batches for tensor in (micro.images, *micro.targets))]


@contextmanager
def beside() -> Iterator[None]:
    """On a stream beside the current one, as PyTorch wants it before a recording; each waits for the other."""
    before, stream = torch.cuda.current_stream(), torch.cuda.Stream()
    stream.wait_stream(before)
    with torch.cuda.stream(stream):
        yield
    before.wait_stream(stream)


def record(work: Callable[[], None], pool: Any) -> Callable[[], None]:
    """Records the kernels that `work` launches, without running them; returns what replays them."""
    graph = torch.cuda.CUDAGraph()
    # Of this thread alone: loaders pin memory in another one, which a recording would forbid.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        work()
    return graph.replay
