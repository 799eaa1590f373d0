"""Batches.

A batch is asked for by its position (epoch, step), and whatever process prepares it works out from the position alone
which samples it holds and what their augmentation draws are. So one stream runs through all epochs, prepared ahead
by workers that are started once, and may begin anywhere.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gaeanet.data.images.decode import ImageError, Picture, opened, to_pixels
from gaeanet.data.loading.reads import Reads
from gaeanet.data.loading.workers import PREFETCH
from gaeanet.data.sources.order import batch_of, positions, replacements, sample_seed, shard_slice, steps_per_epoch
from gaeanet.data.sources.source import Contents
from gaeanet.data.sources.source import Source as Source
from gaeanet.errors import GaeanetError, RunError
from gaeanet.kernels.build import availability
from gaeanet.runtime.processes import STOP_SIGNALS

Transform = Callable[[Tensor], Tensor]
Augmentation = Callable[[Picture], Tensor]


class TransformOfEpoch(Protocol):
    """An augmentation that may change from epoch to epoch."""

    def at(self, epoch: int) -> Augmentation: ...


class Batch(NamedTuple):
    """Images uint8 (N, 3, H, W) in channels-last memory, labels int64 (N,), and the position they belong to.

    `retries` counts the requests that were repeated for it, `bad` names each image that does not decode
    and why; others stand in its place.
    """

    epoch: int
    step: int
    images: Tensor
    labels: Tensor
    retries: int = 0
    bad: Sequence[str] = ()


class _Block:
    """The images of a batch, each written into its row in one block of memory."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._block: Tensor | None = None

    def __setitem__(self, row: int, image: Tensor) -> None:
        if self._block is None:
            self._block = torch.empty((self._count, *image.shape[1:], 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        self._block[row] = image

    @property
    def images(self) -> Tensor:
        assert self._block is not None
        return self._block


class _Faithful(Dataset[Batch | GaeanetError]):
    """Batches by position. An error comes back as a value: torch would wrap it into a worker's whole traceback."""

    def __getitem__(self, position: Any) -> Batch | GaeanetError:
        try:
            return self.batch(position)
        except GaeanetError as error:
            return error

    def batch(self, position: Any) -> Batch:
        raise NotImplementedError


class Batches:
    """Batches as they come; iterating raises `RunError` where one could not be prepared.

    Attributes:
        reads: What is being read for them.
    """

    def __init__(self, loader: DataLoader[Batch | GaeanetError], reads: Reads) -> None:
        self._loader, self.reads = loader, reads

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            if isinstance(batch, GaeanetError):
                raise batch
            yield batch


class _TrainingBatches(_Faithful):
    def __init__(
        self,
        source: Source,
        transform: TransformOfEpoch,
        global_batch: int,
        seed: int,
        rank: int,
        world_size: int,
        max_bad: int,
        repeats: int,
        reads: Reads,
    ) -> None:
        self._reads = reads
        self._source, self._transform, self._seed = source, transform, seed
        self._repeats = repeats
        self._max_bad = max_bad
        self._global_batch = global_batch
        self._shard = shard_slice(global_batch, rank, world_size)
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def batch(self, position: tuple[int, int]) -> Batch:
        epoch, step = position
        source, before = self._source, self._source.retries
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, source.epoch_order(self._seed, epoch)
        samples, draws = batch_of(self._order[1], step, self._global_batch, self._repeats)
        indices, draws = samples[self._shard], draws[self._shard]
        transform = self._transform.at(epoch)
        block, taken, bad = _Block(len(indices)), indices.copy(), list[str]()
        contents = self._reads.watched(indices.tolist(), source.fetch("train", indices.tolist()))
        for row, (index, data) in enumerate(zip(indices.tolist(), contents)):
            draw = int(draws[row])
            image = self._image(transform, epoch, index, draw, data, bad)
            if image is None:
                taken[row], image = self._replacement(transform, epoch, index, draw, bad)
            block[row] = image
        labels = torch.from_numpy(source.catalog.train.labels[taken]).long()
        return Batch(epoch, step, block.images, labels, source.retries - before, bad)

    def _image(
        self, transform: Augmentation, epoch: int, index: int, draw: int, data: Contents, bad: list[str]
    ) -> Tensor | None:
        """An image, augmented; None where it does not decode, which may show as late as that."""
        torch.default_generator.manual_seed(sample_seed(self._seed, epoch, index, draw))
        try:
            return transform(opened(data))
        except ImageError as error:
            bad.append(f"{self._source.path('train', index)}: {error}")
            if len(set(bad)) > self._max_bad:
                raise RunError(f"{bad[-1]} ({too_many(self._max_bad)})") from None
            return None

    def _replacement(
        self, transform: Augmentation, epoch: int, index: int, draw: int, bad: list[str]
    ) -> tuple[int, Tensor]:
        """An image in place of one that does not decode: the same one for any number of processes."""
        for other in replacements(len(self._source.catalog.train), self._seed, epoch, index):
            contents = self._reads.watched([other], self._source.fetch("train", [other]))
            image = self._image(transform, epoch, other, draw, next(contents), bad)
            if image is not None:
                return other, image
        raise AssertionError("replacements never end")


class _ValidationBatches(_Faithful):
    """Consecutive samples; process `rank` of `world_size` has one contiguous part, and every sample is in one."""

    def __init__(
        self, source: Source, transform: Transform, batch: int, rank: int, world_size: int, reads: Reads
    ) -> None:
        self._source, self._transform, self._batch, self._reads = source, transform, batch, reads
        part = shard_slice(len(source.catalog.val), rank, world_size)
        self._indices = np.arange(part.start, part.stop, dtype=np.int64)

    def __len__(self) -> int:
        return -(-len(self._indices) // self._batch)

    def batch(self, step: int) -> Batch:
        source, before = self._source, self._source.retries
        indices = self._indices[step * self._batch : (step + 1) * self._batch]
        block = _Block(len(indices))
        contents = self._reads.watched(indices.tolist(), source.fetch("val", indices.tolist()))
        for row, (index, data) in enumerate(zip(indices.tolist(), contents)):
            try:
                block[row] = self._transform(to_pixels(data))
            except ImageError as error:
                # Skipped, it would change the number that is reported.
                raise RunError(f"{source.path('val', index)}: {error}; validation needs every image") from None
        labels = torch.from_numpy(source.catalog.val.labels[indices]).long()
        return Batch(0, step, block.images, labels, source.retries - before)


class _PickedBatches(_Faithful):
    """Batches of given samples of one split, in their order, without augmentation."""

    def __init__(self, source: Source, split: str, transform: Transform, picks: Sequence[range], reads: Reads) -> None:
        self._source, self._split, self._transform, self._picks, self._reads = source, split, transform, picks, reads

    def __len__(self) -> int:
        return len(self._picks)

    def batch(self, step: int) -> Batch:
        source, before = self._source, self._source.retries
        indices = np.asarray(self._picks[step], dtype=np.int64)
        block = _Block(len(indices))
        contents = self._reads.watched(indices.tolist(), source.fetch(self._split, indices.tolist()))
        for row, (index, data) in enumerate(zip(indices.tolist(), contents)):
            try:
                block[row] = self._transform(to_pixels(data))
            except ImageError as error:
                # Skipped, it would change the number that is reported.
                raise RunError(f"{source.path(self._split, index)}: {error}; every image counts") from None
        labels = torch.from_numpy(source.catalog.split(self._split).labels[indices]).long()
        return Batch(0, step, block.images, labels, source.retries - before)


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
    max_bad: int = 0,
    repeats: int = 1,
) -> Batches:
    """All training batches from position `start` to the end of the run, this process's shard of each.

    A batch in which more than `max_bad` images do not decode raises `RunError`; over batches the caller counts. Each
    sample of a batch is in it `repeats` times, with other augmentation draws each time (see `order.batch_of`).
    """
    steps = steps_per_epoch(len(source.catalog.train), global_batch)
    reads = Reads(source, "train", workers)
    availability()  # compiled here and now, if they are to be, and not by each worker
    loader = DataLoader(
        _TrainingBatches(source, transform, global_batch, seed, rank, world_size, max_bad, repeats, reads),
        batch_size=None,
        sampler=_Positions(epochs, steps, start),
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=partial(_quiet_worker, os.getpid()),
        multiprocessing_context=_start_method(source, workers),
    )
    return Batches(loader, reads)


def validation_batches(
    source: Source,
    transform: Transform,
    *,
    batch: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
) -> Batches:
    """Each validation image once over all processes; the last batch may be smaller."""
    reads = Reads(source, "val", workers)
    loader = DataLoader(
        _ValidationBatches(source, transform, batch, rank, world_size, reads),
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=partial(_quiet_worker, os.getpid()),
        multiprocessing_context=_start_method(source, workers),
    )
    return Batches(loader, reads)


def picked_batches(
    source: Source, split: str, transform: Transform, picks: Sequence[range], *, workers: int = 0
) -> Batches:
    """The batches `picks` of a split, each a range of samples; a batch's `step` is its index among them."""
    reads = Reads(source, split, workers)
    loader = DataLoader(
        _PickedBatches(source, split, transform, picks, reads),
        batch_size=None,
        num_workers=workers,
        worker_init_fn=partial(_quiet_worker, os.getpid()),
        multiprocessing_context=_start_method(source, workers),
    )
    return Batches(loader, reads)


def _start_method(source: Source, workers: int) -> str | None:
    """How to start the workers: stated here, since what Python does unasked differs between its versions.

    `fork` where source and system allow it: a worker then shares PyTorch and the source with its parent, and has memory
    of its own for what it writes only. `forkserver` where a bucket's client is open, which does not survive a
    fork; the server has imported what its workers need once for all. `spawn` on macOS, whose libraries do not survive
    a fork.
    """
    if not workers:
        return None
    if source.start_method is None:
        return "fork" if sys.platform == "linux" else "spawn"
    multiprocessing.set_forkserver_preload(["gaeanet.data.loading.preload"])
    return source.start_method


def _quiet_worker(trainer: int, _: int) -> None:
    """Lets the training process `trainer` have the processor first, leaves signals to it, and ends when it ends."""
    os.nice(5)
    threading.Thread(target=_end_with, args=(trainer,), daemon=True).start()
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _end_with(trainer: int) -> None:
    """Ends this process when `trainer` is gone, however it went.

    torch's own watch looks at the parent of a worker, which is not the trainer where a server started the worker.
    """
    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(ProcessLookupError):
            select.select([os.pidfd_open(trainer)], [], [])
    else:
        with contextlib.suppress(ProcessLookupError):
            while True:
                os.kill(trainer, 0)
                time.sleep(1)
    os._exit(1)


def too_many(max_bad: int) -> str:
    """Why a run ends at yet another image that does not decode."""
    return f"data.max_bad lets {max_bad} such training images pass; gaeanet prepare --verify finds them all"
