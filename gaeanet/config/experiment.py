"""The experiment file as one frozen, typed tree.

One YAML, valid as a Determined 0.38 experiment, is read by every command. `data` and `hyperparameters` are gaeanet's
and are checked to the last key; the other top-level keys are the cluster's, checked by name only and kept as they are.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field, ValidationError, model_validator

from gaeanet.config.augmentation import Augmentation, MixedImages
from gaeanet.config.base import Block
from gaeanet.config.data import Data
from gaeanet.config.messages import one_line
from gaeanet.config.network import Network
from gaeanet.config.optimizer import Optimizer
from gaeanet.config.recipes import read_file_or_recipe
from gaeanet.config.run import Run, Start
from gaeanet.config.schedule import Batches, Schedule
from gaeanet.config.search import Search
from gaeanet.errors import RequestError, counted, did_you_mean
from gaeanet.runtime.yaml import dump, parse

CLUSTER_KEYS = frozenset(
    {"name", "description", "labels", "project", "workspace", "entrypoint", "searcher", "resources"}
    | {"checkpoint_storage", "checkpoint_policy", "bind_mounts", "max_restarts", "environment", "profiling"}
    | {"reproducibility", "debug", "log_policies", "integrations", "preemption_timeout", "retention_policy"}
    | {"slurm", "pbs"}
)
"""Top-level keys of a Determined experiment that gaeanet passes by."""

_ENDED_KEYS = frozenset(
    {"min_validation_period", "min_checkpoint_period", "records_per_epoch"}
    | {"optimizations", "scheduling_unit", "max_steps"}
)
"""Top-level keys that Determined had in 2020 and has no more."""


OPERATIONAL = frozenset(
    {*Start.model_fields, "max_batch_per_slot", "compile", "track", "on_divergence", "max_bad_steps"}
    | {"checkpoint_every", "checkpoint_bucket", "keep_latest", "keep_best"}
)
"""Hyperparameters that may change when a run is resumed: they are about the machine, not the recipe."""


NOT_IN_A_SEARCH: dict[str, Any] = {
    "optimizer": "sgd",
    "do_SE": False,
    "initial_gamma": 1.0,
    "stem_stride": 2,
    "auxiliary": False,
    "drop_path_prob": 0.0,
    "drop_prob": 0.0,
    "ema_decay": 0.0,
    "sync_batch_norm": False,
    "compile": "auto",
    "init_checkpoint": None,
    "init_weights": None,
    "new_head": False,
    "freeze": "nothing",
    "layer_decay": 1.0,
    "decay_norms_and_biases": True,
    "mixup_alpha": 0.0,
    "cutmix_alpha": 0.0,
}
"""Hyperparameters that a search does without, and their only value there."""


class Hyperparameters(Start, Run, Optimizer, Batches, MixedImages, Schedule, Augmentation, Network):
    """The network and its training (`hyperparameters:`): the keys of all blocks, side by side.

    A part of the program takes its own block; all of them take this one too. (Pydantic lists the keys of the last base
    first.)
    """

    search: Search | None = None
    """How a cell is searched for, by `gaeanet search`; null for an experiment that trains a cell."""

    @model_validator(mode="before")
    @classmethod
    def _searching(cls, values: Any) -> Any:
        """The defaults of a search: the paper's activation, and nothing that a supernet does not have."""
        if not isinstance(values, dict) or values.get("search") is None:
            return values
        if "genotype" in values:
            raise ValueError("genotype and search are both given: a search finds the genotype, so leave it out")
        for key, value in NOT_IN_A_SEARCH.items():
            if values.get(key, value) != value:
                raise ValueError(f"{key} is {values[key]!r}, which a search does not have: leave it out")
        return {"activation": "relu", **NOT_IN_A_SEARCH, **values}

    @model_validator(mode="after")
    def _counts_fit(self) -> Hyperparameters:
        if isinstance(self.freeze, int) and self.freeze > self.layers:
            raise ValueError(f"freeze {self.freeze} exceeds the {counted(self.layers, 'cell')} of layers")
        if self.search is not None and (settled := self.search.settled_epochs) and settled > self.epochs:
            raise ValueError(f"search.settled_epochs {settled} exceeds epochs {self.epochs}: it would never apply")
        return self

    @model_validator(mode="after")
    def _search_fits(self) -> Hyperparameters:
        if self.search is not None:
            if self.layers < 3:
                raise ValueError(f"layers {self.layers} have no normal cell to search for: 3 or more have")
            unit = 2 * self.search.divisor
            if self.init_channels % unit:
                raise ValueError(
                    f"init_channels {self.init_channels} must be a multiple of {unit}, twice search.channel_divisor"
                )
            if self.search.warmup(self.epochs) >= self.epochs:
                raise ValueError(
                    f"search.architecture_warmup_epochs {self.search.warmup(self.epochs)} leaves none of {self.epochs} "
                    "epochs for the architecture"
                )
        return self

    def spelled_out(self) -> dict[str, Any]:
        """All values in force, the genotype's lists among them, so that no file is needed to read them.

        A search has no genotype, and an experiment that is none has no search block.
        """
        values = self.model_dump()
        if self.search is None:
            return {key: value for key, value in values.items() if key != "search"} | {"genotype": self.cell.to_dict()}
        return {key: value for key, value in values.items() if key != "genotype"}


class Experiment(Block):
    """A whole experiment file; `cluster` holds the keys that are Determined's."""

    data: Data = Data()
    hyperparameters: Hyperparameters = Hyperparameters()
    cluster: dict[str, Any] = Field({})

    @property
    def name(self) -> str:
        """The experiment's name, `gaeanet` where the file gives none."""
        return str(self.cluster.get("name") or "gaeanet")

    def to_yaml(self) -> str:
        """The resolved file: every value in force, the genotype spelled out; reads back as the same experiment."""
        tree = {**self.cluster, "data": self.data.model_dump(), "hyperparameters": self.hyperparameters.spelled_out()}
        return dump(tree)


def load_experiment(path: str | os.PathLike[str], overrides: Sequence[str] = (), data: str | None = None) -> Experiment:
    """Reads an experiment file.

    Args:
        path: The YAML file, or the bare name of a recipe (`const`) where there is no such file.
        overrides: `KEY=VALUE` each, KEY a dotted path such as `hyperparameters.epochs`, VALUE in YAML.
        data: Takes the place of `data.location` and `data.bucket_name`.

    Raises:
        RequestError: The file cannot be read, or a key or value is wrong; the message has the key's path.
    """
    origin = str(path)
    tree = parse(read_file_or_recipe(path), origin)
    if not isinstance(tree, dict):
        raise RequestError(f"{origin}: an experiment file is a mapping with data and hyperparameters, this is not")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise RequestError(f"--set {override}: expected KEY=VALUE, for example --set hyperparameters.epochs=5")
        _set(tree, key.strip(), parse(value, f"--set {key}"))
    if data is not None:
        if not data.strip():
            raise RequestError(
                "--data is empty: give a directory or a bucket's URL (is an environment variable unset?)"
            )
        tree["data"] = {**(tree.get("data") or {}), "location": data, "bucket_name": None}
    return experiment_from(tree, origin)


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    if not parents and key not in CLUSTER_KEYS:
        blocks: dict[str, type[Block]] = {
            "hyperparameters": Hyperparameters,
            "hyperparameters.search": Search,
            "data": Data,
        }
        paths = {name: f"{block}.{name}" for block, model in blocks.items() for name in model.model_fields}
        near = [paths[name] for name in difflib.get_close_matches(key, paths, cutoff=0.6)]
        meant = [paths[key]] if key in paths else near
        raise RequestError(
            f"--set {key}: "
            + (f"did you mean {' or '.join(meant)}?" if meant else "give the key's path, as in hyperparameters.epochs")
        )
    branch = tree
    for number, name in enumerate(parents):
        if branch.get(name) is None:
            branch[name] = {}
        branch = branch[name]
        if not isinstance(branch, dict):
            raise RequestError(f"--set {key}: {'.'.join(parents[: number + 1])} is a value, not a block")
    branch[leaf] = value


def experiment_from(tree: Mapping[str, Any], origin: str = "experiment") -> Experiment:
    """The experiment that a parsed file (or a cluster) describes; raises `RequestError` naming key and remedy."""
    tree = dict(tree)
    if not isinstance(tree.get("name"), (str, type(None))):
        raise RequestError(f"{origin}: name: must be text, got {tree['name']!r}: put it in quotes")
    blocks: dict[str, Any] = {}
    for name, model in (("data", Data), ("hyperparameters", Hyperparameters)):
        block = tree.pop(name, None) or {}
        if not isinstance(block, dict):
            raise RequestError(f"{origin}: {name} must be a mapping, not {block!r}")
        if name == "hyperparameters":
            block = _modern(_resolved_constants(block, origin), origin)
        blocks[name] = _validated(model, block, f"{origin}: {name}")
    for key in tree:
        if key in _ENDED_KEYS:
            raise RequestError(f"{origin}: {key} is no longer a key of Determined experiments: remove it")
        if key not in CLUSTER_KEYS:
            hint = did_you_mean(str(key), {*CLUSTER_KEYS, "data", "hyperparameters"})
            raise RequestError(f"{origin}: unknown key {key}; {hint}")
    return Experiment(cluster=tree, **blocks)


def _resolved_constants(block: dict[str, Any], origin: str) -> dict[str, Any]:
    resolved = {}
    for key, value in block.items():
        if isinstance(value, dict) and "type" in value and key not in ("genotype", "search"):
            if value["type"] != "const":
                raise RequestError(
                    f"{origin}: hyperparameters.{key} is a search space, which a cluster resolves; "
                    f"for a local run give a value: --set hyperparameters.{key}=..."
                )
            value = value.get("val")
        resolved[key] = value
    return resolved


def _modern(block: dict[str, Any], origin: str) -> dict[str, Any]:
    """Turns the keys of the 2020 example into today's: the run's length stood in the schedule's own key there."""
    block = dict(block)
    old = {key: block.pop(key) for key in ("cosine_annealing_epochs", "lr_epochs") if key in block}
    if not old:
        return block
    scheduler = block.get("lr_scheduler", Hyperparameters.model_fields["lr_scheduler"].default)
    key = "cosine_annealing_epochs" if scheduler == "cosine" and "cosine_annealing_epochs" in old else "lr_epochs"
    key = key if key in old else next(iter(old))
    if block.setdefault("epochs", old[key]) != old[key]:
        raise RequestError(
            f"{origin}: hyperparameters.{key} is {old[key]} and epochs {block['epochs']}: keep epochs only"
        )
    return block


def _validated(model: type[BaseModel], block: dict[str, Any], where: str) -> BaseModel:
    try:
        return model.model_validate(block)
    except ValidationError as error:
        raise RequestError(one_line(error, model, where)) from None
