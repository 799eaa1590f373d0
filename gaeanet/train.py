"""The training loop, on one screen."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from gaeanet import __version__, devices, schedules
from gaeanet.augment import TrainingTransform, ValidationTransform
from gaeanet.config import Experiment, Hyperparameters
from gaeanet.context import LocalContext
from gaeanet.data.loader import Source, training_batches, usable_workers, validation_batches
from gaeanet.data.order import step_seed, steps_per_epoch
from gaeanet.data.trouble import Trouble
from gaeanet.errors import RunError
from gaeanet.evaluate import evaluate
from gaeanet.progress import Display
from gaeanet.report import draw_curves
from gaeanet.run_directory import CURVE, read_log
from gaeanet.state import TrainingState

REPORTS_PER_EPOCH = 10


def train(experiment: Experiment, source: Source, context: LocalContext) -> None:
    """Trains the network of `experiment` on `source`, from the newest checkpoint of `context` if there is one.

    Raises:
        RequestError: Precision or compilation cannot be had here, or the checkpoint is of another experiment.
        RunError: The run failed on the way; the message says where.
    """
    hp = experiment.hyperparameters
    steps = steps_per_epoch(len(source.catalog.train), hp.global_batch_size)
    report_every = max(1, steps // REPORTS_PER_EPOCH)
    state = TrainingState(experiment, source, context.device)
    if latest := context.latest():
        state.load(latest)
    context.begin(experiment, state.batches)
    epoch, step = divmod(state.batches, steps)
    validations = sum(_validates(done, hp) for done in range(epoch + 1, hp.epochs + 1))

    with Display(hp.epochs, steps, validations, "[generated images]" if source.generated else "") as display:
        if epoch >= hp.epochs:
            display.say(f"{context.run_dir}: finished after {hp.epochs} epochs, nothing to do")
            return
        for sentence in _plan(experiment, source, context, state, steps):
            display.say(sentence)
        line: dict[str, Any] | None = None
        clock = time.monotonic()
        trouble = Trouble(experiment.data.max_bad, display.say)
        for batch in trouble.watch(_training_batches(experiment, source, context, (epoch, step))):
            progress = batch.epoch + batch.step / steps
            rate = _learning_rate(progress, hp)
            dropped = schedules.drop_path_rate(progress, final=hp.drop_path_prob, epochs=hp.epochs)
            devices.seed_draws(step_seed(hp.seed, batch.epoch, batch.step, context.rank), context.device)
            state.step(batch.images, batch.labels, rate, dropped)
            progress, ends_epoch = state.batches / steps, state.batches % steps == 0

            if state.batches % report_every == 0 or ends_epoch:
                clock, began = time.monotonic(), clock
                line = _training_line(state, source, progress, hp, rate, dropped, clock - began) | trouble.line()
                context.report(line)
                display.report(line)
                if not math.isfinite(line["loss"]):
                    raise RunError(
                        f"the loss is {line['loss']} at step {state.batches} (learning rate {rate:.4g}): "
                        "lower hyperparameters.learning_rate; the last checkpoint is whole"
                    )
            display.step(batch.epoch, batch.step, line)

            if ends_epoch and _validates(round(progress), hp):
                display.validating()
                validation = _validate(state, experiment, source, context, progress, trouble)
                validation["read_retries"] = trouble.line()["read_retries"]
                context.report(validation)
                display.report(validation)
                best = state.note_best(validation)
                context.save(state.batches, *state.saved(), best=best)
                _draw(context, display)
                clock = time.monotonic()
        for sentence in _closing_words(state, context):
            display.say(sentence)


def _draw(context: LocalContext, display: Display) -> None:
    """Draws the curve again; a picture that fails must never end a run."""
    try:
        draw_curves({context.run_dir.name: read_log(context.metrics_path)}, context.run_dir / CURVE)
    except Exception as error:
        display.say(f"curve.png is not drawn: {(str(error) or type(error).__name__).splitlines()[0]}")


def _validates(epochs_done: int, hp: Hyperparameters) -> bool:
    return epochs_done % hp.validate_every == 0 or epochs_done == hp.epochs


def _learning_rate(progress: float, hp: Hyperparameters) -> float:
    return schedules.learning_rate(
        progress,
        scheduler=hp.lr_scheduler,
        base=hp.learning_rate,
        epochs=hp.epochs,
        warmup_epochs=hp.warmup_epochs,
        gamma=hp.lr_gamma,
        decay_every=hp.lr_decay_every,
    )


def _training_batches(experiment: Experiment, source: Source, context: LocalContext, start: tuple[int, int]) -> Any:
    hp = experiment.hyperparameters
    return training_batches(
        source,
        TrainingTransform(hp),
        global_batch=hp.global_batch_size,
        epochs=hp.epochs,
        seed=hp.seed,
        start=start,
        rank=context.rank,
        world_size=context.world_size,
        workers=usable_workers(experiment.data.num_workers_train),
        pin_memory=context.device.type == "cuda",
        max_bad=experiment.data.max_bad,
    )


def _training_line(
    state: TrainingState, source: Source, epoch: float, hp: Hyperparameters, rate: float, dropped: float, seconds: float
) -> dict[str, Any]:
    """Means since the last training line; the loss is smoothed as trained, without the tower's."""
    totals = state.meter.totals()
    state.meter.reset()
    return {
        **_where("train", state, source, epoch, hp),
        **totals.metrics(),
        "learning_rate": rate,
        "drop_path_rate": dropped,
        "images_per_second": totals.samples / seconds,
    }


def _validate(
    state: TrainingState,
    experiment: Experiment,
    source: Source,
    context: LocalContext,
    epoch: float,
    trouble: Trouble,
) -> dict[str, Any]:
    """Counts the whole validation split with the raw and the averaged weights."""
    hp = experiment.hyperparameters
    batches = validation_batches(
        source,
        ValidationTransform(hp.image_size),
        batch=min(hp.global_batch_size, 256),
        workers=usable_workers(experiment.data.num_workers_val),
        pin_memory=context.device.type == "cuda",
    )
    networks = [state.network, *([state.average.network] if state.average else [])]
    raw, *average = [meter.totals() for meter in evaluate(networks, trouble.watch(batches), context.device)]
    line = {**_where("validation", state, source, epoch, hp), "count": raw.samples, **raw.metrics()}
    for totals in average:
        line.update(totals.metrics("ema_"))
    return line


def _where(kind: str, state: TrainingState, source: Source, epoch: float, hp: Hyperparameters) -> dict[str, Any]:
    """What every line of the log begins with."""
    data = "generated" if source.generated else "imagenet" if source.catalog.is_imagenet else "photographs"
    images = state.batches * hp.global_batch_size
    return {"kind": kind, "data": data, "epoch": epoch, "batches": state.batches, "images": images}


def _plan(experiment: Experiment, source: Source, context: LocalContext, state: TrainingState, steps: int) -> list[str]:
    """What is about to happen, before the first step."""
    hp, catalog = experiment.hyperparameters, source.catalog
    cell = hp.cell
    name = hp.genotype if isinstance(hp.genotype, str) and len(hp.genotype) < 60 else "given in full"
    tower = state.network.auxiliary_head
    tower_parameters = sum(parameter.numel() for parameter in tower.parameters()) if tower is not None else 0
    parameters = sum(parameter.numel() for parameter in state.network.parameters()) - tower_parameters
    workers = usable_workers(experiment.data.num_workers_train)
    sentences = [
        f"gaeanet {__version__} on torch {torch.__version__}, {devices.describe(context.device)}, {state.precision}, "
        f"{state.compilation}, {workers} worker{'s' * (workers != 1)} for training images",
        f"cell {name} (fingerprint {cell.fingerprint}): {cell.to_text()}",
        f"network: {hp.layers} cells, {hp.init_channels} channels, {hp.activation}"
        f"{', squeeze-excite' * hp.do_SE}, {hp.image_size} px: {parameters:,} parameters"
        + (f" (and {tower_parameters:,} in the auxiliary tower, for training only)" if tower_parameters else ""),
        f"data: {source.location}: {len(catalog.classes)} classes, {len(catalog.train):,} training and "
        f"{len(catalog.val):,} validation images (fingerprint {catalog.fingerprint})",
        *source.notes,
        f"plan: global batch {hp.global_batch_size} = {context.world_size} process x "
        f"{hp.global_batch_size // context.world_size}, {steps:,} steps an epoch, {hp.epochs} epochs, learning rate "
        f"{hp.learning_rate:g}, {hp.lr_scheduler}, {min(hp.warmup_epochs, hp.epochs)} epochs of warm-up",
    ]
    if state.batches:
        sentences.append(f"resumed after step {state.batches:,} (epoch {state.batches / steps:.2f})")
    return sentences


def _closing_words(state: TrainingState, context: LocalContext) -> list[str]:
    words = [f"everything is in {context.run_dir}: metrics.jsonl, curve.png, checkpoints/best and checkpoints/latest"]
    if state.best:
        kind = "averaged (EMA)" if state.best["weights"] == "ema" else "raw"
        words.insert(
            0, f"best: top-1 {state.best['top1_accuracy']:.2f} % at epoch {state.best['epoch']:g} with {kind} weights"
        )
    return words
