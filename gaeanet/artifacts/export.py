"""`gaeanet export`: a trained network as a file that other tools read, checked on the spot against the network itself.

Every form maps normalised images (N, 3, S, S), float32, to logits (N, classes), in evaluation mode, without the tower.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import math
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gaeanet import __version__
from gaeanet.artifacts.find import EXPORT_CONFIG, EXPORT_WEIGHTS, Trained
from gaeanet.artifacts.metadata import METADATA
from gaeanet.cells.zoo import ZOO, name_of
from gaeanet.data.images.transforms import MEAN, STD, ValidationTransform
from gaeanet.errors import RequestError, RunError, reason
from gaeanet.models.folding import fold_batch_norm
from gaeanet.runtime.files import digest_of, is_directory
from gaeanet.runtime.names import shown

TOLERANCE = 1e-4
"""Largest difference of a logit between an export and the network that passes for rounding."""

BATCHES = (1, 3)
"""Batch sizes at which an export is compared."""

ONNX_FROM = "2.9"
"""The first PyTorch whose exporter works with the onnxscript that pyproject.toml requires."""

MOST_IMAGES = 2**31 - 1
"""Bound of the dynamic batch dimension: PyTorch 2.6 proves one of its own and wants it declared."""

ARCHITECTURE = "gaea_c48"
"""The registered network that an export of a cell outside of the zoo names; it spells out every argument besides."""


def export(trained: Trained, destination: Path, form: str, kind: str, fold: bool = False) -> list[str]:
    """Writes `destination` and returns what was done, and how exactly, in sentences.

    Args:
        destination: The directory to make; for `onnx` and `torch-export` also a file with the suffix .onnx or .pt2.
        form: `timm`, `onnx` or `torch-export`.
        kind: Which weights, `raw` or `ema`.
        fold: Whether to fold batch norm into the convolutions before it.

    Raises:
        RequestError: The destination exists or the weights are not the network's.
        RunError: The export does not give the network's outputs, or cannot be written; nothing is left behind.
    """
    network = trained.network(kind)
    reference = trained.network(kind).to(memory_format=torch.contiguous_format)
    folded = fold_batch_norm(network) if fold else 0
    facts = _metadata(trained, form, kind, folded)
    draft = destination.with_name(f".{destination.name}.{os.getpid()}{destination.suffix}")
    try:
        _remove(draft)
        destination.parent.mkdir(parents=True, exist_ok=True)
        check = {"timm": _timm, "onnx": _onnx, "torch-export": _torch_export}[form](network, trained, draft, facts)
        differences = {batch: _difference(reference, check, trained, batch) for batch in BATCHES}
        if not max(differences.values()) < TOLERANCE:
            raise RunError(
                f"{destination}: not written, since its outputs differ from the network's by "
                f"{max(differences.values()):.2e} (at most {TOLERANCE:g} is rounding)"
            )
        draft.rename(destination)
    except OSError as error:
        raise RunError(f"{destination}: cannot be written: {reason(error)}") from None
    finally:
        with contextlib.suppress(OSError):
            _remove(draft)
    hp = trained.hyperparameters
    sentences = [
        f"wrote {destination}: {form}, {kind} weights, cell {hp.cell.fingerprint}, {hp.num_classes} classes, "
        f"{hp.image_size} px" + (f", {folded} batch norms folded" if fold else ""),
        "parity: largest difference of a logit "
        + ", ".join(f"{value:.2e} at batch {batch}" for batch, value in differences.items()),
    ]
    if (trained.state.get("data") or {}).get("generated"):
        sentences.append("warning: this network was trained on GENERATED IMAGES, not photographs")
    return sentences


def _remove(path: Path) -> None:
    if is_directory(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _difference(network: nn.Module, check: Any, trained: Trained, batch: int) -> float:
    """The largest difference of a logit on random images, a few of them saturated."""
    size = trained.hyperparameters.image_size
    generator = torch.Generator().manual_seed(batch)
    images = torch.randn((batch, 3, size, size), generator=generator)
    with torch.inference_mode():
        return float((network(images) - check(images)).abs().max())


def _metadata(trained: Trained, form: str, kind: str, folded: int) -> dict[str, Any]:
    """The file's metadata."""
    state = {
        key: trained.state.get(key)
        for key in ("hyperparameters", "classes", "class_names", "data", "lineage", "batches", "best", "world_size")
    }
    return {
        "format": form,
        "gaeanet": __version__,
        "weights": kind,
        "folded": folded,
        "source": str(trained.path.absolute()),
        "source_digest": trained.digests[kind][1] if kind in trained.digests else None,
        "preprocessing": preprocessing(trained),
        "names": list(trained.display_names),
        "state": {**state, "imported_from": trained.state.get("imported_from"), "crop_share": trained.crop_fraction},
    }


def preprocessing(trained: Trained) -> dict[str, Any]:
    """How an image becomes the network's input, in plain values; mean and deviation are of pixels in 0..1."""
    transform = ValidationTransform(trained.hyperparameters.image_size, trained.crop_fraction)
    return {
        "resize_shorter_side": transform.resize,
        "center_crop": transform.size,
        "interpolation": "bilinear, antialiased",
        "channels": "RGB",
        "mean": list(MEAN),
        "std": list(STD),
    }


def timm_crop_pct(size: int, resize: int) -> float:
    """Timm's `crop_pct` for which it resizes to exactly `resize`: it takes floor(size / crop_pct)."""
    fraction = size / resize
    while math.floor(size / fraction) < resize:
        fraction = math.nextafter(fraction, 0)
    return fraction


def _timm(network: nn.Module, trained: Trained, draft: Path, facts: dict[str, Any]) -> Any:
    """Safetensors and config.json in the form of timm's own exports, to load after `import gaeanet.models.registry`."""
    import timm
    from safetensors.torch import save_file

    importlib.import_module("gaeanet.models.registry")  # registers the networks
    hp = trained.hyperparameters
    name = name_of(hp.cell)
    draft.mkdir()
    weights = {key: value.contiguous() for key, value in network.state_dict().items()}
    save_file(weights, draft / EXPORT_WEIGHTS, metadata={"format": "pt"})
    how = facts["preprocessing"]
    labels = list(trained.classes) if trained.classes else None
    config = {
        "architecture": ZOO[name].architecture if name else ARCHITECTURE,
        "num_classes": hp.num_classes,
        "num_features": network.num_features,
        "global_pool": "avg",
        **({"label_names": labels, "label_descriptions": dict(zip(labels, facts["names"]))} if labels else {}),
        "model_args": {**hp.architecture, "genotype": hp.cell.to_dict()},
        "pretrained_cfg": {
            "tag": "gaeanet",
            "custom_load": False,
            "input_size": [3, hp.image_size, hp.image_size],
            "fixed_input_size": False,
            "interpolation": "bilinear",
            "crop_pct": timm_crop_pct(how["center_crop"], how["resize_shorter_side"]),
            "crop_mode": "center",
            "mean": how["mean"],
            "std": how["std"],
            "num_classes": hp.num_classes,
            "pool_size": None,
            "first_conv": "stem0.0",
            "classifier": "classifier",
        },
        METADATA: {**facts, "digest": digest_of(draft / EXPORT_WEIGHTS)},
    }
    (draft / EXPORT_CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
    _write_classes(draft, trained)
    return timm.create_model(f"local-dir:{draft.absolute()}", pretrained=True).eval()


def _write_classes(folder: Path, trained: Trained) -> None:
    """classes.csv: one line an output, in order; what other tools call a label file."""
    import csv

    keys = tuple(map(shown, trained.classes or ("" for _ in trained.display_names)))
    with open(folder / "classes.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "class", "name"])
        writer.writerows((n, key, name) for n, (key, name) in enumerate(zip(keys, trained.display_names)))


def _place(draft: Path, trained: Trained, name: str) -> Path:
    """The file to write: the draft itself, or one in the directory that the draft is to be."""
    if draft.suffix == Path(name).suffix:
        return draft
    draft.mkdir()
    _write_classes(draft, trained)
    return draft / name


def _onnx(network: nn.Module, trained: Trained, draft: Path, facts: dict[str, Any]) -> Any:
    if torch.__version__ < ONNX_FROM:
        raise RequestError(
            f"--format onnx needs PyTorch {ONNX_FROM} or later, this is {torch.__version__}: use another, or "
            "--format torch-export"
        )
    onnx, runtime = _optional("onnx"), _optional("onnxruntime")
    _optional("onnxscript")
    path = _place(draft, trained, "model.onnx")
    size = trained.hyperparameters.image_size
    with _quietly():
        program = torch.onnx.export(
            network.to(memory_format=torch.contiguous_format),
            (torch.zeros(2, 3, size, size),),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", max=MOST_IMAGES)},),
            verbose=False,
        )
    model = program.model_proto  # type: ignore[union-attr]
    for key, value in {
        METADATA: json.dumps(facts),
        "classes": json.dumps(trained.classes),
        "names": json.dumps(facts["names"]),
        "preprocessing": json.dumps(facts["preprocessing"]),
    }.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _torch_export(network: nn.Module, trained: Trained, draft: Path, facts: dict[str, Any]) -> Any:
    path = _place(draft, trained, "model.pt2")
    size = trained.hyperparameters.image_size
    with _quietly(), torch.no_grad():
        program = torch.export.export(
            network.to(memory_format=torch.contiguous_format),
            (torch.zeros(2, 3, size, size),),
            dynamic_shapes=({0: torch.export.Dim("batch", max=MOST_IMAGES)},),
        )
        torch.export.save(program, str(path), extra_files={METADATA: json.dumps(facts)})
        loaded = torch.export.load(str(path)).module()

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            output: Tensor = loaded(images)
        return output

    return run


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise RequestError(f"--format onnx needs the package {name}: pip install 'gaeanet[export]'") from None


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporters' remarks on their own inner affairs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(None):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
