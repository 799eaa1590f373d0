"""Which sample is read when: a pure function of (seed, epoch, step, rank, world size).

Nothing here is consumed and nothing has to be saved: an epoch's order is the sorting order of one hash a sample, and a
sample's augmentation draws start from one hash of (seed, epoch, sample). So batch k of epoch e holds the same samples,
augmented alike, for any number of processes and workers and after any restart. The hash is SplitMix64 (Steele, Lea &
Flood 2014), written out so that no library's change of generator can change a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF

# Keeps the streams of different purposes apart.
_ORDER, _SAMPLE, _STEP, _SHARD, _REPLACEMENT, _PICK, _STREAM, _MIX = 1, 2, 3, 4, 5, 6, 7, 8


def _finish(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _hash(*numbers: int) -> int:
    """64 well-mixed bits of a sequence of integers."""
    state = 0
    for number in numbers:
        state = _finish((state + (number & _MASK) * _GOLDEN + _GOLDEN) & _MASK)
    return state


def _hashes(key: int, count: int) -> NDArray[np.uint64]:
    """SplitMix64's stream from `key`: `count` values, in arrays of numpy instead of a loop."""
    with np.errstate(over="ignore"):
        x = np.uint64(key) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def epoch_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order in which epoch `epoch` visits `count` samples: a permutation of 0..count-1."""
    return np.argsort(_hashes(_hash(_ORDER, seed, epoch), count), kind="stable")


def windowed_order(shard_of: NDArray[np.int32], shards: int, window: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order in which epoch `epoch` visits samples that lie in shards: a permutation of all samples.

    The shards follow each other in a seeded order, and each sample is put back by a draw of up to `window` shards. So
    at any time the samples of `window` neighbouring shards are mixed, and each shard is read for a while and then
    never again. Where there are no more shards than the window spans, everything is mixed with everything: the order is
    `epoch_order`, that of images that lie in no shards.

    Args:
        shard_of: Shard of each sample, int32 (samples,).
        shards: How many shards there are.
        window: How many of them are mixed.
    """
    if shards <= window:
        return epoch_order(len(shard_of), seed, epoch)
    position = np.empty(shards, dtype=np.float64)
    position[np.argsort(_hashes(_hash(_SHARD, seed, epoch), shards), kind="stable")] = np.arange(shards)
    delay = (_hashes(_hash(_ORDER, seed, epoch), len(shard_of)) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.argsort(position[shard_of] + window * delay, kind="stable")


def class_fractions(
    labels: NDArray[np.int32], classes: int, seed: int, fractions: Sequence[float]
) -> list[NDArray[np.int64]]:
    """Parts of the samples that have none in common, with given fractions of each class.

    Args:
        labels: Class of each sample, int32 (n,).
        fractions: Of each part, together at most 1.

    Returns:
        The numbers of each part's samples, ascending, int64.
    """
    return fractions_by_key(labels, classes, _hashes(_hash(_PICK, seed), len(labels)), fractions)


def fractions_by_key(
    labels: NDArray[np.int32], classes: int, keys: NDArray[np.uint64], fractions: Sequence[float]
) -> list[NDArray[np.int64]]:
    """The same where `keys`, uint64 (n,), order a class's samples: smallest first."""
    order = np.lexsort((keys, labels))
    counts = np.bincount(labels, minlength=classes)
    rank = np.empty(len(labels), np.int64)  # of a sample among those of its class, by key
    rank[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    ends = [np.floor(total * counts + 0.5 + 1e-9)[labels] for total in np.cumsum([0.0, *fractions])]
    return [np.flatnonzero((rank >= low) & (rank < high)) for low, high in pairwise(ends)]


def stream_seed(seed: int, stream: int) -> int:
    """Seed (63 bits) of a second stream of samples beside a run's own, which has the run's seed."""
    return _hash(_STREAM, seed, stream) >> 1


def replacements(count: int, seed: int, epoch: int, sample: int) -> Iterator[int]:
    """Samples to take in place of `sample`, which cannot be decoded, one after the other until one can."""
    attempt = 0
    while True:
        yield _hash(_REPLACEMENT, seed, epoch, sample, attempt) % count
        attempt += 1


def batch_of(
    order: NDArray[np.int64], step: int, global_batch: int, repeats: int = 1
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What batch `step` of an epoch holds: samples, and which of its draws each has, from 0, int64 (global_batch,).

    With `repeats` r it has global_batch / r samples, all of them once before any comes again: so neighbours are
    different samples, and a sample's copies are spread over the processes. An epoch has as many steps as without, and
    so gets through the r-th part of its order.

    Args:
        order: Of the epoch, int64 (n,).
        repeats: Divides global_batch.
    """
    distinct = global_batch // repeats
    return np.tile(order[step * distinct : (step + 1) * distinct], repeats), np.arange(repeats).repeat(distinct)


def sample_seed(seed: int, epoch: int, sample: int, draw: int = 0) -> int:
    """Seed (63 bits) of the augmentation draws for one sample in one epoch, for the first time there or once more."""
    return _hash(_SAMPLE, seed, epoch, sample, *([draw] if draw else [])) >> 1


def step_seed(seed: int, epoch: int, step: int, rank: int) -> int:
    """Seed (63 bits) of what the network draws (drop-path, dropout) in one step on one process."""
    return _hash(_STEP, seed, epoch, step, rank) >> 1


def mix_seed(seed: int, batch: int) -> int:
    """Seed (63 bits) of what all processes draw alike for a global batch, number `batch` of the run."""
    return _hash(_MIX, seed, batch) >> 1


def steps_per_epoch(count: int, global_batch: int) -> int:
    """Full batches in an epoch. The left-over samples, others each epoch, are not seen in it."""
    return count // global_batch


def shard_slice(global_batch: int, rank: int, world_size: int) -> slice:
    """The part of a global batch that process `rank` of `world_size` works on; the shards differ by one at most."""
    return slice(global_batch * rank // world_size, global_batch * (rank + 1) // world_size)


def positions(epochs: int, steps: int, start: tuple[int, int] = (0, 0)) -> Iterator[tuple[int, int]]:
    """All (epoch, step) from `start` to the end of training."""
    epoch, step = start
    while epoch < epochs:
        while step < steps:
            yield epoch, step
            step += 1
        epoch, step = epoch + 1, 0
