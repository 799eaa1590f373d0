"""Counts what goes wrong while images are read, so that it is seen and bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from gaeanet.data.loading.loader import Batch, too_many
from gaeanet.errors import RunError


class ReadErrors:
    """Requests repeated and images passed over, between two lines of the log and over the whole process.

    Args:
        max_bad: Different training images that may be passed over.
        say: Takes one sentence for each image when it is first met.
    """

    def __init__(self, max_bad: int, say: Callable[[str], None]) -> None:
        self._max_bad, self._say = max_bad, say
        self._known: set[str] = set()
        self._retries = self._skipped = 0

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches, counted; raises `RunError` naming the image that is one too many."""
        for batch in batches:
            self._retries += batch.retries
            self._skipped += len(batch.bad)
            for image in batch.bad:
                if image not in self._known:
                    self._known.add(image)
                    if len(self._known) > self._max_bad:
                        raise RunError(f"{image} ({too_many(self._max_bad)})")
                    self._say(f"passed over {image} ({len(self._known)} of at most {self._max_bad})")
            yield batch

    def line(self) -> dict[str, int]:
        """Counts since the last call, as the log names them."""
        counts = {"read_retries": self._retries, "skipped_images": self._skipped}
        self._retries = self._skipped = 0
        return counts
