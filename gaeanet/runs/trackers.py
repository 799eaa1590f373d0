"""Trackers that follow a run beside its log: TensorBoard, or any other through the same three methods.

The log of record is metrics.jsonl; whatever a tracker does, and however it fails, the run goes on. Another tracker is
an importable callable without arguments that returns an object with the methods of `Sink`, named in the experiment
file as `module:callable`.
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


class Sink(Protocol):
    """What a tracker does."""

    def begin(self, run_dir: Path, batches: int) -> None:
        """The run starts or goes on after `batches` steps; later ones that were told before have not happened."""

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
        # What a killed process had told after its last checkpoint is taken back, as in the log.
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


class Sinks:
    """The trackers of a run; one that fails is said to have failed, and is left out from there on.

    Args:
        names: As `hyperparameters.track` has them.
        say: Takes a sentence.
    """

    def __init__(self, names: Sequence[str], say: Callable[[str], None]) -> None:
        self._say = say
        self._sinks: dict[str, Sink] = {}
        for name in names:
            self._try(name, lambda name=name: self._sinks.__setitem__(name, factory_of(name)()))  # type: ignore[misc]

    def begin(self, run_dir: Path, batches: int) -> None:
        for name, sink in list(self._sinks.items()):
            self._try(name, lambda sink=sink: sink.begin(run_dir, batches))  # type: ignore[misc]

    def line(self, line: Line) -> None:
        for name, sink in list(self._sinks.items()):
            self._try(name, lambda sink=sink: sink.line(line))  # type: ignore[misc]

    def close(self) -> None:
        for name, sink in list(self._sinks.items()):
            self._try(name, lambda sink=sink: sink.close())  # type: ignore[misc]

    def _try(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # a tracker is not worth a run
            self._sinks.pop(name, None)
            self._say(f"{name} is not told any more: {reason(error)}; metrics.jsonl has everything")


def factory_of(name: str) -> Callable[[], Sink]:
    """What makes the tracker called `name`; raises `RequestError` where it cannot be had."""
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
        found: Callable[[], Sink] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise RequestError(f"hyperparameters.track: {name} cannot be imported: {reason(error)}") from None
    return found
