"""`gaeanet evaluate`: metrics of a trained network, with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gaeanet.artifacts.find import Trained
from gaeanet.config.data import describe_minival
from gaeanet.data.images.transforms import ValidationTransform
from gaeanet.data.loading.workers import usable_workers
from gaeanet.data.sources.evaluation import real_labels
from gaeanet.data.sources.source import Source
from gaeanet.errors import counted
from gaeanet.evaluation.predictions import Predictions, predict_split
from gaeanet.evaluation.statistics import calibration_error, mcnemar, wilson
from gaeanet.runtime import devices
from gaeanet.runtime.processes import Processes
from gaeanet.runtime.strict_json import dumps
from gaeanet.runtime.tables import table_lines

PREFIX = {"raw": "", "ema": "ema_"}
"""The prefix of a metric's name in the log, by kind of weights."""
TITLES = {"raw": "raw", "ema": "EMA"}


@dataclass(frozen=True)
class Options:
    """How to evaluate; None keeps the setting of the network's own training.

    Attributes:
        kinds: Kinds of weights to evaluate.
        image_size: Side of the crop in pixels.
        crop_fraction: Fraction of the resized image that the crop shows.
        batch: Images of a batch.
        workers: Processes that prepare images.
    """

    kinds: Sequence[str]
    image_size: int | None = None
    crop_fraction: float | None = None
    batch: int | None = None
    workers: int = 2


def transform_for(trained: Trained, options: Options) -> ValidationTransform:
    """The network's own validation transform, changed where the options say so."""
    size = options.image_size or trained.hyperparameters.image_size
    return ValidationTransform(size, options.crop_fraction or trained.crop_fraction)


def predictions_of(trained: Trained, source: Source, options: Options, processes: Processes) -> dict[str, Predictions]:
    """The predictions of each kind of weights for the images, by kind."""
    hp = trained.hyperparameters
    networks = [trained.network(kind, processes.device) for kind in options.kinds]
    predictions = predict_split(
        networks,
        source,
        transform_for(trained, options),
        processes,
        batch=options.batch or min(hp.global_batch_size, 256),
        # The run's own batches; with another batch size there is nothing to reproduce.
        shards=int(trained.state.get("world_size") or 1) if options.batch is None else processes.world_size,
        workers=usable_workers(options.workers),
    )
    return dict(zip(options.kinds, predictions))


def score(predictions: Predictions, prefix: str = "", real: list[list[int]] | None = None) -> dict[str, Any]:
    """One network's metrics, named as in the log; accuracies and intervals in percent.

    Args:
        real: The ReaL labels of each image; images without any are left out.
    """
    count = len(predictions.labels)
    numbers: dict[str, Any] = {"loss": predictions.loss}
    for name, right in (("top1", predictions.correct), ("top5", predictions.correct5)):
        numbers |= _accuracy(name, int(right.sum()), count)
    numbers["calibration_error"] = 100 * calibration_error(predictions.confidence, predictions.correct)
    if real is not None:
        labelled = [number for number, labels in enumerate(real) if labels]
        firsts = sum(predictions.guesses[n, 0] in real[n] for n in labelled)
        any_of_five = sum(bool(set(predictions.guesses[n].tolist()) & set(real[n])) for n in labelled)
        numbers |= {"real_count": len(labelled)}
        numbers |= _accuracy("real_top1", firsts, len(labelled)) | _accuracy("real_top5", any_of_five, len(labelled))
    return {f"{prefix}{name}": value for name, value in numbers.items()}


def _accuracy(name: str, right: int, count: int) -> dict[str, Any]:
    low, high = wilson(right, count)
    return {
        f"{name}_accuracy": 100.0 * right / count if count else math.nan,
        f"{name}_correct": right,
        f"{name}_interval": [100 * low, 100 * high],
    }


def per_class(
    predictions: dict[str, Predictions], classes: Sequence[str], names: Sequence[str]
) -> list[dict[str, Any]]:
    """A row for each class: images, accuracy by kind of weights, and the class it is most often confused with."""
    rows = []
    for label, (key, name) in enumerate(zip(classes, names)):
        mine = next(iter(predictions.values())).labels == label
        row: dict[str, Any] = {"index": label, "class": key, "name": name, "count": int(mine.sum())}
        for kind, predicted in predictions.items():
            right = int(predicted.correct[mine].sum())
            row |= _accuracy(f"{PREFIX[kind]}top1", right, row["count"])
            wrong = predicted.guesses[mine & ~predicted.correct, 0]
            taken = np.bincount(wrong, minlength=len(classes))
            row[f"{PREFIX[kind]}taken_for"] = classes[int(taken.argmax())] if len(wrong) else None
            row[f"{PREFIX[kind]}taken_for_count"] = int(taken.max()) if len(wrong) else 0
        rows.append(row)
    return rows


def confusions(predictions: Predictions, limit: int) -> list[tuple[int, int, int]]:
    """The most frequent confusions (true class, predicted class, images), at most `limit`."""
    wrong = ~predictions.correct
    pairs, counts = np.unique(
        np.stack([predictions.labels[wrong], predictions.guesses[wrong, 0]], axis=1), axis=0, return_counts=True
    )
    order = np.argsort(-counts, kind="stable")[:limit]
    return [(int(pairs[n, 0]), int(pairs[n, 1]), int(counts[n])) for n in order]


def evaluate_trained(
    trained: Trained,
    source: Source,
    notes: Sequence[str],
    options: Options,
    processes: Processes,
    *,
    other: Trained | None = None,
    with_classes: bool = False,
) -> dict[str, Any]:
    """The results of `gaeanet evaluate` as plain values; all processes of a group must call this.

    Args:
        other: A network to compare with, on the same images, each with its own transform.
        with_classes: Whether to include the table of classes.
    """
    transform, hp = transform_for(trained, options), trained.hyperparameters
    predictions = predictions_of(trained, source, options, processes)
    real = real_labels(source.catalog)
    own = ValidationTransform(hp.image_size, trained.crop_fraction)
    facts: dict[str, Any] = {
        "checkpoint": str(trained.path),
        "data": source.location,
        "data_fingerprint": source.fingerprint,
        "generated": source.generated,
        "minival": source.minival,
        "device": devices.describe(processes.device),
        "cell": hp.cell.fingerprint,
        "image_size": transform.size,
        "resize": transform.resize,
        "changed": [
            f"{what} {now}, {then} in the run"
            for what, now, then in (("size", transform.size, own.size), ("resize", transform.resize, own.resize))
            if now != then
        ],
        "notes": list(notes),
        "count": len(source.catalog.val),
    }
    for kind, predicted in predictions.items():
        facts |= score(predicted, PREFIX[kind], real)
    names = trained.display_names if trained.classes else source.catalog.class_names
    if with_classes:
        facts["per_class"] = per_class(predictions, source.catalog.classes, names)
    if other is not None:
        facts["compare"] = _compare(trained, other, predictions, source, options, processes)
    return facts


def _compare(
    trained: Trained,
    other: Trained,
    predictions: dict[str, Predictions],
    source: Source,
    options: Options,
    processes: Processes,
) -> dict[str, Any]:
    mine = trained.preferred if trained.preferred in predictions else next(iter(predictions))
    theirs = other.preferred if len(options.kinds) > 1 or options.kinds[0] not in other.kinds else options.kinds[0]
    second_options = replace(options, kinds=[theirs])
    second = predictions_of(other, source, second_options, processes)[theirs]
    paired = mcnemar(predictions[mine].correct, second.correct)
    return {
        "checkpoint": str(other.path),
        "weights": [mine, theirs],
        "top1_accuracy": [100 * float(p.correct.mean()) for p in (predictions[mine], second)],
        **paired._asdict(),
        "difference": 100 * paired.difference,
        "interval": [100 * end for end in paired.interval],
    }


def to_json(facts: dict[str, Any]) -> str:
    """The values as JSON; numbers that are not finite become null, since JSON lacks them."""
    return dumps(facts, indent=1)


def to_text(facts: dict[str, Any], kinds: Sequence[str]) -> Iterator[str]:
    """The values as text, line by line."""
    marker = " [generated images]" if facts["generated"] else ""
    yield f"{facts['checkpoint']} (cell {facts['cell']})"
    held_out = f", {describe_minival(facts['minival'])}, held out in the run" if facts["minival"] is not None else ""
    yield f"{counted(facts['count'], 'image')} of {facts['data']}{held_out}{marker}, {facts['device']}"
    yield f"shorter side to {facts['resize']}, centre {facts['image_size']} x {facts['image_size']}"
    yield from (f"not as in the run: {change}" for change in facts["changed"])
    yield from facts["notes"]
    yield ""
    metrics = [("top-1 accuracy, %", "top1"), ("top-5 accuracy, %", "top5")]
    if f"{PREFIX[kinds[0]]}real_count" in facts:
        metrics += [("ReaL top-1, %", "real_top1"), ("ReaL top-5, %", "real_top5")]
    rows = [[title, *(_cell(facts, PREFIX[kind] + name) for kind in kinds)] for title, name in metrics]
    for title, name, unit in (("loss", "loss", ""), ("calibration error", "calibration_error", " %")):
        rows.append([title, *(f"{facts[PREFIX[kind] + name]:.4f}{unit}" for kind in kinds)])
    yield from table_lines(["", *(TITLES[kind] for kind in kinds)], rows)
    yield "in brackets: 95 % interval (Wilson) for other images of the same kind"
    if "per_class" in facts:
        yield ""
        yield from _class_table(facts["per_class"], kinds)
    if "compare" in facts:
        yield ""
        yield from _comparison(facts["compare"], facts["checkpoint"])


def _cell(facts: dict[str, Any], name: str) -> str:
    low, high = facts[f"{name}_interval"]
    return f"{facts[f'{name}_accuracy']:.2f}  ({low:.2f} to {high:.2f})"


def _class_table(rows: list[dict[str, Any]], kinds: Sequence[str]) -> list[str]:
    """Worst class first, by the last kind of weights; one line a class, for `grep` and `sort`."""
    last = PREFIX[kinds[-1]]
    names = {row["class"]: row["name"] for row in rows}
    table = []
    for row in sorted((row for row in rows if row["count"]), key=lambda row: float(row[f"{last}top1_accuracy"])):
        values = (f"{row[PREFIX[kind] + 'top1_accuracy']:.2f}" for kind in kinds)
        taken = row[f"{last}taken_for"]
        instead = f"{names[taken]} ({row[f'{last}taken_for_count']})" if taken else "-"
        table.append([row["name"], f"{row['count']}", *values, instead])
    headers = ["class", "images", *(f"{TITLES[kind]} top-1" for kind in kinds), "taken for"]
    return table_lines(headers, table, right=range(1, len(kinds) + 2), cut=(0, len(kinds) + 2))


def _comparison(pair: dict[str, Any], path: str) -> Iterator[str]:
    first, second = (TITLES[kind] for kind in pair["weights"])
    yield f"A: {path}, {first}: top-1 {pair['top1_accuracy'][0]:.2f} %"
    yield f"B: {pair['checkpoint']}, {second}: top-1 {pair['top1_accuracy'][1]:.2f} %"
    yield (
        f"right in both {pair['both']:,}, only A {pair['only_first']:,}, only B {pair['only_second']:,}, "
        f"neither {pair['neither']:,}"
    )
    low, high = pair["interval"]
    verdict = "differ" if pair["p_value"] < 0.05 else "may be equally good"
    yield (
        f"B - A: {pair['difference']:+.2f} points (95 %: {low:+.2f} to {high:+.2f}), "
        f"McNemar p = {pair['p_value']:.3g}: the two {verdict}"
    )
