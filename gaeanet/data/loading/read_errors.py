"""Counts what goes wrong while images are read, so that it is seen and bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gaeanet.data.loading.loader import Batch, Batches, too_many
from gaeanet.data.loading.reads import HangingReads, Reads
from gaeanet.errors import RunError


class ReadErrors:
    """Requests repeated and images skipped, between two lines of the log and over the whole process.

    Args:
        max_bad: Different training images that may be skipped.
        log: Takes one sentence for each image when it first occurs, and for each read that does not return.
    """

    def __init__(self, max_bad: int, log: Callable[[str], None]) -> None:
        self._max_bad, self._log = max_bad, log
        self._known: set[str] = set()
        self._retries = self._skipped = 0
        self._awaited: Reads | None = None

    def watch(self, batches: Batches) -> Iterator[Batch]:
        """The same batches, counted; raises `RunError` naming the image that is one too many."""
        hanging = HangingReads(batches.reads, self._log)
        with hanging.reported():
            iterator = iter(batches)
            while True:
                self._awaited = batches.reads
                with hanging.waiting():
                    batch = next(iterator, None)
                if batch is None:
                    return
                self._awaited = None
                self._count(batch)
                yield batch

    def awaited(self) -> str | None:
        """The image whose read holds up the batch that is awaited, or that was when waiting was given up."""
        longest = self._awaited.longest() if self._awaited else None
        return None if longest is None else longest[0]

    def _count(self, batch: Batch) -> None:
        self._retries += batch.retries
        self._skipped += len(batch.bad)
        for image in batch.bad:
            if image not in self._known:
                self._known.add(image)
                if len(self._known) > self._max_bad:
                    raise RunError(f"{image} ({too_many(self._max_bad)})")
                self._log(f"skipped {image} ({len(self._known)} of at most {self._max_bad})")

    def line(self) -> dict[str, int]:
        """Counts since the last call, as the log names them."""
        counts = {"read_retries": self._retries, "skipped_images": self._skipped}
        self._retries = self._skipped = 0
        return counts
