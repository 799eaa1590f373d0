"""The supernet: equal to the plain way, right gradients, the same with and without kernels; and what it prefers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from gaeanet.cells.space import CANDIDATES, EDGES
from gaeanet.config.search import Search
from gaeanet.kernels.build import availability
from gaeanet.models.fast import FastBatchNorm2d, FastConvNorm, accelerate, make_fast, make_plain
from gaeanet.models.operations import ConvNorm
from gaeanet.search.architecture import Architecture, Mixture, entropy, mixture_of
from gaeanet.search.discretize import discretize, one_hot
from gaeanet.search.supernet import FanOut, FastParallelConv, SearchCell, Supernet, recalibrated, without_affine

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CPU = torch.device("cpu")
NEEDS_KERNELS = pytest.mark.skipif(availability() != "own kernels", reason="no C++ compiler")


def random_mixture(seed: int, dtype: torch.dtype = torch.float64) -> Mixture:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(len(EDGES), len(CANDIDATES))] * 2 + [(len(EDGES),)] * 2
    return [torch.rand(shape, dtype=dtype, generator=generator).requires_grad_() for shape in shapes]


def channels_last(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("divisor", "stem", "size"), [(1, "imagenet", 33), (2, "cifar", 9), (4, "cifar", 8)])
def test_the_supernet_computes_what_the_plain_mixed_operation_does(
    divisor: int, stem: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Odd maps too; logits and the gradient of the architecture, in double precision."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from plain_search import PlainSupernet

    torch.manual_seed(0)
    channels = 2 * divisor
    ours = Supernet(3, channels, 3, divisor, stem)
    plain = PlainSupernet(ours, channels, 3, divisor, stem).double()
    ours = ours.double()
    images, labels = torch.randn(4, 3, size, size, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    found = []
    for network in (ours, plain):
        mixture = random_mixture(1)
        logits = network(images, mixture)
        found.append((logits, *torch.autograd.grad(F.cross_entropy(logits, labels), mixture)))
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)


def test_gradients_of_the_supernet_against_finite_differences() -> None:
    """Of the architecture and of all weights, in double precision (gradcheck along random directions)."""
    torch.manual_seed(0)
    network = Supernet(2, 4, 3, 2, "cifar").double()
    names, weights = zip(*network.named_parameters())
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)

    def loss(*inputs: Tensor) -> Tensor:
        flat = inputs[4].split([weight.numel() for weight in weights])
        given = {name: part.view(weight.shape) for name, part, weight in zip(names, flat, weights)}
        return F.cross_entropy(functional_call(network, given, (images, inputs[:4])), torch.tensor([0, 1]))

    # The weights are one vector, so that one direction moves all of them: the pass is taken thrice, not once a layer.
    inputs = [*random_mixture(2), torch.cat([weight.detach().flatten() for weight in weights]).requires_grad_()]
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-7, atol=1e-4, rtol=1e-3, fast_mode=True)


def test_channels_are_shuffled_in_k_groups() -> None:
    cell = SearchCell(8, 8, 8, 4, False, False, nn.ReLU)
    through, passed = torch.arange(2.0).view(1, 2, 1, 1), torch.arange(2.0, 8).view(1, 6, 1, 1)
    assert cell._shuffled(through, passed).flatten().tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    assert torch.equal(cell._shuffled(passed, None), passed)


def test_batch_norm_has_no_affine_anywhere() -> None:
    network = Supernet(2, 8, 3, 4, "imagenet")
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(norm.weight is None and norm.bias is None for norm in norms)


def test_a_candidate_of_no_weight_takes_no_part() -> None:
    torch.manual_seed(0)
    fan = FanOut(1, 2, 1, nn.ReLU).eval()
    x = torch.randn(2, 2, 5, 5)
    skip = torch.zeros(1, 8)
    skip[0, CANDIDATES.index("skip_connect")] = 1.0
    assert torch.equal(fan(x, skip), x)
    none = torch.zeros(1, 8)
    none[0, CANDIDATES.index("none")] = 1.0
    assert not fan(x, none).any()


def gradients(module: nn.Module, *inputs: Tensor) -> list[Tensor]:
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    out = module(*inputs)
    found = torch.autograd.grad((out * out.detach().cos()).sum(), [*inputs, *module.parameters()], allow_unused=True)
    return [out, *(gradient for gradient in found if gradient is not None), *module.buffers()]


@NEEDS_KERNELS
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("edges", [1, 3])
def test_the_kernels_compute_what_pytorch_does_of_a_fan_out(edges: int, stride: int) -> None:
    torch.manual_seed(edges)
    plain = FanOut(edges, 4, stride, nn.SiLU)
    fast = copy.deepcopy(plain)
    make_fast(fast)
    assert any(isinstance(module, FastParallelConv) for module in fast.modules())
    assert any(isinstance(module, FastBatchNorm2d) for module in fast.modules())
    inputs = channels_last(3, 4, 9, 7), torch.rand(edges, 8)
    for a, b in zip(gradients(fast, *inputs), gradients(plain, *inputs)):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)
    make_plain(fast)
    assert [type(module) for module in fast.modules()] == [type(module) for module in plain.modules()]


@NEEDS_KERNELS
def test_the_kernels_know_batch_norm_without_affine(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = without_affine(ConvNorm(4, 6, nn.ReLU))
    fast = copy.deepcopy(plain)
    make_fast(fast)
    x = channels_last(3, 4, 5, 5)
    for a, b in zip(gradients(fast, x), gradients(plain, x)):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert isinstance(fast, FastConvNorm)
    monkeypatch.setattr(ConvNorm, "forward", None)  # the plain way was not taken
    fast(x)


def test_statistics_of_a_decided_supernet_are_its_own() -> None:
    """In evaluation it computes what it does in training, on the batch that it was calibrated with."""
    torch.manual_seed(0)
    network = Supernet(3, 4, 3, 2, "cifar")
    images = torch.randn(8, 3, 32, 32)
    architecture = Architecture(Search(channel_divisor=2), CPU)
    decided = mixture_of(one_hot(discretize(architecture.weights())), CPU)
    before = [buffer.clone() for buffer in network.buffers()]
    calibrated = recalibrated(network, decided, [images])
    assert all(torch.equal(a, b) for a, b in zip(before, network.buffers()))
    with torch.no_grad():
        trained = copy.deepcopy(calibrated).train()(images, decided)
        torch.testing.assert_close(calibrated.eval()(images, decided), trained, atol=0.05, rtol=0.05)


def test_autocast_takes_the_plain_way() -> None:
    network = Supernet(3, 4, 3, 2, "cifar")
    accelerate(network)
    mixture = random_mixture(0, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(channels_last(2, 3, 8, 8), mixture)
    logits.float().sum().backward()
    assert all(part.grad is not None and torch.isfinite(part.grad).all() for part in mixture)


def spots(count: int, seed: int, size: int = 12, apart: int = 6) -> tuple[Tensor, Tensor]:
    """Pairs of spots in noise, one below the other (class 1) or side by side: told by a wide field only."""
    draw = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.randn(count, 1, size, size, generator=draw)
    labels = torch.randint(2, (count,), generator=draw)
    for image, label in zip(images[:, 0], labels.tolist()):
        for _ in range(3):
            along, across = torch.randint(size - apart, (), generator=draw), torch.randint(size, (), generator=draw)
            for place in (along, along + apart):
                image[(place, across) if label else (across, place)] += 3
    return images.contiguous(memory_format=torch.channels_last), labels


class OneEdge(nn.Module):
    """A 1x1 stem, one edge with all its candidates, and the strongest answer of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 1, bias=False)
        self.edge = FanOut(1, 8, 1, nn.ReLU)
        self.head = nn.Linear(8, 2)

    def forward(self, images: Tensor, weights: Tensor) -> Tensor:
        return self.head(self.edge(self.stem(images), weights).relu().amax((2, 3)))


def found_by(method: str, seed: int, steps: int = 40, batch: int = 16) -> Tensor:
    """The weights of an edge's candidates after a search on two levels: one step of each a batch."""
    torch.manual_seed(seed)
    network = OneEdge()
    accelerate(network)
    architecture = Architecture(Search(method=method), CPU)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    sets = spots(256, seed), spots(256, 1000 + seed)

    def loss(examples: tuple[Tensor, Tensor], step: int, weights: Tensor) -> Tensor:
        part = slice(step * batch % 256, step * batch % 256 + batch)
        return F.cross_entropy(network(examples[0][part], weights), examples[1][part])

    for step in range(steps):
        parameters: list[Any] = architecture.parameters
        error = loss(sets[1], step, architecture.mixture()[0][:1])
        moved = torch.autograd.grad(error, parameters, allow_unused=True, materialize_grads=True)
        architecture.step(moved)
        optimizer.zero_grad()
        loss(sets[0], step, architecture.mixture()[0][:1].detach()).backward()
        optimizer.step()
    return architecture.mixture()[0][0].detach()


WIDE = [CANDIDATES.index(name) for name in ("sep_conv_5x5", "dil_conv_5x5")]
"""Operations that see spots six pixels apart at once; 3x3 ones see five, pools three."""


@pytest.mark.slow
def test_a_planted_problem_over_five_seeds() -> None:
    """The operations that solve it win, and GAEA's weights are sparser than DARTS's at equal epochs."""
    for seed in range(5):
        gaea, darts = found_by("gaea", seed), found_by("darts", seed)
        assert int(gaea.argmax()) in WIDE
        assert float(entropy(gaea[None])) < float(entropy(darts[None])) - 0.01
