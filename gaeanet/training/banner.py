"""What a run says before its first step and after its last."""

from __future__ import annotations

import math

import torch

from gaeanet import __version__
from gaeanet.config.data import describe_minival
from gaeanet.config.experiment import Experiment
from gaeanet.config.schedule import Batches
from gaeanet.data.loading.workers import usable_workers
from gaeanet.data.sources.order import share
from gaeanet.data.sources.source import Source
from gaeanet.kernels.build import OWN, availability
from gaeanet.models.network import CellNetwork
from gaeanet.runs.local import LocalContext
from gaeanet.runtime import devices
from gaeanet.training.state import RunState


def plan(experiment: Experiment, source: Source, context: LocalContext, state: RunState, steps: int) -> list[str]:
    """What is about to happen, before the first step."""
    hp = experiment.hyperparameters
    name = hp.genotype if isinstance(hp.genotype, str) and len(hp.genotype) < 60 else "given in full"
    network = state.learner.network
    assert isinstance(network, CellNetwork)
    tower = network.auxiliary_head
    tower_parameters = sum(parameter.numel() for parameter in tower.parameters()) if tower is not None else 0
    parameters = sum(parameter.numel() for parameter in network.parameters()) - tower_parameters
    workers = usable_workers(experiment.data.num_workers_train)
    sentences = [
        machinery(state, context, workers),
        f"cell {name} (fingerprint {hp.cell.fingerprint}): {hp.cell.to_text()}",
        f"network: {hp.layers} cells, {hp.init_channels} channels, {hp.activation}"
        f"{', squeeze-excite' * hp.do_SE}, {hp.image_size} px: {parameters:,} parameters"
        + (f" (and {tower_parameters:,} in the auxiliary tower, for training only)" if tower_parameters else ""),
        *images(source),
    ]
    return sentences + schedule(experiment, context, state, steps)


def machinery(state: RunState, context: LocalContext, workers: int) -> str:
    """What computes."""
    return (
        f"gaeanet {__version__} on torch {torch.__version__}, {devices.describe(context.processes.device)}, "
        f"{state.learner.precision}, {state.learner.compilation}, "
        f"{workers} worker{'s' * (workers != 1)} for training images"
    )


def images(source: Source) -> list[str]:
    """What there is to learn from."""
    catalog = source.catalog
    found = (
        f"data: {source.location}: {len(catalog.classes)} classes, {len(catalog.train):,} training and "
        f"{len(catalog.val):,} validation images (fingerprint {source.fingerprint})"
    )
    if source.minival is None:
        return [found]
    return [
        found,
        f"minival: the validation images are {describe_minival(source.minival)}, held out of training class by class; "
        "the validation split is not looked at (gaeanet evaluate RUN counts it)",
    ]


def schedule(experiment: Experiment, context: LocalContext, state: RunState, steps: int) -> list[str]:
    """The batches and the rate, and where a resumed run is."""
    hp = experiment.hyperparameters
    sentences = [
        f"plan: global {hp.global_batch_size} = {_arithmetic(hp, context.processes.world_size)}, {steps:,} steps an "
        f"epoch, {hp.epochs} epochs, lr {hp.learning_rate:g}, {hp.lr_scheduler}, "
        f"{min(hp.warmup_epochs, hp.epochs)} epochs of warm-up"
    ]
    if hp.color_jitter and (kernel := availability()) != OWN:
        sentences.append(f"colour jitter by Pillow, some milliseconds an image: {kernel}")
    if state.batches:
        sentences.append(f"resumed after step {state.batches:,} (epoch {state.batches / steps:.2f})")
    return sentences


def _arithmetic(batches: Batches, world_size: int) -> str:
    """How a global batch is made up: processes x images at once x parts."""
    shares = [share(batches.global_batch_size, rank, world_size) for rank in range(world_size)]
    sizes = sorted({part.stop - part.start for part in shares}, reverse=True)
    parts = batches.parts(sizes[0])
    at_once = " or ".join(str(math.ceil(size / parts)) for size in sizes)
    return f"{world_size} process{'es' * (world_size > 1)} x {at_once} x {parts}"


def closing_words(state: RunState, context: LocalContext, minival: float | None) -> list[str]:
    """What came of it, and where it is."""
    words = [context.whereabouts()]
    if state.best:
        best = state.best[0]
        kind = "averaged (EMA)" if best["weights"] == "ema" else "raw"
        where = "" if minival is None else f", on {describe_minival(minival)} held out"
        words.insert(
            0, f"best: top-1 {best['top1_accuracy']:.2f} % at epoch {best['epoch']:g} with {kind} weights{where}"
        )
    return skipped(state) + words


def skipped(state: RunState) -> list[str]:
    """What there is to say of steps that changed nothing."""
    skipped = int(state.learner.counts[1])
    return [f"{skipped} steps were skipped for a gradient that was not finite"] if skipped else []
