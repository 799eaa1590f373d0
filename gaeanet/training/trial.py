"""The trial of a GPU's fast ways, in a process of its own: see `proof.py`.

Our kernels are right where logits and gradients are hardly further from PyTorch's in float32 than PyTorch's own are in
the same precision. Replayed steps are right where they move a network as launched ones do.
"""

from __future__ import annotations

import json
import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from gaeanet.config.experiment import Hyperparameters
from gaeanet.data.images.transforms import normalize
from gaeanet.models.fused import fuse
from gaeanet.models.network import CellNetwork
from gaeanet.optim.rates import Rates, Row
from gaeanet.runtime import devices
from gaeanet.runtime.processes import Processes
from gaeanet.training.compilation import IMAGES, compile_ahead, network_in_training
from gaeanet.training.learner import Learner, build_learner
from gaeanet.training.objective import Classification
from gaeanet.training.recorded import CannotRecord, Recorder
from gaeanet.training.step import step

BOUND = 1.5
"""How much further from float32 our kernels may be than PyTorch's in the same precision."""

SLACK = 1e-3
"""By how much more, relative to the value: rounding differs where both are nearly exact."""

STEPS = 3
"""Of a network that is trained both ways."""

SPREAD = 3.0
"""How much further apart replayed and launched steps may be than launched steps and launched ones again."""

ROUNDING = 0.02
"""By how much more, relative to how far the weights moved: not all of PyTorch's kernels are deterministic."""


def kernels_doubt(hp: Hyperparameters, device: torch.device, dtype: torch.dtype, count: int = IMAGES) -> str | None:
    """Compares our kernels on `count` random images with PyTorch's; None where they are right.

    The yardstick is PyTorch in float32 (without TF32).
    """
    torch.backends.cudnn.allow_tf32 = False
    images, labels = random_batch(hp, count, 0)
    normal = normalize(images.to(device))
    network = network_in_training(hp, device)
    exact = _results(network, normal, labels.to(device), torch.float32)
    usual = _results(network, normal, labels.to(device), dtype)
    fuse(network)
    own = _results(network, normal, labels.to(device), dtype)
    for name in exact:
        expected, actual = distance(usual[name], exact[name]), distance(own[name], exact[name])
        if not actual <= BOUND * expected + SLACK:
            return f"their {name} are {actual:.1e} from float32, PyTorch's {expected:.1e}"
    return None


def compile_kernels(hp: Hyperparameters, device: torch.device, dtype: torch.dtype, count: int) -> None:
    """Runs a network with our kernels on a batch of the run's size, so that they are compiled for it."""
    images, labels = random_batch(hp, count, 0)
    network = network_in_training(hp, device)
    fuse(network)
    _results(network, normalize(images.to(device)), labels.to(device), dtype)


def graph_doubt(hp: Hyperparameters, precision: str, device: torch.device, *, fused: bool) -> str | None:
    """Compares replayed steps with launched ones; None where they are right.

    Launched steps are made twice, since some of PyTorch's kernels add up in whatever order threads come.
    """
    small = {"global_batch_size": IMAGES, "max_batch_per_slot": None, "precision": precision, "compile": False}
    hp = hp.model_copy(update=small)
    moved = []
    for replayed in (False, False, True):
        processes = Processes()
        processes.device = device
        learner = build_learner(hp, processes, flat=True)
        if fused:
            fuse(learner.network)
        try:
            moved.append(_moved(hp, learner, replayed=replayed))
        except CannotRecord as error:
            if isinstance(error.__cause__, torch.OutOfMemoryError):
                raise
            return str(error)
    first, again, replay = moved
    expected, actual = distance(again, first), distance(replay, first)
    if not actual <= SPREAD * expected + ROUNDING:
        return f"moves weights {actual:.1e} apart from launched steps, those again {expected:.1e}"
    return None


def _moved(hp: Hyperparameters, learner: Learner, *, replayed: bool) -> Tensor:
    """How far some steps move weights, average and statistics; flat."""
    objective = Classification(hp)
    rates = Rates(lambda update: Row(0.01 / (1 + update), hp.drop_path_prob, 0.1), STEPS, learner.device)
    recorder = Recorder(learner, objective, rates)
    before = _state(learner)
    for number in range(STEPS):
        images, labels = random_batch(hp, IMAGES, number)
        devices.seed_draws(number, learner.device)
        if replayed:
            recorder.step(images, labels)
        else:
            step(learner, objective.prepare(learner, images, labels), objective, rates.at(learner.updates))
    return _state(learner) - before


def _state(learner: Learner) -> Tensor:
    values = [value for network in learner.networks.values() for value in network.state_dict().values()]
    return torch.cat([value.detach().flatten().float() for value in values])


def random_batch(hp: Hyperparameters, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images, uint8 (N, 3, H, W) of the size that the run begins with, and labels, int64 (N,)."""
    generator = torch.Generator().manual_seed(seed)
    side = hp.training_sizes[0]
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, hp.num_classes, (count,), generator=generator)
    return images.contiguous(memory_format=torch.channels_last), labels


def distance(values: Tensor, exact: Tensor) -> float:
    """The relative distance in the Euclidean norm."""
    return float((values - exact).norm() / exact.norm())


def _results(network: CellNetwork, images: Tensor, labels: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Logits and all gradients, flat float32."""
    network.zero_grad(set_to_none=True)
    devices.seed_draws(0, images.device)  # of drop-path
    with torch.autocast(images.device.type, dtype, enabled=dtype is not torch.float32):
        outputs = network(images)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    losses = [F.cross_entropy(logits.float(), labels, label_smoothing=0.1) for logits in outputs]
    torch.stack(losses).sum().backward()
    gradients = [parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None]
    return {"logits": outputs[0].detach().float().flatten(), "gradients": torch.cat(gradients)}


def main() -> None:
    """Reads a request from the standard input, writes the verdict to the standard output, both JSON."""
    request = json.load(sys.stdin)
    hp, device = Hyperparameters(**request["hyperparameters"]), torch.device(request["device"])
    dtype = devices.DTYPES[request["precision"]]
    if device.type == "cuda":
        torch.cuda.set_device(device)
    kernels = graph = None
    if request["kernels"]:
        major, minor = torch.cuda.get_device_capability(device)
        compile_ahead(request, 10 * major + minor)
        kernels = kernels_doubt(hp, device, dtype)
        if kernels is None:
            compile_kernels(hp, device, dtype, request["micro_batch"])
    if request["graph"]:
        graph = graph_doubt(hp, request["precision"], device, fused=request["kernels"] and kernels is None)
    print(json.dumps({"kernels": kernels, "graph": graph}))


if __name__ == "__main__":
    main()
