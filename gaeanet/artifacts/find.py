"""A trained network on disk, whatever form it has: a checkpoint, a run, an export, or another project's weights.

Everything that its use takes is in the files: genotype, classes, image size, crop, and where it came from. Finding it
and refusing it takes no torch; its weights are read, and checked, when they are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gaeanet.artifacts import checkpoint
from gaeanet.artifacts.directory import CHECKPOINTS, CONFIG, MANIFEST, METRICS
from gaeanet.artifacts.manifest import MOST_BYTES, check_state
from gaeanet.cells.read import is_text
from gaeanet.cells.zoo import ZOO
from gaeanet.config.experiment import Hyperparameters, experiment_from
from gaeanet.errors import RequestError
from gaeanet.runtime.files import exists, is_directory, is_file, read_json
from gaeanet.runtime.names import shown

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gaeanet.models.network import CellNetwork

EXPORT_CONFIG = "config.json"
EXPORT_WEIGHTS = "model.safetensors"

_KINDS = {"raw": "model", "ema": "ema"}
"""Names of a checkpoint's tensor groups by the kind of weights they are."""

_EXPORTS = {".onnx": "an ONNX file", ".pt2": "a torch.export program"}
_WEIGHTS = frozenset({".pt", ".pth", ".tar", ".bin", ".ckpt", ".safetensors"})


@dataclass(frozen=True)
class Trained:
    """A trained network, and what is known of it without reading its weights.

    Attributes:
        path: The checkpoint or exported directory, or the file of weights.
        state: A checkpoint's plain values; of an export, those that it took over.
        digests: SHA-256 of the file of each kind of weights (`raw`, `ema`).
    """

    path: Path
    hyperparameters: Hyperparameters
    state: dict[str, Any]
    digests: dict[str, tuple[Path, str]]
    _tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def kinds(self) -> list[str]:
        """The kinds of weights that are there: `raw`, `ema` or both."""
        return [kind for kind in _KINDS if kind in self.digests or kind in self._tensors]

    @property
    def preferred(self) -> str:
        """The kind that did better when this checkpoint was validated; the average where that is not known."""
        for entry in self.state.get("best") or []:
            if entry["batches"] == self.state.get("batches") and entry["weights"] in self.kinds:
                return str(entry["weights"])
        return self.kinds[-1]

    def kind(self, asked: str | None) -> str:
        """`asked`, or the preferred kind; raises `RequestError` where it is not there."""
        if asked is not None and asked not in self.kinds:
            raise RequestError(f"{self.path}: holds no {asked} weights, only {' and '.join(self.kinds)}")
        return asked or self.preferred

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The class table: a class's number is its index; None for weights that came without one."""
        table = self.state.get("classes")
        return None if table is None else tuple(table)

    @property
    def display_names(self) -> tuple[str, ...]:
        """What each class is called, no two alike; numbers where there is no class table."""
        classes = self.classes
        if classes is None:
            return tuple(f"class {number}" for number in range(self.hyperparameters.num_classes))
        return unique_names(classes, self.state.get("class_names") or classes)

    @property
    def workers(self) -> int:
        """Worker processes of its own validations, at most."""
        settings = (self.state.get("data") or {}).get("settings") or {}
        return int(settings.get("num_workers_val", 2))

    @property
    def crop_fraction(self) -> float:
        """Fraction of the resized image that the validation crop shows."""
        return float(self.state.get("crop_share", 0.875))

    def tensors(self, kind: str) -> dict[str, Tensor]:
        """The state dict of one kind of weights, on the CPU; raises `RequestError` where its file is damaged."""
        if kind not in self._tensors:
            file, digest = self.digests[kind]
            self._tensors[kind] = checkpoint.load_group(file, digest)
        return self._tensors[kind]

    def network(self, kind: str, device: torch.device | None = None) -> CellNetwork:
        """The network with one kind of weights, in evaluation mode, without the auxiliary tower.

        Raises:
            RequestError: The file is damaged, or its weights are not those of the network that it describes.
        """
        import torch

        from gaeanet.errors import reason
        from gaeanet.models.build import build_network

        network = build_network(self.hyperparameters.model_copy(update={"auxiliary": False, "drop_path_prob": 0.0}))
        weights = without_tower(self.tensors(kind))
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            first = reason(RuntimeError(str(error).partition("\n\t")[2]))
            raise RequestError(
                f"{self.path}: its {kind} weights are not those of the network that it describes: {first}"
            ) from None
        network = network.to(device or torch.device("cpu"))
        return network.to(memory_format=torch.channels_last).eval()


def without_tower(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the auxiliary tower, which serves training only."""
    return {name: value for name, value in weights.items() if not name.startswith("auxiliary_head.")}


def unique_names(classes: tuple[str, ...], names: tuple[str, ...] | list[str]) -> tuple[str, ...]:
    """Names to show, one for each class and no two alike: ImageNet has two cranes and two maillots."""
    classes, names = tuple(map(shown, classes)), tuple(map(shown, names))
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return tuple(name if counts[name] == 1 else f"{name} ({key})" for key, name in zip(classes, names))


def find(reference: str | Path) -> Trained:
    """Finds the trained network that `reference` names.

    Args:
        reference: A checkpoint directory or a file in it, a run directory (its best checkpoint), a directory that
            `gaeanet export --format timm` made, or a file of weights of the DARTS family.

    Raises:
        RequestError: There is none, or what is there cannot be used.
    """
    path = Path(reference)
    if is_directory(path):
        return _in_directory(path)
    if not is_file(path):
        raise RequestError(
            f"{path}: no such file or directory: name a checkpoint, a run directory or an exported directory"
        )
    if is_file(path.parent / MANIFEST) or _is_export(path.parent):
        return _in_directory(path.parent)
    if what := _EXPORTS.get(path.suffix):
        raise RequestError(f"{path}: is {what}, which only its own runtime executes: name the checkpoint it came from")
    if path.suffix not in _WEIGHTS:
        raise RequestError(f"{path}: not a checkpoint, a run directory or an exported directory")
    return _of_weights(path)


def _in_directory(path: Path) -> Trained:
    folders = (path, path / CHECKPOINTS, path / CHECKPOINTS / "best", path / CHECKPOINTS / "latest")
    for folder in (*folders, path / "best", path / "latest"):
        if is_file(folder / MANIFEST):
            return _of_checkpoint(folder)
    if _is_export(path):
        return _of_export(path)
    # Copied from elsewhere, or on a file system without links, checkpoints have lost the names beside them.
    checkpoints = checkpoint.checkpoints(path / CHECKPOINTS) or checkpoint.checkpoints(path)
    if checkpoints:
        return _of_checkpoint(_best(checkpoints))
    if exists(path / METRICS) or exists(path / CONFIG):
        raise RequestError(f"{path}: this run has no checkpoint yet")
    raise RequestError(f"{path}: no checkpoint, run or export there (no manifest.json, checkpoints/ or config.json)")


def _best(checkpoints: list[Path]) -> Path:
    """The best of a run's checkpoints, oldest first, as the newest manifest names it; the newest where it is gone."""
    newest = checkpoints[-1]
    ranked = checkpoint.read_manifest(newest)["state"].get("best") or []
    names = [checkpoint.name_of(entry["batches"]) for entry in ranked[:1]]
    return next((path for path in checkpoints if path.name in names), newest)


def _of_checkpoint(path: Path) -> Trained:
    path = path.resolve() if path.is_symlink() else path
    manifest = checkpoint.read_manifest(path)
    state, files = manifest["state"], manifest["files"]
    if not isinstance(state, dict) or not isinstance(state.get("hyperparameters"), dict) or not isinstance(files, dict):
        raise RequestError(f"{path}: its manifest.json holds no hyperparameters")
    if state["hyperparameters"].get("search") is not None:
        raise RequestError(
            f"{path}: a supernet of a search, which is no network to use: train the cell that it found, with "
            "hyperparameters.genotype set to genotype.json of the search"
        )
    digests = {
        kind: (path / f"{group}.safetensors", files[f"{group}.safetensors"])
        for kind, group in _KINDS.items()
        if f"{group}.safetensors" in files
    }
    if not digests:
        raise RequestError(f"{path}: its manifest.json names no weights")
    return Trained(path, _hyperparameters(state["hyperparameters"], path), state, digests)


def _is_export(path: Path) -> bool:
    return is_file(path / EXPORT_CONFIG) and is_file(path / EXPORT_WEIGHTS)


def _of_export(path: Path) -> Trained:
    try:
        config = read_json(path / EXPORT_CONFIG, MOST_BYTES)
        ours = config.get("gaeanet")
    except (OSError, ValueError, AttributeError):
        raise RequestError(f"{path / EXPORT_CONFIG}: not the configuration of an exported network") from None
    if not isinstance(ours, dict):
        name = shown(str(config.get("architecture", "another network"))[:60])
        raise RequestError(f"{path}: {name}, which gaeanet did not export: it reads its own networks only")
    try:
        known = {key: value for key, value in dict(ours["state"]).items() if value is not None}
        check_state(known, str(path / EXPORT_CONFIG))
        digests = {ours["weights"]: (path / EXPORT_WEIGHTS, ours["digest"])}
        return Trained(path, _hyperparameters(ours["state"]["hyperparameters"], path), ours["state"], digests)
    except (KeyError, TypeError, ValueError):
        raise RequestError(f"{path / EXPORT_CONFIG}: its gaeanet block is damaged: export again") from None


def _of_weights(path: Path) -> Trained:
    from gaeanet.artifacts.imported import read_weights, recognise

    weights = read_weights(path)
    hyperparameters = recognise(weights, None, "relu", str(path))
    state = {"hyperparameters": hyperparameters.model_dump(), "classes": None, "imported_from": path.name}
    counters = {name.replace("running_mean", "num_batches_tracked") for name in weights if "running_mean" in name}
    import torch

    complete = {**{name: torch.tensor(0) for name in counters}, **weights}
    return Trained(path, hyperparameters, state, {}, {"raw": complete})


def _hyperparameters(values: dict[str, Any], origin: Path) -> Hyperparameters:
    """Those of a file that may come from anybody: it cannot name another file for its cell."""
    genotype = values.get("genotype")
    if isinstance(genotype, str) and genotype not in ZOO and not is_text(genotype):
        raise RequestError(f"{origin}: its genotype {shown(genotype[:60])!r} is a file elsewhere, and is not followed")
    return experiment_from({"hyperparameters": values}, str(origin)).hyperparameters
