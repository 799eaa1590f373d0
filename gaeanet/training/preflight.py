"""Checks before training: free shared memory and open files for what the workers hand over."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from gaeanet.config.experiment import Experiment
from gaeanet.data.loading.workers import PREFETCH, usable_workers, workers_each
from gaeanet.data.sources.order import shard_slice
from gaeanet.errors import RequestError
from gaeanet.runtime.ranks import ranks

SHM = Path("/dev/shm")  # noqa: S108 (where Linux keeps shared memory, not a temporary file)


def training_workers(experiment: Experiment) -> list[int]:
    """Workers of each stream of training images; a search that learns from two sets of them has two."""
    search = experiment.hyperparameters.search
    streams = 2 if search is not None and search.level == "bilevel" else 1
    return workers_each(usable_workers(experiment.data.num_workers_train), streams)


def needed_bytes(experiment: Experiment, world_size: int, local_world_size: int) -> int:
    """The most shared memory that prepared batches of this machine's processes take.

    A worker holds `PREFETCH` training batches, uint8 (N, 3, size, size), N a process's shard; validation, whose
    batches are at most 256 images and two a worker, begins when these are still waiting.
    """
    hp, data = experiment.hyperparameters, experiment.data
    shard = shard_slice(hp.global_batch_size, 0, world_size)
    training = (shard.stop - shard.start) * 3 * max(hp.training_sizes) ** 2
    validation = min(hp.global_batch_size, 256) * 3 * hp.image_size**2
    per_process = PREFETCH * sum(training_workers(experiment)) * training
    total: int = local_world_size * (per_process + 2 * usable_workers(data.num_workers_val) * validation)
    return total


def check_shared_memory(experiment: Experiment) -> None:
    """Raises `RequestError` where /dev/shm has less free than `needed_bytes`, with the size that it needs."""
    if not SHM.is_dir():
        return
    here = ranks()
    needed = needed_bytes(experiment, here.world_size, here.local_world_size)
    state = os.statvfs(SHM)
    free = state.f_bavail * state.f_frsize
    if needed > free:
        raise RequestError(
            f"{SHM} has {free / 1e6:,.0f} MB free, and the batches of "
            f"{usable_workers(experiment.data.num_workers_train)} workers for each of {here.local_world_size} "
            f"process{'es' * (here.local_world_size > 1)} take up to {needed / 1e6:,.0f} MB: enlarge it (docker: "
            f"--shm-size={-(-needed // 2**30)}g) or lower data.num_workers_train and num_workers_val"
        )


def needed_files(experiment: Experiment) -> int:
    """Open files that a process may need: its own, its workers' pipes, and two for each batch that is waiting."""
    workers = sum(training_workers(experiment)) + usable_workers(experiment.data.num_workers_val)
    return 64 + workers * (8 + 2 * PREFETCH)


def check_open_files(experiment: Experiment) -> None:
    """Raises this process's limit on open files as far as it may, and `RequestError` where that is too little.

    A worker that runs out of them does not end: it never hands over its batch, and the run would wait for ever.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = needed_files(experiment)
    if soft != resource.RLIM_INFINITY and soft < needed:
        highest = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
        if highest < needed:
            raise RequestError(
                f"this process may open {highest} files, and with its workers it may need {needed}: raise the limit "
                f"(ulimit -n {max(4096, needed)}) or lower data.num_workers_train and num_workers_val"
            )
