"""Trackers that follow a run beside its log: TensorBoard, or any other through the same three methods.

The log of record is metrics.jsonl; a run continues however a tracker fails. Another tracker is an importable callable
without arguments that returns an object with the methods of `Tracker`, named in the experiment file as
`module:callable`.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from gaeanet.errors import RequestError, reason

Line = dict[str, Any]


class Tracker(Protocol):
    """The interface of a tracker."""

    def begin(self, run_dir: Path, batches: int) -> None:
        """The run starts or resumes after `batches` steps; later ones reported before are void."""

    def line(self, line: Line) -> None:
        """A line of the log: numbers and texts by name."""

    def close(self) -> None:
        """The run ends."""


class TensorBoard:
    """Event files in `<run_dir>/tensorboard`; the step is the number of batches."""

    def __init__(self) -> None:
        self._writer: Any = None

    def begin(self, run_dir: Path, batches: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self.close()
        # Purges what a killed process had reported after its last checkpoint, as in the log.
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=batches + 1)

    def line(self, line: Line) -> None:
        for name, value in line.items():
            if isinstance(value, (int, float)) and name not in ("batches", "images") and math.isfinite(value):
                self._writer.add_scalar(f"{line['kind']}/{name}", value, line["batches"])
        if line["kind"] == "validation":
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class Trackers:
    """The trackers of a run; one that raises is reported and dropped.

    Args:
        names: As in `hyperparameters.track`.
        log: Receives a message for each tracker that is dropped.
    """

    def __init__(self, names: Sequence[str], log: Callable[[str], None]) -> None:
        self._log = log
        self._trackers: dict[str, Tracker] = {}
        for name in names:
            self._try(name, lambda name=name: self._trackers.__setitem__(name, factory_of(name)()))  # type: ignore[misc]

    def begin(self, run_dir: Path, batches: int) -> None:
        for name, tracker in list(self._trackers.items()):
            self._try(name, lambda tracker=tracker: tracker.begin(run_dir, batches))  # type: ignore[misc]

    def line(self, line: Line) -> None:
        for name, tracker in list(self._trackers.items()):
            self._try(name, lambda tracker=tracker: tracker.line(line))  # type: ignore[misc]

    def close(self) -> None:
        for name, tracker in list(self._trackers.items()):
            self._try(name, lambda tracker=tracker: tracker.close())  # type: ignore[misc]

    def _try(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # a tracker is not worth a run
            self._trackers.pop(name, None)
            self._log(f"{name} is dropped: {reason(error)}; metrics.jsonl is complete")


def factory_of(name: str) -> Callable[[], Tracker]:
    """The factory of the tracker `name`; raises `RequestError` where it cannot be imported."""
    if name == "tensorboard":
        if importlib.util.find_spec("tensorboard") is None:
            raise RequestError(
                "hyperparameters.track: tensorboard is not installed: pip install 'gaeanet[tensorboard]'"
            )
        return TensorBoard
    module, colon, attribute = name.partition(":")
    if not colon:
        raise RequestError(f"hyperparameters.track: {name} is neither tensorboard nor of the form module:callable")
    try:
        factory: Callable[[], Tracker] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise RequestError(f"hyperparameters.track: {name} cannot be imported: {reason(error)}") from None
    return factory
