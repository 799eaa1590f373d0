"""Messages of a run: the plan before its first step, the summary after its last."""

from __future__ import annotations

import math

import torch

from gaeanet import __version__
from gaeanet.config.data import describe_minival
from gaeanet.config.experiment import Experiment
from gaeanet.config.schedule import Batches
from gaeanet.data.loading.workers import usable_workers
from gaeanet.data.sources.order import shard_slice
from gaeanet.data.sources.source import Source
from gaeanet.errors import counted
from gaeanet.kernels.build import OWN, availability
from gaeanet.models.network import CellNetwork
from gaeanet.runs.local import LocalContext
from gaeanet.runtime import devices
from gaeanet.training.state import RunState


def plan(experiment: Experiment, source: Source, context: LocalContext, state: RunState, steps: int) -> list[str]:
    """Messages before the first step: hardware, cell, network, data, batches and learning rate."""
    hp = experiment.hyperparameters
    name = hp.genotype if isinstance(hp.genotype, str) and len(hp.genotype) < 60 else "given in full"
    network = state.learner.network
    assert isinstance(network, CellNetwork)
    tower = network.auxiliary_head
    tower_parameters = sum(parameter.numel() for parameter in tower.parameters()) if tower is not None else 0
    parameters = sum(parameter.numel() for parameter in network.parameters()) - tower_parameters
    workers = usable_workers(experiment.data.num_workers_train)
    lines = [
        environment(state, context, workers),
        f"cell {name} (fingerprint {hp.cell.fingerprint}): {hp.cell.to_text()}",
        f"network: {counted(hp.layers, 'cell')}, {hp.init_channels} channels, {hp.activation}"
        f"{', squeeze-excite' * hp.do_SE}, {hp.image_size} px: {parameters:,} parameters"
        + (f" (and {tower_parameters:,} in the auxiliary tower, for training only)" if tower_parameters else ""),
        *images(source),
    ]
    return lines + schedule(experiment, context, state, steps)


def environment(state: RunState, context: LocalContext, workers: int) -> str:
    """Versions, device, precision, compilation and number of workers."""
    return (
        f"gaeanet {__version__} on torch {torch.__version__}, {devices.describe(context.processes.device)}, "
        f"{state.learner.precision}, {state.learner.way.text}, "
        f"{counted(workers, 'worker')} for training images"
    )


def images(source: Source) -> list[str]:
    """The data set and, where the run has one, its minival."""
    catalog = source.catalog
    dataset = (
        f"data: {source.location}: {counted(len(catalog.classes), 'class')}, {len(catalog.train):,} training and "
        f"{counted(len(catalog.val), 'validation image')} (fingerprint {source.fingerprint})"
    )
    if source.minival is None:
        return [dataset]
    return [
        dataset,
        f"minival: the validation images are {describe_minival(source.minival)}, held out of training class by class; "
        "the validation split is not used (gaeanet evaluate RUN evaluates on it)",
    ]


def schedule(experiment: Experiment, context: LocalContext, state: RunState, steps: int) -> list[str]:
    """Global batch, steps, learning rate and, for a resumed run, the step that it resumes from."""
    hp = experiment.hyperparameters
    lines = [
        f"plan: global {hp.global_batch_size} = {_arithmetic(hp, context.processes.world_size)}, "
        f"{counted(steps, 'step')} an epoch, {counted(hp.epochs, 'epoch')}, lr {hp.learning_rate:g}, "
        f"{hp.lr_scheduler}, {counted(min(hp.warmup_epochs, hp.epochs), 'epoch')} of warm-up"
    ]
    if hp.color_jitter and (kernel := availability()) != OWN:
        lines.append(f"colour jitter by Pillow, some milliseconds an image: {kernel}")
    if state.batches:
        lines.append(f"resumed after step {state.batches:,} (epoch {state.batches / steps:.2f})")
    return lines


def _arithmetic(batches: Batches, world_size: int) -> str:
    """The factors of a global batch: processes x images of a micro-batch x micro-batches."""
    shards = [shard_slice(batches.global_batch_size, rank, world_size) for rank in range(world_size)]
    sizes = sorted({shard.stop - shard.start for shard in shards}, reverse=True)
    accumulated = batches.micro_batches(sizes[0])
    micro_batch = " or ".join(str(math.ceil(size / accumulated)) for size in sizes)
    return f"{counted(world_size, 'process')} x {micro_batch} x {accumulated}"


def summary(state: RunState, context: LocalContext, minival: float | None) -> list[str]:
    """Messages after the last step: skipped steps, the best validation, where the results are."""
    lines = [context.describe_outputs()]
    if state.best:
        best = state.best[0]
        kind = "averaged (EMA)" if best["weights"] == "ema" else "raw"
        held_out = "" if minival is None else f", on {describe_minival(minival)} held out"
        lines.insert(
            0, f"best: top-1 {best['top1_accuracy']:.2f} % at epoch {best['epoch']:g} with {kind} weights{held_out}"
        )
    return skipped_steps(state) + lines


def skipped_steps(state: RunState) -> list[str]:
    """A message on the steps that were skipped, if any were."""
    skipped = int(state.learner.counts[1])
    return [f"{counted(skipped, 'step')} skipped for a gradient that was not finite"] if skipped else []
