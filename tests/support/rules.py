"""Determined 0.38's rules for an experiment file, as far as ours go: a master checks them, its client does not."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

DEPRECATED = {
    "max_steps",
    "min_validation_period",
    "min_checkpoint_period",
    "records_per_epoch",
    "optimizations",
    "scheduling_unit",
}
KEYS = {
    "name",
    "description",
    "labels",
    "project",
    "workspace",
    "entrypoint",
    "data",
    "hyperparameters",
    "searcher",
} | {
    "resources",
    "checkpoint_storage",
    "checkpoint_policy",
    "bind_mounts",
    "max_restarts",
    "environment",
    "profiling",
    "reproducibility",
    "debug",
    "log_policies",
    "preemption_timeout",
    "retention_policy",
}
SEARCHERS = {
    "single": {"name", "metric", "smaller_is_better"},
    "adaptive_asha": {"name", "metric", "smaller_is_better", "time_metric", "max_time", "max_trials"}
    | {"max_concurrent_trials", "mode", "divisor", "max_rungs"},
}
SPACES = {
    "const": {"val"},
    "int": {"minval", "maxval"},
    "double": {"minval", "maxval"},
    "log": {"minval", "maxval", "base"},
    "categorical": {"vals"},
}


def broken(tree: dict[str, Any], validation_metrics: Collection[str]) -> Iterator[str]:
    """The rules that a parsed experiment file breaks, in words; `validation_metrics` are those that trials report."""
    for key in ("name", "entrypoint", "hyperparameters", "searcher", "resources"):
        if not tree.get(key):
            yield f"{key} is missing"
    for key in tree:
        if key in DEPRECATED:
            yield f"{key} is deprecated"
        elif key not in KEYS:
            yield f"{key} is unknown"
    searcher, resources = tree.get("searcher") or {}, tree.get("resources") or {}
    slots = resources.get("slots_per_trial")
    yield from _searcher(searcher, validation_metrics)
    yield from _entrypoint(str(tree.get("entrypoint")), slots)
    if not isinstance(slots, int) or slots < 0:
        yield "resources.slots_per_trial must be a whole number"
    elif slots > 1 and not isinstance(resources.get("shm_size"), (int, str)):
        yield "resources.shm_size is missing: a container has 64 MB of shared memory"
    for name, value in (tree.get("hyperparameters") or {}).items():
        yield from _hyperparameter(name, value, searcher.get("name"))
    for mount in tree.get("bind_mounts") or []:
        if not str(mount.get("host_path", "")).startswith("/") or not mount.get("container_path"):
            yield "bind_mounts need an absolute host_path and a container_path"
    for policy in tree.get("log_policies") or []:
        if not policy.get("name") or policy.get("action") not in (None, "cancel_retries", "exclude_node"):
            yield "log_policies need a name, and cancel_retries or exclude_node as action"
    for key, value in (tree.get("checkpoint_storage") or {}).items():
        if key.startswith("save_") and not (isinstance(value, int) and value >= 0):
            yield f"checkpoint_storage.{key} must be a whole number"
    if tree.get("max_restarts", 0) < 0:
        yield "max_restarts must be a whole number"


def _searcher(searcher: dict[str, Any], validation_metrics: Collection[str]) -> Iterator[str]:
    known = SEARCHERS.get(searcher.get("name", ""))
    if known is None:
        yield f"searcher.name {searcher.get('name')} is none of {', '.join(SEARCHERS)}"
        return
    for key in searcher.keys() - known:
        yield f"searcher.{key} is {'deprecated' if key == 'max_length' else 'unknown'}"
    if searcher.get("metric") not in validation_metrics:
        yield f"searcher.metric {searcher.get('metric')} is not among the validation metrics"
    if searcher.get("smaller_is_better") is not False:
        yield "searcher.smaller_is_better must be false: accuracy is to grow"
    if searcher["name"] != "adaptive_asha":
        return
    if searcher.get("time_metric") not in validation_metrics:
        yield f"searcher.time_metric {searcher.get('time_metric')} is not among the validation metrics"
    for key in ("max_time", "max_trials"):
        if not isinstance(searcher.get(key), int) or searcher[key] < 1:
            yield f"searcher.{key} must be a whole number above 0"


def _entrypoint(entrypoint: str, slots: Any) -> Iterator[str]:
    launcher = entrypoint.startswith("python3 -m determined.launch.torch_distributed ")
    if ":" in entrypoint or "--trial" in entrypoint:
        yield "entrypoint: trial classes are deprecated"
    if slots == 0 and launcher:
        yield "entrypoint: the torch launcher fails with slots_per_trial 0"
    if slots != 0 and not launcher:
        yield "entrypoint: slots need the torch launcher"


def _hyperparameter(name: str, value: Any, searcher: Any) -> Iterator[str]:
    if not isinstance(value, dict) or "type" not in value:
        return
    required = SPACES.get(value["type"])
    if required is None:
        yield f"hyperparameters.{name}.type {value['type']} is none of {', '.join(SPACES)}"
    elif missing := required - value.keys():
        yield f"hyperparameters.{name} lacks {', '.join(sorted(missing))}"
    elif "minval" in value and not value["minval"] < value["maxval"]:
        yield f"hyperparameters.{name}: minval must be below maxval"
    elif searcher == "single" and value["type"] != "const":
        yield f"hyperparameters.{name} is a search space, and the searcher single takes the first value at random"
