"""The experiment file as one frozen, typed tree.

One YAML, valid as a Determined 0.38 experiment, is read by every command. `data` and `hyperparameters` are gaeanet's
and are checked to the last key; the other top-level keys are the cluster's, checked by name only and kept as they are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from gaeanet.cells.genotype import Genotype
from gaeanet.cells.read import read_genotype
from gaeanet.config.base import Block, Positive
from gaeanet.config.messages import one_line
from gaeanet.config.search import Search
from gaeanet.config.yaml import parse
from gaeanet.errors import RequestError, did_you_mean, reason

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


_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([MGT])B")

Probability = Annotated[float, Field(ge=0, lt=1)]
Activation = Literal["relu", "swish", "hswish"]


class Data(Block):
    """Where the images are and how they are read (`data:`)."""

    bucket_name: str | None = None
    """A Google Cloud Storage bucket: shorthand for location gs://<bucket_name>/imagenet."""
    location: str | None = None
    """A directory or a bucket's URL; with bucket_name null too, images are generated."""
    num_workers_train: int = Field(16, ge=0)
    """Processes that prepare training batches, at most; never more than there are cores."""
    num_workers_val: int = Field(2, ge=0)
    """The same for validation."""
    streaming: bool = True
    """Read from the bucket each time; false keeps a local copy in data_download_dir."""
    data_download_dir: str | None = None
    """Directory of the local copy, and of a bucket's index (~/.cache/gaeanet where null)."""
    cache_size: str | None = None
    """What the local copy may take, for example `200 GB`; null for no limit."""
    max_bad: int = Field(10, ge=0)
    """Training images that may be passed over because they do not decode; one more ends the run."""
    minival: float | None = Field(None, gt=0, lt=1)
    """Share of each class's training images to hold out and validate on, in place of the validation split."""
    generated_per_class: int = Field(500, ge=10)
    """Training images a class when images are generated; a tenth as many for validation."""

    @field_validator("bucket_name", "location")
    @classmethod
    def _names_something(cls, value: str | None) -> str | None:
        if value is not None and (not value.strip() or re.fullmatch(r"<.*>", value.strip())):
            raise ValueError(f"is {value!r}: name a place to read from; null (and only null) asks for generated images")
        return value

    @field_validator("cache_size")
    @classmethod
    def _is_a_size(cls, value: str | None) -> str | None:
        if value is not None and not _SIZE.fullmatch(value.strip()):
            raise ValueError(f"is {value!r}: give a number with MB, GB or TB, for example 200 GB")
        return value

    @model_validator(mode="after")
    def _one_place(self) -> Data:
        if self.bucket_name is not None and self.location is not None:
            raise ValueError(
                "bucket_name and location are both set: keep one (bucket_name is short for gs://<it>/imagenet)"
            )
        return self

    @property
    def resolved_location(self) -> str | None:
        """The directory or URL to read from; None for generated images."""
        return f"gs://{self.bucket_name}/imagenet" if self.bucket_name is not None else self.location

    @property
    def cache_bytes(self) -> int | None:
        """`cache_size` in bytes."""
        match = _SIZE.fullmatch(self.cache_size.strip()) if self.cache_size else None
        return int(float(match[1]) * 10 ** {"M": 6, "G": 9, "T": 12}[match[2]]) if match else None


OPERATIONAL = frozenset(
    {"init_checkpoint", "init_weights", "new_head", "track"}
    | {
        "max_batch_per_slot",
        "checkpoint_every",
        "keep_latest",
        "keep_best",
        "on_divergence",
        "max_bad_steps",
        "compile",
    }
    | {"checkpoint_bucket"}
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


class Hyperparameters(Block):
    """The network and its training (`hyperparameters:`)."""

    genotype: str | dict[str, Any] = "gaea-imagenet"
    """The cell: a name from the zoo, a file, a Genotype(...) text or its four lists."""
    num_classes: int = Field(1000, ge=2)
    init_channels: int = Field(48, ge=2, multiple_of=2)
    """Width of the first cells' nodes."""
    layers: int = Field(14, ge=1)
    """Number of cells."""
    stem: Literal["imagenet", "cifar"] = "imagenet"
    """Three stride-2 convolutions before the cells, or one of stride 1 for small images."""
    stem_stride: Literal[1, 2] = 2
    """Stride of the ImageNet stem's first convolution: 2 as published; 1 for images of about 128 pixels, whose maps
    are then those of an image twice as large. The weights fit either."""
    activation: Activation = "swish"
    do_SE: bool = True
    """Squeeze-and-excitation after the first two thirds of the cells."""
    initial_gamma: float = Field(1.0, ge=0, le=1)
    """Weight that the last batch norm of each operation starts with; 1 as published. A small one, 0.1, speeds up the
    first epochs: cells start as their skip connections."""
    auxiliary: bool = False
    """Auxiliary tower in training."""
    auxiliary_weight: float = Field(0.4, ge=0)
    auxiliary_second_norm: bool = True
    """False leaves out the tower's second batch norm, as the DARTS and PC-DARTS scripts do."""
    drop_path_prob: Probability = 0.0
    """Grows linearly from 0 to this over the run."""
    drop_prob: Probability = 0.0
    """Dropout before the classifier."""
    image_size: int = Field(224, ge=32)
    """Side of the images that the network is validated on, and trained on unless train_image_size says otherwise."""
    train_image_size: int | Annotated[list[int], Field(min_length=2, max_length=2)] | None = None
    """Side of the training images; two sizes grow from the first to the second over the run, in steps of 16."""
    epochs: int = Field(300, ge=1)
    global_batch_size: int = Field(1024, ge=2)
    """Images a step over all processes."""
    learning_rate: Positive = 0.5
    lr_scheduler: Literal["cosine", "linear", "efficientnet"] = "cosine"
    lr_gamma: float = Field(0.97, gt=0, le=1)
    """Factor of the efficientnet schedule."""
    lr_decay_every: int = Field(2, ge=1)
    """Period of the efficientnet schedule in epochs."""
    warmup_epochs: int = Field(5, ge=0)
    optimizer: Literal["sgd", "muon"] = "sgd"
    """SGD with momentum, as published; or Muon (Jordan et al. 2024) for the convolutions that mix channels."""
    momentum: Probability = 0.9
    weight_decay: float = Field(3.0e-5, ge=0)
    decay_norms_and_biases: bool = True
    """False leaves batch norms' weights and all biases without weight decay."""
    clip_gradients_l2_norm: float = Field(5.0, ge=0)
    """0 does not clip."""
    label_smoothing_rate: Probability = 0.1
    ema_decay: Probability = 0.999
    """Weight of the old average; 0 keeps no average."""
    crop_min_area: float = Field(0.08, gt=0, le=1)
    """The smallest share of a training image that a random crop may show."""
    color_jitter: bool = True
    """Brightness, contrast and saturation by 0.4, hue by 0.2."""
    autoaugment: bool = False
    randaugment: bool = False
    cutout: bool = False
    cutout_length: int = Field(16, ge=1)
    """Side of the cutout square in pixels."""
    repeated_augmentation: int = Field(1, ge=1)
    """How often an image is in a batch, augmented differently each time (Hoffer et al. 2020); 1 has each once."""
    random_erasing: float = Field(0.0, ge=0, le=1)
    """Probability that a rectangle of 2 % to a third of a training image is filled with the mean colour."""
    mixup_alpha: float = Field(0.0, ge=0)
    """Images mixed in pairs, shares drawn from Beta(alpha, alpha) once a step (Zhang et al. 2018); 0 mixes none."""
    cutmix_alpha: float = Field(0.0, ge=0)
    """The same with a rectangle of the one put into the other (Yun et al. 2019); with both, a step takes either."""
    max_batch_per_slot: int | None = Field(None, ge=2)
    """Images that one process takes at once; a larger share is worked off in parts, their gradients added up."""
    sync_batch_norm: bool = False
    """Batch-norm statistics over all processes instead of each process's own images."""
    checkpoint_every: int | None = Field(None, ge=1)
    """Steps from one checkpoint to the next; null saves at each validation only."""
    keep_latest: int = Field(2, ge=1)
    """Newest checkpoints that are kept."""
    keep_best: int = Field(1, ge=1)
    """Best checkpoints that are kept beside them."""
    checkpoint_bucket: str | None = None
    """A bucket's URL (gs://bucket/run, ...) to which checkpoints and log are copied, for another machine to resume."""
    on_divergence: Literal["stop", "rewind"] = "stop"
    """After max_bad_steps non-finite gradients in a row: end the run, or go back a checkpoint at half the rate."""
    max_bad_steps: int = Field(10, ge=1)
    validate_every: int = Field(1, ge=1)
    """Epochs from one validation to the next; the last epoch is always validated."""
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "auto"
    compile: Literal["auto", "graphs"] | bool = "auto"
    """auto compiles on GPUs, which takes minutes; graphs records the kernels of a step on a GPU and replays them, ready
    in seconds and for batches that are small for the GPU."""
    seed: int = Field(0, ge=0, lt=2**63)
    track: list[str] = Field([])
    """Trackers to tell beside the log: tensorboard, or module:callable (see gaeanet/runs/trackers.py)."""
    init_checkpoint: str | None = None
    """A trained network to start from; with another number of classes its classifier and tower head start anew."""
    init_weights: Literal["raw", "ema"] | None = None
    """Which of its weights; null takes those that did better."""
    new_head: bool = False
    """Start classifier and tower head anew even for the same number of classes."""
    freeze: Literal["nothing", "stem", "cells"] | Annotated[int, Field(ge=0)] = "nothing"
    """What keeps its weights and batch-norm statistics: the stem, stem and all cells, or stem and the first n cells."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Each group of layers learns at this times the rate of the group after it; the head at the whole rate."""
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

    @field_validator("genotype")
    @classmethod
    def _genotype_reads(cls, value: str | dict[str, Any]) -> str | dict[str, Any]:
        try:
            read_genotype(value)
        except RequestError as error:
            raise ValueError(str(error)) from None
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Hyperparameters:
        if self.autoaugment and self.randaugment:
            raise ValueError("autoaugment and randaugment are both true: choose one")
        if self.stem == "cifar" and self.stem_stride != 2:
            raise ValueError("stem_stride 1 is for the imagenet stem, the cifar stem has no stride: leave one out")
        smallest = min(self.training_sizes)
        if smallest < 32:
            raise ValueError(f"train_image_size {smallest} is too small: the network needs 32 pixels")
        if self.cutout and self.cutout_length > smallest:
            raise ValueError(f"cutout_length {self.cutout_length} exceeds the training images' size {smallest}")
        if self.global_batch_size % self.repeated_augmentation:
            raise ValueError(
                f"repeated_augmentation {self.repeated_augmentation} does not divide global_batch_size "
                f"{self.global_batch_size}: choose a batch that it divides"
            )
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

    @property
    def training_sizes(self) -> tuple[int, int]:
        """Side of the training images at the beginning and at the end of the run."""
        sizes = self.image_size if self.train_image_size is None else self.train_image_size
        return (sizes, sizes) if isinstance(sizes, int) else (sizes[0], sizes[1])

    @property
    def mixes(self) -> bool:
        """Whether training images are mixed with one another."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0

    def parts(self, images: int) -> int:
        """In how many parts a process works off its share, so many images, of a global batch."""
        return -(-images // (self.max_batch_per_slot or images))

    @property
    def cell(self) -> Genotype:
        """The genotype that `genotype` stands for."""
        return read_genotype(self.genotype)

    @property
    def architecture(self) -> dict[str, Any]:
        """The network's arguments (see `network.CellNetwork`) but for classes, regularisation and tower."""
        return {
            "genotype": self.cell,
            "init_channels": self.init_channels,
            "layers": self.layers,
            "activation": self.activation,
            "squeeze_excite": self.do_SE,
            "stem": self.stem,
            "stem_stride": self.stem_stride,
        }

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
        return yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=120)


def load_experiment(path: str | os.PathLike[str], overrides: Sequence[str] = (), data: str | None = None) -> Experiment:
    """Reads an experiment file.

    Args:
        path: The YAML file.
        overrides: `KEY=VALUE` each, KEY a dotted path such as `hyperparameters.epochs`, VALUE in YAML.
        data: Takes the place of `data.location` and `data.bucket_name`.

    Raises:
        RequestError: The file cannot be read, or a key or value is wrong; the message has the key's path.
    """
    origin = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = "not a text file" if isinstance(error, UnicodeDecodeError) else reason(error)
        raise RequestError(f"{origin}: cannot read the experiment file: {why}") from None
    tree = parse(text, origin)
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
    if not parents:
        top = "hyperparameters" if key in Hyperparameters.model_fields else "data"
        raise RequestError(f"--set {key}: give the whole path, for example {top}.{key}")
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


def in_words(share: float) -> str:
    """What is validated on."""
    return f"{100 * share:g} % of the training split"
