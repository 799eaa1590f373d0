"""The progress display of a run: a live line on a terminal, one plain line per report elsewhere."""

from __future__ import annotations

import time
from typing import Any

from gaeanet.errors import counted
from gaeanet.runtime.names import shown
from gaeanet.runtime.progress import LiveLine, duration


class Display:
    """Shows a run on standard output.

    Args:
        marker: Stands before every line; marks generated images.
        silent: Shows nothing: another process reports.
    """

    def __init__(self, marker: str = "", silent: bool = False) -> None:
        self._epochs = self._steps = 1
        self._marker = f"{marker} " if marker else ""
        self._clock = _Clock(0)
        self._line = LiveLine(silent)

    def __enter__(self) -> Display:
        self._line.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._line.__exit__()

    def begin(self, epochs: int, steps: int, validations: int) -> None:
        """Training begins: length of the run in epochs, of an epoch in steps, and the validations still to come."""
        self._epochs, self._steps = epochs, steps
        self._clock = _Clock(validations)

    def log(self, message: str) -> None:
        """Prints a message on a line that stays."""
        self._line.log(self._marker + shown(message))

    def step(self, epoch: int, step: int, line: dict[str, Any] | None) -> None:
        """A training step is done; `line` is the newest training line of the log."""
        self._clock.step(epoch * self._steps + step + 1, self._epochs * self._steps)
        if self._line.is_shown:
            facts = f"{step + 1}/{self._steps}"
            if line:
                facts += f"  loss {line['loss']:.3f}  top-1 {line['top1_accuracy']:.1f} %  "
                facts += f"{line['images_per_second']:.0f} images/s"
            description = f"{self._marker}epoch {epoch + 1}/{self._epochs}"
            facts += f"  {self.time_left()} left"
            self._line.update(facts, description=description, done=step + 1, total=self._steps)

    def validating(self) -> None:
        """A validation begins."""
        self._clock.pause()
        self._line.update("validating")

    def report(self, line: dict[str, Any]) -> None:
        """A line of the log; on a terminal training lines only feed the live line."""
        if line["kind"] == "validation":
            self._clock.validated()
            self.log(self._validation(line))
        elif not self._line.is_shown:
            self.log(self._training(line))

    def time_left(self) -> str:
        """Estimated time to the end of the run, as text."""
        return duration(self._clock.left())

    def _training(self, line: dict[str, Any]) -> str:
        return (
            f"epoch {line['epoch']:.2f}/{self._epochs}  step {line['batches']}  loss {line['loss']:.4f}  "
            f"top-1 {line['top1_accuracy']:.2f} %  top-5 {line['top5_accuracy']:.2f} %  "
            f"lr {line['learning_rate']:.4g}  {line['images_per_second']:.0f} images/s  {self.time_left()} left"
        )

    def _validation(self, line: dict[str, Any]) -> str:
        held_out = " held out of training" if "minival" in line else ""
        text = f"epoch {line['epoch']:g}/{self._epochs}  validation on {counted(line['count'], 'image')}{held_out}: "
        text += f"loss {line['loss']:.4f}  "
        text += f"top-1 {line['top1_accuracy']:.2f} %  top-5 {line['top5_accuracy']:.2f} %"
        if "ema_top1_accuracy" in line:
            text += f"  (EMA: loss {line['ema_loss']:.4f}  top-1 {line['ema_top1_accuracy']:.2f} %  "
            text += f"top-5 {line['ema_top5_accuracy']:.2f} %)"
        if "discrete_top1_accuracy" in line:
            text += f"  (decided: loss {line['discrete_loss']:.4f}  top-1 {line['discrete_top1_accuracy']:.2f} %)"
        return text + (f"  {self.time_left()} left" if line["epoch"] < self._epochs else "")


class _Clock:
    """Estimates the time left from this process's own steps and validations so far."""

    def __init__(self, validations: int) -> None:
        self._validations = validations
        self._mark = time.monotonic()
        self._stepping = self._validating = 0.0
        self._steps = self._validated = self._remaining = 0

    def step(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._steps:  # the first step also waits for the workers to start
            self._stepping += now - self._mark
        self._mark = now
        self._steps += 1
        self._remaining = total - done

    def pause(self) -> None:
        self._mark = time.monotonic()

    def validated(self) -> None:
        now = time.monotonic()
        self._validating += now - self._mark
        self._mark = now
        self._validated += 1

    def left(self) -> float:
        per_step = self._stepping / max(1, self._steps - 1)
        per_validation = self._validating / max(1, self._validated)
        return self._remaining * per_step + max(0, self._validations - self._validated) * per_validation
