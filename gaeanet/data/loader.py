"""Batches.

A batch is asked for by its position (epoch, step), and whatever process prepares it works out from the position alone
which samples it holds and what their augmentation draws are. So one stream runs through all epochs, prepared ahead
by workers that are started once, and may begin anywhere.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gaeanet.data.catalog import Catalog
from gaeanet.data.images import ImageError, to_pixels
from gaeanet.data.order import epoch_order, positions, sample_seed, share, steps_per_epoch
from gaeanet.errors import RunError

Transform = Callable[[Tensor], Tensor]


class TransformOfEpoch(Protocol):
    """A transform that may change from epoch to epoch."""

    def at(self, epoch: int) -> Transform: ...


class Source(Protocol):
    """Where images come from."""

    catalog: Catalog
    location: str
    generated: bool
    notes: list[str]

    def read(self, split: str, index: int) -> bytes | NDArray[np.uint8]: ...

    def path(self, split: str, index: int) -> str: ...


class Batch(NamedTuple):
    """Images uint8 (N, 3, H, W) in channels-last memory, labels int64 (N,), and the position they belong to."""

    epoch: int
    step: int
    images: Tensor
    labels: Tensor


def _load(source: Source, split: str, indices: NDArray[np.int64], transform: Transform, seeds: list[int]) -> Tensor:
    """The transformed images of `indices`, one after the other written into one block of memory."""
    block: Tensor | None = None
    for place, index in enumerate(indices.tolist()):
        try:
            pixels = to_pixels(source.read(split, index))
        except ImageError as error:
            raise RunError(f"{source.path(split, index)}: {error}") from None
        if seeds:
            torch.default_generator.manual_seed(seeds[place])
        image = transform(pixels)
        if block is None:
            block = torch.empty((len(indices), *image.shape[1:], 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        block[place] = image
    assert block is not None
    return block


class _TrainingBatches(Dataset[Batch]):
    def __init__(
        self, source: Source, transform: TransformOfEpoch, global_batch: int, seed: int, rank: int, world_size: int
    ) -> None:
        self._source, self._transform, self._seed = source, transform, seed
        self._global_batch = global_batch
        self._share = share(global_batch, rank, world_size)
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def __getitem__(self, position: tuple[int, int]) -> Batch:
        epoch, step = position
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, epoch_order(len(self._source.catalog.train), self._seed, epoch)
        indices = self._order[1][step * self._global_batch : (step + 1) * self._global_batch][self._share]
        seeds = [sample_seed(self._seed, epoch, index) for index in indices.tolist()]
        images = _load(self._source, "train", indices, self._transform.at(epoch), seeds)
        return Batch(epoch, step, images, torch.from_numpy(self._source.catalog.train.labels[indices]).long())


class _ValidationBatches(Dataset[Batch]):
    """Consecutive samples; process `rank` of `world_size` has one contiguous part, and every sample is in one."""

    def __init__(self, source: Source, transform: Transform, batch: int, rank: int, world_size: int) -> None:
        self._source, self._transform, self._batch = source, transform, batch
        part = share(len(source.catalog.val), rank, world_size)
        self._indices = np.arange(part.start, part.stop, dtype=np.int64)

    def __len__(self) -> int:
        return -(-len(self._indices) // self._batch)

    def __getitem__(self, step: int) -> Batch:
        indices = self._indices[step * self._batch : (step + 1) * self._batch]
        images = _load(self._source, "val", indices, self._transform, [])
        return Batch(0, step, images, torch.from_numpy(self._source.catalog.val.labels[indices]).long())


class _Positions:
    """The positions of a run as a sampler."""

    def __init__(self, epochs: int, steps: int, start: tuple[int, int]) -> None:
        self._arguments = epochs, steps, start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return positions(*self._arguments)


def training_batches(
    source: Source,
    transform: TransformOfEpoch,
    *,
    global_batch: int,
    epochs: int,
    seed: int,
    start: tuple[int, int] = (0, 0),
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """All training batches from position `start` to the end of the run, this process's share of each."""
    steps = steps_per_epoch(len(source.catalog.train), global_batch)
    return DataLoader(
        _TrainingBatches(source, transform, global_batch, seed, rank, world_size),
        batch_size=None,
        sampler=_Positions(epochs, steps, start),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=_quiet_worker,
    )


def validation_batches(
    source: Source,
    transform: Transform,
    *,
    batch: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """Each validation image once over all processes; the last batch may be smaller."""
    return DataLoader(
        _ValidationBatches(source, transform, batch, rank, world_size),
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_quiet_worker,
    )


def _quiet_worker(_: int) -> None:
    """Lets the training process have the processor first, and leaves signals to it."""
    os.nice(5)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def usable_workers(asked: int) -> int:
    """As many workers as asked for, but not more than there are cores for this process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(asked, cores)
