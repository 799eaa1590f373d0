"""Reading images and writing them at the same time: one thread reads in order, others hash and write.

Memory is bounded by bytes, not by images: one image may be as large as a thousand.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from gaeanet.data.formats import Unreadable
from gaeanet.data.sources.source import Source
from gaeanet.errors import RunError

_THREADS = 4
"""Threads that write. System calls and hashing leave Python's lock to the others."""
_FETCHED = 256
"""Images asked for at a time: a bucket has that many to choose its requests from."""
_BATCH_BYTES = 1 << 20
_BYTES_UNDER_WAY = 16 << 20

Image = tuple[int, bytes]
"""A sample's number, and the bytes of its file."""


def read_images(source: Source, split: str, order: NDArray[np.int64]) -> Iterator[Image]:
    """The images of a split in this order; raises `RunError` naming the first that cannot be read."""
    for start in range(0, len(order), _FETCHED):
        indices = order[start : start + _FETCHED].tolist()
        for index, data in zip(indices, source.fetch(split, indices)):
            if isinstance(data, Unreadable):
                raise RunError(f"{source.path(split, index)}: {data.reason}")
            assert isinstance(data, bytes)
            yield index, data


def write_concurrently(
    images: Iterable[Image], write: Callable[[list[Image]], None], done: Callable[[int], None]
) -> None:
    """Has all images written, in batches, from several threads and in no certain order.

    Args:
        write: Writes a batch; what it raises is raised here, and nothing more is begun.
        done: Called in this thread with the bytes of each batch that is written.
    """
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="gaeanet-write")
    under_way: deque[tuple[Future[None], int]] = deque()
    total = 0
    try:
        for batch, size in _batches(images):
            under_way.append((pool.submit(write, batch), size))
            total += size
            while total > _BYTES_UNDER_WAY:
                total -= _finished(under_way, done)
        while under_way:
            _finished(under_way, done)
    finally:
        pool.shutdown(cancel_futures=True)


def _finished(under_way: deque[tuple[Future[None], int]], done: Callable[[int], None]) -> int:
    """Waits for the oldest batch; returns its bytes."""
    future, size = under_way.popleft()
    future.result()
    done(size)
    return size


def _batches(images: Iterable[Image]) -> Iterator[tuple[list[Image], int]]:
    """Images, about a megabyte at a time, and the bytes of them."""
    batch, size = list[Image](), 0
    for image in images:
        batch.append(image)
        size += len(image[1])
        if size >= _BATCH_BYTES:
            yield batch, size
            batch, size = [], 0
    if batch:
        yield batch, size
