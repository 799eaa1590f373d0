"""Weights from elsewhere: state dicts in the naming of the DARTS family, made into checkpoints of this project.

What a state dict shows is read from it: width, depth, classes, stem, squeeze-excite, tower. Which cell it is shows only
in part, since names and shapes show operations with weights but neither pools from identities nor where an edge comes
from; so the cells of the zoo are tried, and the one that fits in every name and shape is taken if it is the only one.
"""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gaeanet import __version__
from gaeanet.artifacts import checkpoint
from gaeanet.cells.genotype import Genotype
from gaeanet.cells.read import read_genotype
from gaeanet.cells.zoo import ZOO
from gaeanet.config.experiment import Hyperparameters, experiment_from
from gaeanet.config.network import Activation, Network
from gaeanet.errors import RequestError, reason
from gaeanet.models.build import build_network
from gaeanet.models.network import CellNetwork
from gaeanet.runtime.files import exists
from gaeanet.runtime.names import shown

_WRAPPERS = frozenset({"module", "_orig_mod"})
"""What DistributedDataParallel, DataParallel and torch.compile put into names, at any depth."""

_CONTAINERS = ("state_dict", "model", "model_state_dict", "net", "network")
"""Keys under which training scripts keep the state dict."""

# Old scripts keep a numpy accuracy or their arguments beside the weights: plain values, which need no code to be read.
MOST_CELLS = 200
"""Of a network that is recognised from its weights; the largest published one has 20."""

_PLAIN_TYPES: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")),
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    np.float64(0).__reduce__()[0],
]


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a file of PyTorch's or safetensors' kind, its names free of wrappers' prefixes.

    Raises:
        RequestError: The file cannot be read, would execute code, or holds no state dict.
    """
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            with torch.serialization.safe_globals(_PLAIN_TYPES), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of newer pickle protocols; what it then cannot read, it refuses
                content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {reason(error)}") from None
    except pickle.UnpicklingError as error:
        culprit = re.search(r"GLOBAL ([\w.]+)", str(error)) or re.search(
            r"Unsupported (?:class|operand) ([\w.]+)", str(error)
        )
        what = f"it refers to {culprit[1]}" if culprit else "it is not a file of plain tensors"
        raise RequestError(
            f"{path}: refused, since reading it would execute code or it is damaged ({what}): "
            "save its state_dict() alone and import that"
        ) from None
    except (SafetensorError, RuntimeError, ValueError, EOFError, KeyError, AttributeError) as error:
        raise RequestError(f"{path}: not a file of weights, or damaged: {reason(error)}") from None
    for key in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise RequestError(f"{path}: holds no state dict (a mapping of names to tensors, bare or under state_dict)")
    weights: dict[str, Tensor] = {}
    for name, tensor in content.items():
        bare = ".".join(part for part in str(name).split(".") if part not in _WRAPPERS)
        bare = re.sub(r"^stem\.", "stem0.", bare)  # the small-image networks have one stem, which is stem0 here
        if bare in weights:
            raise RequestError(f"{path}: {name} and another name both mean {bare}: which one is the network's?")
        weights[bare] = tensor
    return weights


def recognise(
    weights: Mapping[str, Tensor], genotype: str | None, activation: Activation, origin: str
) -> Hyperparameters:
    """The hyperparameters of the network that these weights belong to.

    Args:
        genotype: The cell where it is known; otherwise the zoo is searched.
        activation: Not to be seen in weights.
        origin: The file, for messages.

    Raises:
        RequestError: The weights are not of this family, or fit no cell or several.
    """
    small = not any(name.startswith("stem1.") for name in weights)
    classes = _size(weights, "classifier.weight", 2, origin)
    if classes < 2:
        raise RequestError(f"{origin}: classifier.weight has {classes} output: a network here has two classes or more")
    width = _size(weights, "stem0.0.weight", 4, origin) // 3 if small else _size(weights, "stem0.3.weight", 4, origin)
    if not small:
        _size(weights, "stem1.1.weight", 4, origin)
    indices = {match[1] for name in weights if (match := re.match(r"cells\.(\d+)\.", name))}
    numbers = sorted(int(number) for number in indices if len(number) < 9)
    if len(numbers) < len(indices) or numbers != list(range(len(numbers))) or not 0 < len(numbers) <= MOST_CELLS:
        missing = next((n for n in range(len(numbers)) if n not in numbers), len(numbers))
        which = f"more than {MOST_CELLS} cells" if len(indices) > MOST_CELLS else f"no cells.{missing}..."
        raise RequestError(f"{origin}: {which}: not a network of the DARTS family")
    if odd := next((name for name, tensor in weights.items() if tensor.numel() == 0), None):
        raise RequestError(f"{origin}: {shown(odd)} is empty")
    seen = _hyperparameters(
        origin,
        num_classes=classes,
        init_channels=width,
        layers=max(numbers) + 1,
        stem="cifar" if small else "imagenet",
        image_size=32 if small else 224,
        do_SE=any(name.startswith("cells_SE.") for name in weights),
        auxiliary=any(name.startswith("auxiliary_head.") for name in weights),
        auxiliary_second_norm="auxiliary_head.features.6.running_mean" in weights,
        activation=activation,
    )
    candidates = (
        {genotype: read_genotype(genotype)} if genotype else {name: cell.genotype for name, cell in ZOO.items()}
    )
    faults = {name: _misfit(weights, seen, cell) for name, cell in candidates.items()}
    fitting = [name for name, fault in faults.items() if fault is None]
    if len(fitting) == 1:
        return seen.model_copy(update={"genotype": candidates[fitting[0]].to_dict()})
    if genotype:
        raise RequestError(f"{origin}: not the cell {genotype}: {faults[genotype]}")
    if fitting:
        raise RequestError(f"{origin}: its names and shapes fit {' and '.join(fitting)}: name one with --genotype")
    raise RequestError(f"{origin}: no published cell has its names and shapes: give the cell with --genotype")


def _size(weights: Mapping[str, Tensor], name: str, dimensions: int, origin: str) -> int:
    """The first side of a tensor that has to be there."""
    if name not in weights:
        raise RequestError(f"{origin}: no {name}: not a network of the DARTS family")
    if weights[name].dim() != dimensions or not weights[name].numel():
        shape = list(weights[name].shape)
        raise RequestError(
            f"{origin}: {name} has shape {shape}, not {dimensions} sides: not a network of the DARTS family"
        )
    return weights[name].shape[0]


def _hyperparameters(origin: str, **values: Any) -> Hyperparameters:
    return experiment_from({"hyperparameters": values}, origin).hyperparameters


def _misfit(weights: Mapping[str, Tensor], seen: Network, cell: Genotype) -> str | None:
    """Why these weights are not of this cell; None if every name and shape agrees."""
    with torch.device("meta"):
        network = _network(seen, cell)
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    # Checkpoints from before PyTorch 0.4.1 have no batch counters.
    missing = sorted(n for n in expected.keys() - weights.keys() if not n.endswith("num_batches_tracked"))
    unknown = sorted(weights.keys() - expected.keys())
    if missing or unknown:
        kind, names = ("lacks", missing) if missing else ("has", unknown)
        return f"{kind} {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
    for name in weights:
        if weights[name].shape != expected[name]:
            return f"{name} has shape {list(weights[name].shape)}, not {list(expected[name])}"
    return None


def _network(seen: Network, cell: Genotype) -> CellNetwork:
    return build_network(seen.model_copy(update={"genotype": cell.to_dict()}))


def import_weights(
    source: Path, destination: Path, genotype: str | None = None, activation: Activation = "relu"
) -> Hyperparameters:
    """Makes the checkpoint directory `destination` from the weights in the file `source`.

    Every tensor is loaded, under the same name without prefixes.

    Raises:
        RequestError: See `read_weights` and `recognise`; or the destination exists.
    """
    if exists(destination):
        raise RequestError(f"{destination} exists already: name a new checkpoint directory")
    weights = read_weights(source)
    hp = recognise(weights, genotype, activation, str(source))
    network = build_network(hp)
    counters = {name: value for name, value in network.state_dict().items() if name.endswith("num_batches_tracked")}
    network.load_state_dict({**counters, **weights})
    state = {
        "gaeanet": __version__,
        "torch": torch.__version__,
        "batches": 0,
        "best": None,
        "hyperparameters": hp.model_dump(),
        "classes": None,
        "data": None,
        "imported_from": source.name,
    }
    checkpoint.write(destination, 0, {"model": network.state_dict()}, state)
    return hp
