"""The job of a search: two streams of images, a genotype each epoch, its messages and log columns."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import nn

from gaeanet import __version__
from gaeanet.artifacts.directory import GENOTYPE
from gaeanet.artifacts.lineage import lineage_of
from gaeanet.cells.space import CANDIDATES, EDGES
from gaeanet.config.experiment import Experiment, Hyperparameters
from gaeanet.config.search import PATH, Search
from gaeanet.data.images.transforms import normalize
from gaeanet.data.loading.loader import Batch
from gaeanet.data.loading.read_errors import ReadErrors
from gaeanet.data.sources.order import steps_per_epoch, stream_seed
from gaeanet.data.sources.source import Source
from gaeanet.data.sources.splits import search_splits
from gaeanet.errors import counted
from gaeanet.optim.groups import Group
from gaeanet.optim.rates import Rates, Row
from gaeanet.runs.local import LocalContext
from gaeanet.runtime import devices
from gaeanet.runtime.processes import Processes
from gaeanet.search.architecture import Architecture, mixture_of
from gaeanet.search.costs import REFERENCE, budget, cost_of
from gaeanet.search.discretize import discretize, one_hot
from gaeanet.search.findings import Findings
from gaeanet.search.genotype_file import write_genotype
from gaeanet.search.objective import SearchObjective
from gaeanet.search.supernet import Mixed, Supernet, recalibrated
from gaeanet.training.acceleration import NOT_COMPILED, choose
from gaeanet.training.banner import environment, images, schedule, skipped_steps
from gaeanet.training.job import Job
from gaeanet.training.learner import Learner, assemble
from gaeanet.training.loop import run
from gaeanet.training.preflight import training_workers
from gaeanet.training.state import RunState

SHORT = 0.125
"""Fraction of the paper's path below which a search says that it is short."""

CALIBRATION_BATCHES = 8
"""Training batches from which a discretized supernet's batch-norm statistics are taken."""


def build_supernet(hp: Hyperparameters) -> Supernet:
    """The supernet that the hyperparameters describe, with the initial weights of their seed."""
    assert hp.search is not None
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(hp.seed)
        return Supernet(
            hp.num_classes, hp.init_channels, hp.layers, hp.search.divisor, stem=hp.stem, activation=hp.activation
        )


def build_search_learner(hp: Hyperparameters, processes: Processes) -> Learner:
    """A supernet that is ready to learn on this process's device."""
    precision = devices.precision_for(hp.precision, processes.device)
    supernet = build_supernet(hp).to(processes.device).to(memory_format=torch.channels_last)
    way = NOT_COMPILED if hp.compile is True else choose(hp, supernet, precision, processes)
    return assemble(supernet, [Group(list(supernet.named_parameters()))], hp, processes, precision, way)


def search(experiment: Experiment, source: Source, context: LocalContext) -> None:
    """Searches for a cell on the images of `source`; resumes, and fails, as `loop.run` does.

    Raises:
        RequestError: Also where there are too few images for both splits, or no cell fits the limit.
    """
    run(Searching, experiment, source, context)


class Searching(Job):
    """The training of a supernet and of its architecture."""

    def __init__(self, experiment: Experiment, source: Source, processes: Processes) -> None:
        hp = experiment.hyperparameters
        assert hp.search is not None
        self.search = hp.search
        self.full_source = source
        weights, self.others = search_splits(source, hp)
        super().__init__(experiment, weights, processes)
        self.warmup = self.search.warmup(hp.epochs)
        self.budget = budget(self.search.multiply_adds_limit)
        self.architecture_steps = (hp.epochs - self.warmup) * self.steps
        self.architecture = Architecture(hp.search, processes.device, steps=self.architecture_steps)
        self.findings = Findings(self.architecture)
        self.state = RunState(
            experiment, source, build_search_learner(hp, processes), extra=self.findings, weights="supernet"
        )
        self._objective = SearchObjective(self.architecture, hp.label_smoothing_rate)
        self._architecture_batches: Iterator[Batch] = iter(())
        self._columns: dict[str, Any] = {}

    def plan(self, context: LocalContext) -> list[str]:
        hp, search = self.hyperparameters, self.search
        parameters = sum(parameter.numel() for parameter in self.state.learner.network.parameters())
        rate = f"architecture lr {search.rate(self.architecture_steps):.4g}"
        rate += f", after {counted(self.warmup, 'epoch')}" * bool(self.warmup)
        if self.others is None:
            search_data = f"{len(self.source.catalog.train):,} of the training images, for weights and architecture"
        else:
            search_data = (
                f"{len(self.source.catalog.train):,} training images for the weights and "
                f"{len(self.others.catalog.train):,} others for the architecture"
            )
        return [
            environment(self.state, context, sum(training_workers(self.experiment))),
            f"search: {search.method}, {search.level} level, {rate}; {len(CANDIDATES)} candidates on each of "
            f"{len(EDGES)} edges of a normal and a reduction cell",
            f"supernet: {counted(hp.layers, 'cell')}, {hp.init_channels} channels, of which one in "
            f"{search.divisor} goes through the candidates, {hp.activation}, {hp.image_size} px: "
            f"{parameters:,} parameters",
            *images(self.full_source),
            f"search data: {search_data}",
            *schedule(self.experiment, context, self.state, self.steps),
            *_short_path(search, self.architecture_steps),
        ]

    def batches(self, errors: ReadErrors) -> Iterator[Batch]:
        """Batches for the weights; with each, `step` takes one for the architecture, whose epochs differ in length."""
        hp, done, workers = self.hyperparameters, self.state.batches, training_workers(self.experiment)
        if self.others is not None:
            steps = steps_per_epoch(len(self.others.catalog.train), hp.global_batch_size)
            before = self.warmup * self.steps
            epochs = -(-(hp.epochs * self.steps - before) // steps)
            taken = max(0, done - before)
            stream = self.stream(self.others, stream_seed(hp.seed, 1), taken, epochs=epochs, workers=workers[1])
            self._architecture_batches = iter(errors.watch(stream))
        return errors.watch(self.stream(self.source, hp.seed, done, workers=workers[0]))

    def step(self, batch: Batch, rates: Rates) -> list[str]:
        objective = self._objective
        objective.moves, objective.rate_scale = batch.epoch >= self.warmup, self.state.rate_scale
        if objective.moves and self.others is not None:
            other = next(self._architecture_batches)
            objective.others = other.images, other.labels
        return self.advance(batch, objective, rates)

    def end(self) -> None:
        super().end()
        self._architecture_batches = iter(())  # its workers end with the last one

    def end_epoch(self, context: LocalContext) -> list[str]:
        """Discretizes the architecture and writes the genotype; returns a message about it."""
        state = self.state
        weights = self.architecture.weights()
        genotype = discretize(weights, self.budget)
        changed = self.findings.note_epoch(genotype)
        counts = cost_of(genotype)
        operations, edges = self.architecture.entropies()
        self._columns = {
            "entropy": operations,
            "edge_entropy": edges,
            "genotype_changes": changed,
            "settled_epochs": self.findings.settled,
            **{f"genotype_{key}": value for key, value in counts._asdict().items()},
            "genotype": genotype.to_dict(),
            "operation_weights": {name: _rounded(cell.operations) for name, cell in weights.items()},
            "edge_weights": {name: _rounded([cell.edges])[0] for name, cell in weights.items()},
        }
        if self.processes.is_first:
            write_genotype(context.run_dir / GENOTYPE, genotype, {"cost": counts.facts, "lineage": self._lineage()})
        same = (
            f"unchanged for {counted(self.findings.settled, 'epoch')}"
            if self.findings.settled
            else f"{counted(changed, 'edge')} changed"
        )
        return [
            f"epoch {state.batches // self.steps}: entropy {operations:.3f} (edges {edges:.3f}), genotype "
            f"{genotype.fingerprint}, {same}, {counts.multiply_adds / 1e6:.0f} M multiply-adds, "
            f"{counts.parameters / 1e6:.2f} M parameters ({REFERENCE})"
        ]

    def _lineage(self) -> dict[str, Any]:
        """The genotype's lineage: search settings, data set, supernet, and epochs done."""
        hp = self.hyperparameters
        data = {
            "location": self.full_source.location,
            "fingerprint": self.full_source.fingerprint,
            "generated": self.full_source.generated,
            "settings": {"minival": self.full_source.minival},
        }
        origin = lineage_of({"gaeanet": __version__, "data": data}, hp.seed, None)
        return {
            **{key: value for key, value in origin.items() if key != "parent"},
            "search": self.search.model_dump(),
            "supernet": {
                key: getattr(hp, key) for key in ("init_channels", "layers", "stem", "activation", "image_size")
            },
            "epochs": self.state.batches // self.steps,
            "of_epochs": hp.epochs,
        }

    def columns(self, row: Row) -> dict[str, Any]:
        """With an epoch's last line, the genotype and the architecture weights."""
        return self._columns if self.state.batches % self.steps == 0 else {}

    def is_last(self, epochs: int) -> bool:
        enough = self.search.settled_epochs
        settled = enough is not None and self.state.batches == epochs * self.steps and self.findings.settled >= enough
        return super().is_last(epochs) or settled

    def networks(self) -> dict[str, nn.Module]:
        """The supernet under its mixture, and under the genotype's, with batch-norm statistics of its own."""
        supernet, genotype = self.state.learner.network, self.findings.genotype
        assert genotype is not None
        assert isinstance(supernet, Supernet)
        discrete = mixture_of(one_hot(genotype), self.processes.device)
        start = (self.state.batches // self.steps - 1) * self.steps
        stream = self.stream(self.source, self.hyperparameters.seed, start, workers=0)
        batches = [
            normalize(batch.images.to(self.processes.device))
            for batch in islice(stream, min(CALIBRATION_BATCHES, self.steps))
        ]
        copy = recalibrated(supernet, discrete, batches)
        self.processes.broadcast(list(copy.buffers()))
        mixture = [part.detach() for part in self.architecture.mixture()]
        return {"": Mixed(supernet, mixture), "discrete_": Mixed(copy, discrete)}

    def summary(self, context: LocalContext) -> list[str]:
        genotype = self.findings.genotype
        assert genotype is not None
        return [
            *skipped_steps(self.state),
            f"found: {genotype.to_text()}",
            context.describe_next(),
            context.describe_outputs(),
        ]


def _short_path(search: Search, steps: int) -> list[str]:
    """A warning where the architecture will hardly leave its start, as far as that can be known beforehand.

    Logarithms of mirror descent's weights move by rate times gradient: at the same gradients, by a path's length.
    """
    rate = search.rate(steps)
    if search.method != "gaea" or rate * steps >= SHORT * PATH:
        return []
    return [
        f"warning: the architecture takes {counted(steps, 'step')} at a learning rate of {rate:.4g}, a path of "
        f"{rate * steps:,.0f} where the paper's is {PATH:,.0f}: its weights will hardly differ; "
        "search.architecture_learning_rate: scaled makes it as long"
    ]


def _rounded(rows: Any) -> list[list[float]]:
    """Rounded to five digits, enough for a plot."""
    return [[round(value, 5) for value in row] for row in rows]
