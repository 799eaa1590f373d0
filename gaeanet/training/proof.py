"""The GPU kernels prove themselves where they run, before a run trusts them.

A process of its own computes logits and gradients of the run's network with them and with PyTorch's operators, both in
bf16, and measures how far each is from PyTorch's in float32. A crash, a wrong number or a compilation that does not end
is then that process's, and the run takes PyTorch's operators. What the kernels were compiled to stays in Triton's
cache; the verdict is kept beside the CPU kernels, under all that it depends on.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gaeanet import __version__
from gaeanet.config.experiment import Hyperparameters
from gaeanet.data.images.transforms import normalize
from gaeanet.errors import reason
from gaeanet.kernels.build import Unavailable, cache_directory
from gaeanet.kernels.gpu.availability import obstacle
from gaeanet.models.build import build_network
from gaeanet.models.fused import fuse
from gaeanet.models.network import CellNetwork

SECONDS = 300
"""The longest that a proof may take; compiling takes most of it."""

IMAGES = 16
"""In the batch of a comparison."""

BOUND = 1.5
"""How much further from float32 the kernels may be than PyTorch's operators in bf16."""

SLACK = 1e-3
"""By how much more, relative to the value: rounding differs where both are nearly exact."""


def doubt(hp: Hyperparameters, device: torch.device, micro_batch: int) -> str | None:
    """Why the kernels are not to be used for the network of `hp`, in a few words; None where they are proven.

    The first call for a network on a kind of GPU takes as long as compiling; the verdict is remembered.

    Args:
        micro_batch: Images of a micro-batch in the run, for which the kernels are compiled.
    """
    if (why_not := obstacle(device, torch.bfloat16)) is not None:
        return why_not
    request = {"hyperparameters": hp.spelled_out(), "device": str(device), "micro_batch": micro_batch}
    try:
        file = cache_directory() / f"proof-{_fingerprint(request, device)}.json"
    except Unavailable as error:
        return str(error)
    if file.exists():
        found: str | None = json.loads(file.read_text(encoding="utf-8"))["doubt"]
        return found
    verdict = _tried(request)
    if verdict is None:  # a doubt may be of the day: a full GPU, a busy machine
        draft = file.with_name(f".{file.name}.{os.getpid()}")
        draft.write_text(json.dumps({"doubt": verdict}), encoding="utf-8")
        draft.replace(file)
    return verdict


def _tried(request: dict[str, Any]) -> str | None:
    """The verdict of a process of its own."""
    command = [sys.executable, "-m", "gaeanet.training.proof"]
    try:
        ended = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"compiling them took more than {SECONDS} s"
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
        return f"their trial failed: {last[:200]}"
    answer: str | None = json.loads(ended.stdout.splitlines()[-1])
    return answer


def _fingerprint(request: dict[str, Any], device: torch.device) -> str:
    import triton

    package = Path(__file__).parents[1]
    sources = sorted([*package.glob("kernels/gpu/*.py"), *package.glob("models/*.py")])
    card = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device), torch.version.cuda
    digest = hashlib.sha256(repr([__version__, torch.__version__, triton.__version__, card]).encode())
    network = {**request["hyperparameters"], "micro_batch": request["micro_batch"]}
    digest.update(json.dumps(network, sort_keys=True, default=str).encode())
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:24]


def compare(hp: Hyperparameters, device: torch.device, count: int = IMAGES) -> str | None:
    """Compares logits and gradients of the kernels on `count` random images with PyTorch's; None where they are right.

    The yardstick is PyTorch in float32 (without TF32).
    """
    torch.backends.cudnn.allow_tf32 = False
    generator = torch.Generator().manual_seed(0)
    side = hp.training_sizes[0]
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    images = normalize(images.to(device).contiguous(memory_format=torch.channels_last))
    labels = torch.randint(0, hp.num_classes, (count,), generator=generator).to(device)
    network = build_network(hp).to(device).to(memory_format=torch.channels_last).train()
    network.set_drop_path_rate(hp.drop_path_prob)
    exact = _results(network, images, labels, None)
    usual = _results(network, images, labels, torch.bfloat16)
    fuse(network)
    own = _results(network, images, labels, torch.bfloat16)
    for name in exact:
        expected, found = _distance(usual[name], exact[name]), _distance(own[name], exact[name])
        if not found <= BOUND * expected + SLACK:
            return f"their {name} are {found:.1e} from float32, PyTorch's {expected:.1e}"
    return None


def _results(network: CellNetwork, images: Tensor, labels: Tensor, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Logits and all gradients, flat float32."""
    network.zero_grad(set_to_none=True)
    torch.manual_seed(0)  # drop-path's draws
    with torch.autocast(images.device.type, dtype, enabled=dtype is not None):
        outputs = network(images)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    loss = sum(F.cross_entropy(logits.float(), labels, label_smoothing=0.1) for logits in outputs)
    assert isinstance(loss, Tensor)
    loss.backward()
    gradients = [parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None]
    return {"logits": outputs[0].detach().float().flatten(), "gradients": torch.cat(gradients)}


def _distance(values: Tensor, exact: Tensor) -> float:
    """The relative distance in the Euclidean norm."""
    return float((values - exact).norm() / exact.norm())


def compile_for(hp: Hyperparameters, device: torch.device, count: int) -> None:
    """Runs a network with the kernels on a batch of the run's size: what it launches is then compiled."""
    side = hp.training_sizes[0]
    images = torch.zeros(count, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(count, dtype=torch.int64, device=device)
    network = build_network(hp).to(device).to(memory_format=torch.channels_last).train()
    fuse(network)
    _results(network, images, labels, torch.bfloat16)


def main() -> None:
    """Reads a request from the standard input, writes the verdict to the standard output, both JSON."""
    request = json.load(sys.stdin)
    hp, device = Hyperparameters(**request["hyperparameters"]), torch.device(request["device"])
    torch.cuda.set_device(device)
    try:
        verdict = compare(hp, device)
        if verdict is None:
            compile_for(hp, device, request["micro_batch"])
    except torch.OutOfMemoryError as error:
        verdict = reason(error)
    print(json.dumps(verdict))


if __name__ == "__main__":
    main()
