"""A process's shard of a global batch as a step takes it: micro-batches of normalised images on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from torch import Tensor

from gaeanet.data.images.transforms import normalize
from gaeanet.runtime.transfer import to_device
from gaeanet.training.learner import Learner
from gaeanet.training.mixing import Mix

Timer = Callable[[str], AbstractContextManager[Any]]
"""Times a stage of the step: `transfer`, `forward` or `backward`."""


class MicroBatch(NamedTuple):
    """Examples of one forward pass.

    Attributes:
        images: float32 (N, 3, H, W), normalised.
        targets: Labels, int64 (N,); of mixed images those of each and its partner, (N, 2), and their weights, (2,).
        is_last: Whether it is the last of its step.
    """

    images: Tensor
    targets: tuple[Tensor, ...]
    is_last: bool


class Shard(NamedTuple):
    """All that a step learns from.

    Attributes:
        micro_batches: The images and targets of the weights.
        others: Those of a search's architecture in micro-batches: uint8 (N, 3, H, W) and int64 (N,), on the device.
    """

    micro_batches: Iterable[MicroBatch]
    others: Sequence[tuple[Tensor, Tensor]] = ()


def micro_batches(
    learner: Learner, images: Tensor, labels: Tensor, mix: Mix | None = None, timer: Timer = nullcontext
) -> Iterable[MicroBatch]:
    """The micro-batches of a shard, uint8 (N, 3, H, W) and int64 (N,), mixed as `mix` says.

    Of several each is prepared when the step asks for it, so that memory holds the float images of one.
    """
    slices = list(micro_slices(len(labels), learner.micro_batch))
    prepared = _prepared(learner, images, labels, slices, mix, timer)
    return list(prepared) if len(slices) == 1 else prepared


def _prepared(
    learner: Learner, images: Tensor, labels: Tensor, slices: Sequence[slice], mix: Mix | None, timer: Timer
) -> Iterator[MicroBatch]:
    def on_device(part: slice) -> tuple[Tensor, Tensor]:
        return normalize(to_device(images[part], learner.device)), to_device(labels[part], learner.device)

    for micro in slices:
        with timer("transfer"):
            inputs, own = on_device(micro)
            targets: tuple[Tensor, ...] = (own,)
            if mix is not None:
                after = micro.stop % len(labels)
                follower, its_label = on_device(slice(after, after + 1))
                weights = mix.weights.to(learner.device, non_blocking=True)
                inputs, targets = mix.images(inputs, follower), (mix.labels(own, its_label), weights)
        yield MicroBatch(inputs, targets, micro.stop == len(labels))


def micro_slices(count: int, largest: int | None) -> Iterator[slice]:
    """The micro-batches of a shard of `count` images: at most `largest` each, as alike as can be, larger ones first."""
    number = -(-count // (largest or count))
    size, larger = divmod(count, number)
    start = 0
    for k in range(number):
        stop = start + size + (k < larger)
        yield slice(start, stop)
        start = stop
