"""The loop of every run, on one screen: steps, lines of the log, validations, checkpoints, stops and rewinds.

What is trained is a `Job`: `train.py` has that of a network, `search/job.py` that of a supernet and its architecture.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, NoReturn

import torch

from gaeanet.artifacts.directory import CURVE, REPORT, read_log
from gaeanet.config.experiment import Experiment, Hyperparameters
from gaeanet.data.images.transforms import ValidationTransform
from gaeanet.data.loading.loader import Batch, validation_batches
from gaeanet.data.loading.read_errors import ReadErrors
from gaeanet.data.loading.reads import PATIENCE
from gaeanet.data.loading.workers import end_workers, usable_workers
from gaeanet.data.sources.order import batch_of, step_seed
from gaeanet.data.sources.source import Source
from gaeanet.errors import HeldUp, RunError, counted, reason
from gaeanet.evaluation.meter import Totals, evaluate
from gaeanet.optim.rates import Rates
from gaeanet.report.curves import draw_curves
from gaeanet.runs.local import LocalContext
from gaeanet.runs.trackers import Trackers
from gaeanet.runtime import devices
from gaeanet.runtime.processes import Processes, StoppedWaiting, StopRequest
from gaeanet.runtime.readback import Readback
from gaeanet.runtime.waiting import waiting_by_load
from gaeanet.training.display import Display
from gaeanet.training.job import Job
from gaeanet.training.preflight import check_open_files, check_shared_memory
from gaeanet.training.state import RunState

REPORTS_PER_EPOCH = 10
MAX_REWINDS = 5
_GRACE_OF_PAGE = 3.0
"""Seconds after a stop in which the images of the run's page may still be read."""
_GRACE = 15.0
"""Seconds that one of several processes which was asked to stop waits for a batch; launchers kill after 30."""


def run(
    make: Callable[[Experiment, Source, Processes], Job], experiment: Experiment, source: Source, context: LocalContext
) -> None:
    """Runs a job to its end, from the newest checkpoint of `context` if there is one.

    Raises:
        RequestError: Precision or compilation is not available here, or the checkpoint is of another experiment.
        RunError: The run failed on the way; the message says where.
        Stopped: A signal asked the run to stop; its state is saved.
    """
    hp = experiment.hyperparameters
    marker = "[generated images]" if source.generated else ""
    check_open_files(experiment)
    check_shared_memory(experiment)
    with Display(marker, silent=not context.processes.is_first) as display, StopRequest() as stop:
        job = make(experiment, source, context.processes)
        state = job.state
        notes = list(source.notes)
        resumed = context.latest(notes.append)
        if resumed:
            notes += state.load(*resumed)
        else:
            notes += job.start()
        context.begin(experiment, state.batches)
        trackers = Trackers(hp.track if context.processes.is_first else [], display.log)
        epochs, rest = divmod(state.batches, job.steps)
        if not rest and job.is_last(epochs) and state.validated_at == state.batches:
            display.log(f"{context.run_dir}: finished after {counted(epochs, 'epoch')}, nothing to do")
            return
        for message in [*job.plan(context), *notes]:
            display.log(message)
        if not resumed:
            _save(state, context, hp, display)  # a full disk shows here, not after an epoch
            context.finish()
        display.begin(hp.epochs, job.steps, _validations_left(job))
        trackers.begin(context.run_dir, state.batches)
        loop = _Loop(job, context, display, stop, trackers)
        try:
            with waiting_by_load():
                while not loop.train_to_end():
                    display.log(loop.rewind())
        finally:
            job.end()
            trackers.close()
        context.finish()
        for message in job.summary(context):
            display.log(message)


class _Loop:
    """The training loop: steps from the state's position to the end, or to a divergence that asks for a rewind."""

    def __init__(
        self,
        job: Job,
        context: LocalContext,
        display: Display,
        stop: StopRequest,
        trackers: Trackers,
    ) -> None:
        self.job, self.experiment, self.source = job, job.experiment, job.source
        self.context, self.display, self.stop, self.trackers = context, display, stop, trackers
        self.state, self.steps = job.state, job.steps
        self.report_every = max(1, job.steps // REPORTS_PER_EPOCH)
        self.read_errors = ReadErrors(job.experiment.data.max_bad, display.log)
        self.rates = Rates(job.row, self.report_every, context.processes.device)
        self.readback = Readback()
        self.line: dict[str, Any] | None = None
        self.clock = time.monotonic()
        self.next_drawing = 0.0

    def train_to_end(self) -> bool:
        """Trains to the end; False where the run has diverged and is to be rewound."""
        hp, state, steps, job = self.experiment.hyperparameters, self.state, self.steps, self.job
        processes = self.context.processes
        self.rates.move_to(int(state.learner.updates))
        self._validate_if_due()  # the run may have been stopped between an epoch's last step and its validation
        for batch in self._awaited(job.batches(self.read_errors)):
            devices.seed_draws(self._seed(batch), processes.device)
            messages = job.step(batch, self.rates)

            asked = self.stop.received is not None or self.context.asked_to_stop()
            stop, diverged = processes.any_of(asked, self._has_diverged())
            if diverged:
                return self._diverged(batch)
            epochs, rest = divmod(state.batches, steps)
            messages += job.end_epoch(self.context) if not rest else []
            if state.batches % self.report_every == 0 or not rest:
                self._report()
            for message in messages:
                self.display.log(message)
            self.display.step(batch.epoch, batch.step, self.line)
            if not self._validate_if_due() and hp.checkpoint_every and state.batches % hp.checkpoint_every == 0:
                _save(state, self.context, hp, self.display)
            if stop:
                self._stop()
            if not rest and job.is_last(epochs):
                break
        return True

    def _awaited(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; a stop is followed while one is awaited, which a stalled mount may hold up for ever.

        Among several processes a stop takes the agreement after a step, for which all of them have to come: one that
        is held up gives up after `_GRACE`, with what the last checkpoint has.
        """
        several = self.context.processes.world_size > 1
        while True:
            try:
                with self.stop.waiting(_GRACE if several else 0.0):
                    batch = next(batches, None)
            except StoppedWaiting:
                self._give_up()
            if batch is None:
                return
            yield batch

    def _give_up(self) -> NoReturn:
        """Ends a run that was asked to stop while it waited for a read."""
        image = self.read_errors.awaited()
        if image is not None:
            self.display.log(f"gave up reading {image}")
        end_workers()
        if self.context.processes.world_size > 1:
            raise HeldUp(
                f"stopped by {self.stop.received} after step {self.state.batches} without saving, for "
                "which all processes are needed: run again with --resume, which takes the last checkpoint"
            )
        self._stop()

    def _seed(self, batch: Batch) -> int:
        seed = self.experiment.hyperparameters.seed
        return step_seed(seed, batch.epoch, batch.step, self.context.processes.rank)

    def _has_diverged(self) -> bool:
        """Whether too many gradients in a row were not finite; on a GPU this is known some steps later."""
        counts = self.readback.poll(self.state.learner.counts)
        return counts is not None and counts[2] >= self.experiment.hyperparameters.max_bad_steps

    def _report(self) -> None:
        """A training line: means since the last one; the loss is smoothed as trained, without the tower's."""
        learner = self.state.learner
        totals = Totals.of(self.context.processes.sum(learner.meter.sums.clone()))
        learner.meter.reset()
        updates, skipped, bad_steps = learner.counts.tolist()
        row = self.job.row(max(0, updates - (not bad_steps)))  # of the last step
        self.rates.move_to(updates)
        self.clock, began = time.monotonic(), self.clock
        self.line = {
            **self._where("train"),
            **totals.metrics(),
            "learning_rate": row.learning_rate,
            **self.job.columns(row),
            "skipped_steps": skipped,
            "images_per_second": totals.samples / (self.clock - began),
            **self._read_counts(),
        }
        self.context.report(self.line)
        self.trackers.line(self.line)
        self.display.report(self.line)

    def _validate_if_due(self) -> bool:
        hp, state = self.experiment.hyperparameters, self.state
        epochs, rest = divmod(state.batches, self.steps)
        if rest or not epochs or not _validates(epochs, self.job) or state.validated_at == state.batches:
            return False
        self.display.validating()
        state.learner.broadcast_statistics()
        try:
            with self.stop.waiting() if self.context.processes.world_size == 1 else nullcontext():
                line = self._validation()
        except StoppedWaiting:  # it is due again when the run resumes
            self._give_up()
        self.context.report(line)
        self.trackers.line(line)
        self.display.report(line)
        state.note_validation(line)
        _save(state, self.context, hp, self.display)
        if self.context.processes.is_first:
            self._draw(last=self.job.is_last(epochs))
        self.clock = time.monotonic()
        return True

    def _draw(self, last: bool) -> None:
        """Draws the curve again, unless validations come so fast that drawing would take more than a twentieth."""
        began = time.monotonic()
        if last or began >= self.next_drawing:
            _draw(self.context, self.display)
            self.next_drawing = time.monotonic() + 20 * (time.monotonic() - began)
        if last:
            self._write_report()

    def _write_report(self) -> None:
        """Writes the run's page, whose images a stalled mount may hold back: then a stop ends the run without it."""
        message = f"still writing {REPORT} after {PATIENCE:.0f} s: does the file system of the images answer?"
        reminder = threading.Timer(PATIENCE, self.display.log, [message])
        reminder.daemon = True
        reminder.start()
        try:
            with self.stop.waiting(_GRACE_OF_PAGE):
                _write_report(self.context, self.source, self.display)
        except StoppedWaiting:
            self.display.log(f"{REPORT} is not written: gave up reading its images, since the run was asked to stop")
        finally:
            reminder.cancel()

    def _validation(self) -> dict[str, Any]:
        """A validation line: each of the job's networks evaluated on the whole split."""
        hp, processes = self.experiment.hyperparameters, self.context.processes
        batches = validation_batches(
            self.source,
            ValidationTransform(hp.image_size),
            batch=min(hp.global_batch_size, 256),
            rank=processes.rank,
            world_size=processes.world_size,
            workers=usable_workers(self.experiment.data.num_workers_val),
            pin_memory=processes.device.type == "cuda",
        )
        networks = self.job.networks()
        watched = self.read_errors.watch(batches)
        watched = self._awaited(watched) if processes.world_size > 1 else watched  # else a stop is followed all along
        meters = evaluate(list(networks.values()), watched, processes.device)
        line = self._where("validation")
        for prefix, meter in zip(networks, meters):
            totals = Totals.of(processes.sum(meter.sums))
            line |= totals.metrics(prefix) if prefix else {"count": totals.samples, **totals.metrics()}
        return {**line, "read_retries": self._read_counts()["read_retries"]}

    def _read_counts(self) -> dict[str, int]:
        """Read retries and skipped images since the last call, over all processes."""
        counts = self.read_errors.line()
        sums = self.context.processes.sum(torch.tensor(list(counts.values()), device=self.context.processes.device))
        return dict(zip(counts, map(int, sums.tolist())))

    def _where(self, kind: str) -> dict[str, Any]:
        """The columns that every line of the log begins with."""
        catalog, batches = self.source.catalog, self.state.batches
        data = "generated" if self.source.generated else "imagenet" if catalog.is_imagenet else "photographs"
        images = batches * self.experiment.hyperparameters.global_batch_size
        where = {"kind": kind, "data": data, "epoch": batches / self.steps, "batches": batches, "images": images}
        return where if self.source.minival is None else {**where, "minival": self.source.minival}

    def _stop(self) -> NoReturn:
        if self.state.validated_at != self.state.batches:
            _save(self.state, self.context, self.experiment.hyperparameters, self.display)
        self.context.finish()
        raise self.context.stopped(self.state.batches, self.stop.received or "a signal to another process")

    def _diverged(self, batch: Batch) -> bool:
        """Returns False where the run is to be rewound; raises `RunError` where it is to end."""
        updates, _, bad_steps = self.state.learner.counts.tolist()
        rate = self.job.row(updates).learning_rate
        hp = self.experiment.hyperparameters
        if hp.on_divergence == "rewind" and self.state.rate_scale > 0.5**MAX_REWINDS:
            return False
        order = self.source.epoch_order(hp.seed, batch.epoch)
        indices, _ = batch_of(order, batch.step, hp.global_batch_size, hp.repeated_augmentation)
        names = ", ".join(self.source.path("train", index) for index in indices[:3].tolist())
        raise RunError(
            f"{bad_steps} gradients in a row were not finite, the last at step {self.state.batches} (epoch "
            f"{self.state.batches / self.steps:.2f}, learning rate {rate:.4g}, images {names}, ...): lower "
            "hyperparameters.learning_rate or set on_divergence to rewind; earlier checkpoints are intact"
        )

    def rewind(self) -> str:
        """Restores the last checkpoint and halves the learning rate; returns a message about it."""
        state, scale, step = self.state, self.state.rate_scale / 2, self.state.batches
        last = self.context.latest(self.display.log)
        if last is None:
            raise RunError(f"{self.context.run_dir}: diverged, and no checkpoint is intact to go back to")
        state.load(*last)
        self.job.rewound()
        state.rate_scale = scale
        self.readback.forget()
        self.context.begin(self.experiment, state.batches)
        self.trackers.begin(self.context.run_dir, state.batches)
        self.clock = time.monotonic()
        return f"diverged at step {step}: back to step {state.batches}, learning rate times {scale:g} from here on"


def _save(state: RunState, context: LocalContext, hp: Hyperparameters, display: Display) -> None:
    tensors, values = state.saved()
    ranked = [entry["batches"] for entry in state.best]
    context.save(
        state.batches,
        tensors,
        values,
        best=ranked[0] if ranked else None,
        keep=set(ranked),
        keep_latest=hp.keep_latest,
        note=display.log,
    )


def _draw(context: LocalContext, display: Display) -> None:
    """Draws the curve again; a failure to draw must never end a run."""
    try:
        draw_curves({context.run_dir.name: read_log(context.metrics_path)}, context.run_dir / CURVE)
    except Exception as error:
        display.log(f"{CURVE} is not drawn: {reason(error)}")


def _write_report(context: LocalContext, source: Source, display: Display) -> None:
    """Writes the run's page; a failure to write must never end a run."""
    try:
        from gaeanet.report.gather import gather, write_page

        write_page([gather(context.run_dir, context.run_dir.name, source=source)], context.run_dir / REPORT)
    except Exception as error:
        display.log(f"{REPORT} is not written: {reason(error)}")


def _validates(epochs_done: int, job: Job) -> bool:
    return epochs_done % job.hyperparameters.validate_every == 0 or job.is_last(epochs_done)


def _validations_left(job: Job) -> int:
    done = job.state.batches // job.steps
    return sum(_validates(epochs, job) for epochs in range(done + 1, job.hyperparameters.epochs + 1))
