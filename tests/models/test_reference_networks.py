"""Law 5: the networks are the original ones, to the rounding error, and come in through `gaeanet import`.

`reference_networks.json` holds logits of five networks built by code of the DARTS family, filled by a formula that
depends on each parameter's name and evaluated once in float32.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Result

from gaeanet.artifacts import checkpoint
from gaeanet.cells.read import from_dict
from gaeanet.config.experiment import Hyperparameters
from gaeanet.models.build import build_network
from gaeanet.models.network import CellNetwork

REFERENCES = json.loads((Path(__file__).parent / "reference_networks.json").read_text())


def filled(network: CellNetwork) -> dict[str, torch.Tensor]:
    """The reference weights of a network's names and shapes."""
    weights = {}
    for name, tensor in network.state_dict().items():
        phase = zlib.crc32(name.encode()) % 9973
        s = np.sin(0.7 * np.arange(tensor.numel()) + phase).reshape(tensor.shape)
        if name.endswith("num_batches_tracked"):
            value: Any = np.zeros(tensor.shape)
        elif name.endswith("running_mean"):
            value = 0.05 * s
        elif name.endswith("running_var"):
            value = 1 + 0.2 * s
        elif tensor.ndim == 4:
            value = s * math.sqrt(2 / math.prod(tensor.shape[1:]))
        elif tensor.ndim == 2:
            value = s * math.sqrt(1 / tensor.shape[1])
        else:
            value = 1 + 0.1 * s if name.endswith("weight") else 0.1 * s
        weights[name] = torch.from_numpy(np.asarray(value)).to(tensor.dtype)
    return weights


def images(reference: dict[str, Any]) -> torch.Tensor:
    i = np.arange(reference["batch"] * 3 * reference["size"] ** 2, dtype=np.float64)
    x = np.sin(0.013 * i) + np.sin(0.37 * i)
    return torch.from_numpy(x.astype(np.float32)).view(reference["batch"], 3, reference["size"], reference["size"])


def assert_logits(
    logits: torch.Tensor, expected: list[list[float]], norm: float | None = None, rounding: float = 0.0
) -> None:
    torch.testing.assert_close(logits[:, :10], torch.tensor(expected), atol=max(2e-3, rounding), rtol=0)
    if norm is not None:
        assert logits.norm().item() == pytest.approx(norm, rel=1e-3)


def training_logits(network: CellNetwork, x: torch.Tensor) -> list[torch.Tensor]:
    """Logits in training, and the tower's where there is one; the network's statistics stay as they were."""
    out = deepcopy(network).train()(x)
    return [logits.double() for logits in (out if isinstance(out, tuple) else (out,))]


def rounding_of(network: CellNetwork, x: torch.Tensor) -> list[float]:
    """How far float32 carries each of the training logits from exact ones.

    Batch norm over two images amplifies rounding through many layers, and each kind of processor rounds in another
    order: the recorded logits are themselves up to 0.05 from those in float64.
    """
    exact = training_logits(deepcopy(network).double(), x.double())
    worst = [0.0] * len(exact)
    for k in range(4):
        shaken = training_logits(network, x * (1 + k * 1.2e-7))
        worst = [max(w, (a - b).abs().max().item()) for w, a, b in zip(worst, shaken, exact)]
    return worst


def marked(reference: dict[str, Any]) -> Any:
    """A case for each network; those of 14 cells, whose rounding takes six passes in training to know, are slow."""
    return pytest.param(reference, id=reference["name"], marks=[pytest.mark.slow] * (reference["layers"] > 8))


@pytest.mark.parametrize("reference", [marked(reference) for reference in REFERENCES])
def test_law_5_a_reference_network_imported_gives_its_logits(
    gaeanet: Callable[..., Result], tmp_path: Path, reference: dict[str, Any]
) -> None:
    original = build_network(
        Hyperparameters(
            num_classes=reference["classes"],
            genotype=reference["genotype"],
            init_channels=reference["C"],
            layers=reference["layers"],
            activation=reference["act"],
            do_SE=reference["se"],
            auxiliary=reference["aux"],
        )
    )
    weights = filled(original)
    keys = [f"{name} {list(tensor.shape)}" for name, tensor in sorted(weights.items())]
    assert len(keys) == reference["keys"]
    if "keys_sha256" in reference:
        assert hashlib.sha256("\n".join(keys).encode()).hexdigest() == reference["keys_sha256"]

    torch.save({"epoch": 1, "state_dict": {f"module.{n}": t for n, t in weights.items()}}, tmp_path / "weights.pth.tar")
    assert gaeanet("import", "weights.pth.tar", "imported", "--activation", reference["act"]).code == 0

    tensors, state = checkpoint.load(tmp_path / "imported")
    hp = Hyperparameters(**state["hyperparameters"])
    assert hp.cell == from_dict(reference["genotype"])
    network = build_network(hp)
    tower = sum(p.numel() for p in network.auxiliary_head.parameters()) if network.auxiliary_head else 0
    assert tower == reference["auxiliary_parameters"]
    assert sum(p.numel() for p in network.parameters()) - tower == reference["inference_parameters"]

    x = images(reference)
    with torch.no_grad():
        network.load_state_dict(tensors["model"])
        assert_logits(network.eval()(x), reference["eval_logits"], reference["eval_logits_norm"])
        logits, *auxiliary = training_logits(network, x)
        rounding = rounding_of(network, x)
        assert max(rounding) < (2e-3 if reference["layers"] == 3 or not reference["aux"] else 0.3)
        expected = reference["train_logits"], reference["train_logits_norm"]
        assert_logits(logits.float(), *expected, rounding=4 * rounding[0])
        assert bool(auxiliary) == reference["aux"]
        for tower in auxiliary:
            assert_logits(tower.float(), reference["aux_logits"], rounding=4 * rounding[1])


PARAMETERS = {
    ("gaea-imagenet", "relu", False): 5_620_864,
    ("gaea-imagenet", "swish", True): 5_725_828,
    ("pc-darts-imagenet", "relu", False): 5_342_464,
    ("darts-v2", "relu", False): 4_718_752,
    ("darts-v1", "relu", False): 4_510_432,
    ("p-darts-cifar10", "relu", False): 4_944_352,
}


@pytest.mark.parametrize(("network", "parameters"), PARAMETERS.items(), ids=[n[0] + n[1] for n in PARAMETERS])
def test_published_networks_have_their_number_of_parameters(network: tuple[str, str, bool], parameters: int) -> None:
    genotype, activation, squeeze_excite = network
    built = CellNetwork(genotype=genotype, activation=activation, squeeze_excite=squeeze_excite, device="meta")  # type: ignore[arg-type]
    assert sum(p.numel() for p in built.parameters()) == parameters
