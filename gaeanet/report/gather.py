"""report.html: gathers the content of a report on runs, and writes it. What is missing is named in the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gaeanet.artifacts.directory import CONFIG, read_run
from gaeanet.artifacts.find import find, unique_names
from gaeanet.artifacts.lineage import chain
from gaeanet.artifacts.metadata import read_metadata
from gaeanet.config.experiment import Experiment, load_experiment
from gaeanet.data.images.transforms import ValidationTransform
from gaeanet.data.sources.evaluation import open_evaluation_data
from gaeanet.data.sources.open import open_source
from gaeanet.data.sources.source import Source
from gaeanet.data.sources.splits import search_splits
from gaeanet.errors import GaeanetError, RequestError, RunError, reason
from gaeanet.evaluation.score import PREFIX, TITLES, Options, per_class, predictions_of
from gaeanet.report.page import RunFacts, page
from gaeanet.report.pictures import confused, samples
from gaeanet.runtime.files import is_file, replace_text
from gaeanet.runtime.processes import Processes


def gather(
    run_dir: Path, name: str, *, source: Source | None = None, images: bool = True, processes: Processes | None = None
) -> RunFacts:
    """The content of a report on a run.

    Args:
        source: The run's images where they are open already.
        images: Whether to look at images at all.
        processes: For an evaluation of the best checkpoint, image by image; None leaves that out.

    Raises:
        RequestError: There is no run in `run_dir`.
    """
    lines = read_run(run_dir)
    if not is_file(run_dir / CONFIG):
        raise RequestError(f"{run_dir}: no {CONFIG} there: a report needs the run's whole directory")
    experiment: Experiment = load_experiment(run_dir / CONFIG)
    facts = RunFacts(name, lines, experiment)
    if experiment.hyperparameters.search is not None:
        return _of_search(facts, source, images)
    try:
        trained = find(run_dir)
        facts.lineage = list(chain(read_metadata(run_dir) or {}))
        facts.classes = trained.display_names
    except GaeanetError as error:
        facts.notes.append(f"Its checkpoints cannot be read: {error}")
        return facts
    if not images:
        return facts
    try:
        if source is None or processes is not None:
            # What was validated on in the run, so that looking at the report is no look at the validation split.
            held_out = experiment.data.minival is not None
            opened, _ = open_evaluation_data(trained.state, trained.hyperparameters, None, minival=held_out)
            source = source or opened
        facts.samples = samples(source, experiment.hyperparameters) if len(source.catalog.train) else []
        if processes is None:
            facts.notes.append("Worst classes and confusions are added by gaeanet report, which evaluates the images.")
            return facts
        kind = trained.preferred
        predictions = predictions_of(trained, source, Options([kind], workers=0), processes)
        rows = [row for row in per_class(predictions, source.catalog.classes, facts.classes) if row["count"]]
        facts.rows = sorted(rows, key=lambda row: row[f"{PREFIX[kind]}top1_accuracy"])
        facts.weights = TITLES[kind]
        view = ValidationTransform(trained.hyperparameters.image_size, trained.crop_fraction)
        facts.confusions = confused(source, predictions[kind], view)
    except GaeanetError as error:
        facts.notes.append(f"Its images cannot be shown: {error}")
    return facts


def _of_search(facts: RunFacts, source: Source | None, images: bool) -> RunFacts:
    """The facts of a search beside its log: it leaves a genotype, and no network to evaluate."""
    if not images:
        return facts
    try:
        if source is None:
            source, _ = search_splits(open_source(facts.experiment), facts.experiment.hyperparameters)
        facts.samples = samples(source, facts.experiment.hyperparameters)
        facts.classes = unique_names(source.catalog.classes, source.catalog.class_names)
    except GaeanetError as error:
        facts.notes.append(f"Its images cannot be shown: {error}")
    return facts


def write_page(runs: Sequence[RunFacts], path: Path) -> None:
    """Writes the report, replaced in one step; raises `RunError` where that cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, page(runs), errors="backslashreplace")
    except OSError as error:
        raise RunError(f"{path}: cannot write the report: {reason(error)}") from None
