"""The report of a bench: a table, the bottleneck and its remedy, memory and time of the whole run."""

from __future__ import annotations

import json
from typing import Any

from gaeanet import __version__
from gaeanet.bench.measure import INPUT, Findings
from gaeanet.bench.step import STEP
from gaeanet.config.experiment import Experiment
from gaeanet.data.sources.order import steps_per_epoch
from gaeanet.data.sources.source import Source
from gaeanet.errors import counted
from gaeanet.runtime.host import usable_cores
from gaeanet.runtime.progress import duration
from gaeanet.runtime.tables import table_lines

_GIB = 2.0**30
_SHARED = 0.125
"""Fraction of the cores that others use from which on the machine counts as shared."""


def facts_of(experiment: Experiment, source: Source, findings: Findings, elsewhere: float | None) -> dict[str, Any]:
    """The results of a bench as plain values: times in seconds, memory in bytes.

    Args:
        elsewhere: Cores that other processes kept busy as it began, where that is known.
    """
    hp, catalog, seconds = experiment.hyperparameters, source.catalog, findings.seconds
    steps = hp.epochs * steps_per_epoch(len(catalog.train), hp.global_batch_size)
    images = steps * hp.global_batch_size
    validations = -(-hp.epochs // hp.validate_every)
    writes = 1 + validations + (steps // hp.checkpoint_every if hp.checkpoint_every else 0)
    whole = {
        "listing": seconds["listing"],
        **{stage: images * seconds[stage] / max(1, findings.facts["workers"]) for stage in INPUT},
        **{stage: images * seconds[stage] for stage in ("input", *STEP, "step", "end to end")},
        "validation": validations * (findings.validation_start + len(catalog.val) * seconds["validation"]),
        "checkpoint": writes * seconds["checkpoint"],
    }
    run = sum(whole[part] for part in ("listing", "end to end", "validation", "checkpoint"))
    each = {"listing": len(catalog.train) + len(catalog.val), "checkpoint": images / writes}
    stages = {}
    for stage, busy in whole.items():
        per_image = seconds[stage] / each.get(stage, 1)
        stages[stage] = {
            "seconds_per_image": per_image,
            "images_per_second": 1 / per_image,
            "fraction": min(1.0, busy / run),
            "images_measured": findings.images.get(stage, 0),
        }
    bottleneck = _bottleneck(whole)
    return {
        "gaeanet": __version__,
        "experiment": experiment.name,
        **findings.facts,
        "location": source.location,
        "generated": source.generated,
        "cores_busy_elsewhere": elsewhere,
        "training_images": len(catalog.train),
        "global_batch_size": hp.global_batch_size,
        "micro_batch": findings.micro_batch,
        "stages": stages,
        "bottleneck": {"stage": bottleneck, "remedy": _remedy(bottleneck, experiment, source, findings)},
        "memory": _memory(findings),
        "run": {
            "epochs": hp.epochs,
            "seconds": run,
            "training_seconds": whole["end to end"],
            "validations": validations,
            "validation_seconds": whole["validation"],
            "checkpoints": writes,
            "checkpoint_seconds": whole["checkpoint"],
        },
    }


def _bottleneck(whole: dict[str, float]) -> str:
    """The slowest stage of whatever takes longest: the pipeline, the step, validations, checkpoints or the listing."""
    longest = max(("input", "step", "validation", "checkpoint", "listing"), key=whole.__getitem__)
    parts = {"input": INPUT, "step": STEP}.get(longest, (longest,))
    return max(parts, key=whole.__getitem__)


def _remedy(stage: str, experiment: Experiment, source: Source, findings: Findings) -> str:
    """The remedy for a bottleneck, in one sentence."""
    hp, data, workers = experiment.hyperparameters, experiment.data, findings.facts["workers"]
    cores = usable_cores()
    cpu = findings.facts["device"].startswith("CPU")
    if stage in INPUT and data.num_workers_train < cores:
        return f"set data.num_workers_train to {cores}, this machine's cores (now {workers})"
    if stage == "reading" and source.generated:
        return "images are being drawn: with --data LOCATION photographs are read instead"
    if stage == "reading" and "://" in source.location and data.streaming:
        return "keep a local copy: data.streaming: false, and a directory in data.data_download_dir"
    if stage == "reading":
        return "put the images on a faster disk, or pack them into large files with gaeanet prepare --shards"
    if stage == "decoding":
        return (
            "store smaller images (the crop needs few of a large photograph's pixels), or use a machine of more cores"
        )
    if stage == "augmenting":
        costly = [key for key in ("autoaugment", "randaugment", "color_jitter") if getattr(hp, key)]
        named = f" ({' and '.join(costly)} cost{'s' * (len(costly) == 1)} most, but belong to the recipe)" * bool(
            costly
        )
        return f"use a machine of more cores{named}"
    if stage == "transfer":
        return "the way to the device is slow: look for a GPU in a slot of fewer lanes, or another program that uses it"
    if stage in ("forward", "backward") and cpu:
        return (
            "use a GPU; on this processor only a smaller network, or smaller images for a part of the run, are faster"
        )
    if stage in ("forward", "backward") and findings.facts["precision"] == "fp32":
        return "set hyperparameters.precision to auto: this GPU may be faster in bf16 or fp16"
    if stage in ("forward", "backward") and findings.facts["compilation"].startswith("not compiled"):
        return "set hyperparameters.compile to auto"
    if stage in ("forward", "backward"):
        return "the GPU is the limit, as it should be: more of them (torchrun --nproc_per_node) are faster"
    if stage == "optimizer":
        return "raise hyperparameters.global_batch_size, and the learning rate with it"
    if stage == "validation":
        return "raise hyperparameters.validate_every"
    if stage == "checkpoint":
        return "raise hyperparameters.checkpoint_every or validate_every, or keep the run on a faster disk"
    return "pack the images into shards with an index: gaeanet prepare --shards"


def _memory(findings: Findings) -> dict[str, Any] | None:
    memory = findings.memory
    if memory is None:
        return None
    return {
        "measured": {str(images): peak for images, peak in sorted(memory.measured.items())},
        "bytes_per_image": memory.per_image,
        "peak": memory.peak,
        "prepared_batches": memory.prepared,
        "available": memory.available,
        "headroom": memory.available - memory.peak - memory.prepared,
        "micro_batch_that_fits": memory.fits,
    }


def to_json(facts: dict[str, Any]) -> str:
    """The facts as one JSON object."""
    return json.dumps(facts, indent=1)


def to_text(facts: dict[str, Any]) -> str:
    """The facts for people."""
    marker = "[generated images] " if facts["generated"] else ""
    lines = [
        f"{marker}{facts['experiment']}: {facts['device']}, {facts['precision']}, {facts['compilation']}, "
        f"{counted(facts['workers'], 'worker')}",
        f"{facts['location']}: {facts['training_images']:,} training images, batches of {facts['global_batch_size']:,}",
        "",
    ]
    rows: list[list[str]] = []
    for stage, timing in facts["stages"].items():
        if stage in ("reading", "transfer", "end to end"):
            rows.append([])
        name = "reading (generated)" if stage == "reading" and facts["generated"] else _NAMES.get(stage, stage)
        cells = (
            _time(timing["seconds_per_image"]),
            _rate(timing["images_per_second"]),
            f"{100 * timing['fraction']:.0f} %",
        )
        rows.append([name, *cells])
    lines += table_lines(["stage", "an image", "images/s", "busy"], rows, right=(1, 2, 3))
    run, bottleneck = facts["run"], facts["bottleneck"]
    lines += [
        "",
        f"bottleneck: {bottleneck['stage']}: {bottleneck['remedy']}",
        f"memory: {_memory_text(facts)}",
        f"whole run: {counted(run['epochs'], 'epoch')} in {duration(run['seconds'])}, of it "
        f"{duration(run['validation_seconds'])} for {counted(run['validations'], 'validation')} and "
        f"{duration(run['checkpoint_seconds'])} for {counted(run['checkpoints'], 'checkpoint')}",
    ]
    if facts["ways"]:
        others = ", ".join(f"{way} {_rate(rate)} images/s" for way, rate in facts["ways"].items())
        lines.insert(-1, f"a step with another hyperparameters.compile: {others}")
    if (shared := facts["cores_busy_elsewhere"]) is not None and shared > _SHARED * usable_cores():
        lines.append(
            f"this machine is shared: as this began, other processes kept {shared:.1f} of "
            f"{counted(usable_cores(), 'core')} busy; alone it is faster"
        )
    measured = facts["stages"]["step"]["images_measured"]
    if measured < facts["global_batch_size"]:
        lines.append(f"a step was measured with {measured:,} images and extrapolated to {facts['global_batch_size']:,}")
    lines.append(
        "busy: fraction of the whole run that a stage is at work; the pipeline works beside the step"
        if facts["workers"]
        else "busy: fraction of the whole run that a stage is at work"
    )
    return "\n".join(lines)


_NAMES = {"input": "= pipeline", "step": "= step"}


def _memory_text(facts: dict[str, Any]) -> str:
    memory = facts["memory"]
    if memory is None:
        return "not to be measured on this system"
    micro_batch, sizes = facts["micro_batch"], list(memory["measured"])
    how = "measured" if str(micro_batch) in sizes else f"estimated from {' and '.join(sizes)}"
    waiting = f" and {_size(memory['prepared_batches'])} of prefetched batches" if memory["prepared_batches"] else ""
    available = _size(memory["available"])
    text = f"{_size(memory['peak'])} for a micro-batch of {micro_batch:,} ({how}){waiting}, of {available}"
    fit = memory["micro_batch_that_fits"]
    if memory["headroom"] >= 0:
        return f"{text}: {_size(memory['headroom'])} headroom; a micro-batch of about {fit:,} would fit"
    if fit:
        return f"{text}: too little; set hyperparameters.max_batch_per_slot to {fit:,} or less"
    return f"{text}: too little for a micro-batch of two: lower data.num_workers_train or the network's size"


def _size(count: float) -> str:
    return f"{count / _GIB:,.1f} GiB" if count >= _GIB else f"{count * 1024 / _GIB:,.0f} MiB"


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:,.3f} ms" if seconds < 0.1 else f"{seconds:,.3f} s"


def _rate(images: float) -> str:
    return f"{images:,.0f}" if images >= 100 else f"{images:,.2f}"
