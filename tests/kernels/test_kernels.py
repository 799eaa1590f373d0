"""The kernels against PyTorch's operators in float64, and the ways in which they may be missing."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gaeanet.kernels import build, maps
from gaeanet.kernels.build import availability
from gaeanet.kernels.maps import Window
from gaeanet.models.fast import accelerate, make_fast, make_plain
from gaeanet.models.network import CellNetwork
from gaeanet.models.operations import ACTIVATIONS, ConvNorm, DilatedConv, FactorizedReduce, SeparableConv, SqueezeExcite

try:
    build.library()
except build.Unavailable as error:
    pytest.skip(f"no kernels here: {error}", allow_module_level=True)

TOLERANCE = 3e-6
"""Of the largest value of a tensor: a dozen roundings of float32."""


def assert_close(value: Tensor | None, exact: Tensor | None, what: str, scale: float = 0.0) -> None:
    """Errors are a share of the largest value, or of `scale` where that is larger."""
    assert value is not None
    assert exact is not None
    assert value.shape == exact.shape
    error = (value.double() - exact).abs().max() / max(float(exact.detach().abs().max()), scale, 1e-3)
    assert error < TOLERANCE, f"{what}: {error:.2e}"


def assert_equals_pytorch(module: nn.Module, x: Tensor) -> None:
    """Output, gradients and running statistics of a module with the kernels and, in float64, without."""
    exact, fast = copy.deepcopy(module).double(), copy.deepcopy(module)
    make_fast(fast)
    assert type(fast) is not type(module)
    x_exact = x.double().requires_grad_()
    x_fast = x.clone(memory_format=torch.channels_last).requires_grad_()
    out_exact, out_fast = exact(x_exact), fast(x_fast)
    grad = torch.randn_like(out_fast)
    out_exact.backward(grad.double())
    out_fast.backward(grad)
    assert out_fast.is_contiguous(memory_format=torch.channels_last)
    assert_close(out_fast, out_exact, "output")
    assert_close(x_fast.grad, x_exact.grad, "input gradient")
    # Behind batch norm the length of a weight does not matter: with few channels its gradient is what rounding leaves
    # of larger terms, in PyTorch's own float32 as well.
    module(x).backward(grad)
    scale = max(float(p.grad.abs().max()) for p in exact.parameters() if p.grad is not None)
    for (name, a), b, c in zip(fast.named_parameters(), exact.parameters(), module.parameters()):
        if b.grad is None or c.grad is None:
            assert a.grad is b.grad is c.grad, f"{name} is frozen"
            continue
        own_error = float((c.grad.double() - b.grad).abs().max())
        assert_close(a.grad, b.grad, name, max(scale, 4 * own_error / TOLERANCE))
    for (name, a), b in zip(fast.named_buffers(), exact.buffers()):
        assert_close(a, b.double(), name)


activations = st.sampled_from(sorted(ACTIVATIONS))
batches = st.integers(1, 5)
channels = st.integers(1, 40)
several_channels = st.integers(4, 40)
sides = st.integers(2, 13)


@settings(max_examples=60)
@given(
    activations,
    batches,
    several_channels,
    sides,
    sides,
    st.sampled_from([3, 5, 7, 9]),
    st.sampled_from([1, 2]),
    st.booleans(),
)
def test_separable_and_dilated_convolutions(
    activation: str, n: int, c: int, height: int, width: int, kernel: int, stride: int, dilated: bool
) -> None:
    torch.manual_seed(n)
    kind = DilatedConv if dilated else SeparableConv
    # Few values a channel make batch norm's own gradient a difference of nearly equal numbers.
    x = torch.randn(n + 4, c, height + 3, width + 3)
    assert_equals_pytorch(kind(c, kernel, stride, ACTIVATIONS[activation]), x)


@settings(max_examples=60)
@given(
    activations, batches, channels, sides, sides, st.sampled_from([3, 5, 7, 2]), st.integers(1, 3), st.integers(1, 3)
)
def test_depthwise_alone(
    activation: str, n: int, c: int, height: int, width: int, kernel: int, stride: int, dilation: int
) -> None:
    torch.manual_seed(n)
    window = Window(kernel, stride, dilation * (kernel - 1) // 2, dilation)
    weight = torch.randn(c, 1, kernel, kernel)
    # In steps of 1/256, of which float32 makes no other sums: a rounding at a kink of the activation turns its slope.
    x, affine = (torch.randn(shape).mul(256).round() / 256 for shape in ((n, c, height + 4, width + 4), (2, c)))
    x_exact, weight_exact = x.double(), weight.double().requires_grad_()
    x_exact = (x_exact * affine[0].view(-1, 1, 1) + affine[1].view(-1, 1, 1)).requires_grad_()
    kind = ACTIVATIONS[activation]
    padding = window.padding
    exact = nn.functional.conv2d(kind()(x_exact), weight_exact, None, stride, padding, dilation, c)
    x = x.contiguous(memory_format=torch.channels_last)
    out = maps.depthwise(x, affine, weight, maps.ACTIVATIONS[kind], window)
    assert_close(out, exact, "output")
    grad = torch.randn_like(out)
    exact.backward(grad.double())
    x_grad, weight_grad = maps.depthwise_backward(grad, x, affine, weight, maps.ACTIVATIONS[kind], window)
    assert_close(x_grad, x_exact.grad, "input gradient")
    assert_close(weight_grad, weight_exact.grad, "weight gradient")


@settings(max_examples=30)
@given(activations, batches, channels, channels, sides, sides)
def test_pointwise_convolutions(activation: str, n: int, c: int, out: int, height: int, width: int) -> None:
    torch.manual_seed(n)
    assert_equals_pytorch(ConvNorm(c, out, ACTIVATIONS[activation]), torch.randn(n + 4, c, height, width))


def test_pointwise_convolutions_over_many_rows_and_panels() -> None:
    torch.manual_seed(0)
    assert_equals_pytorch(ConvNorm(75, 133, nn.SiLU), torch.randn(9, 75, 23, 19))


@settings(max_examples=30)
@given(activations, batches, channels, st.integers(1, 13), st.integers(1, 13))
def test_squeeze_excitation(activation: str, n: int, c: int, height: int, width: int) -> None:
    torch.manual_seed(n)
    module = SqueezeExcite(c, 1 + c // 4, ACTIVATIONS[activation])
    assert_equals_pytorch(module, torch.randn(n, c, height, width))
    frozen = copy.deepcopy(module)
    frozen.se_reduce.requires_grad_(False)
    assert_equals_pytorch(frozen, torch.randn(n, c, height, width))


@settings(max_examples=30)
@given(batches, several_channels, sides, sides)
def test_factorized_reduction(n: int, c: int, height: int, width: int) -> None:
    torch.manual_seed(n)
    assert_equals_pytorch(FactorizedReduce(c, c + 2), torch.randn(n + 4, c, height + 3, width + 3))


def test_gradients_of_a_part_of_a_map() -> None:
    """Behind a concatenation a gradient is a part of a larger map's; batch norm and convolutions take it as it lies."""
    torch.manual_seed(0)
    kinds = nn.BatchNorm2d(12), ConvNorm(12, 12, nn.ReLU), SeparableConv(12, 3, 1, nn.ReLU)
    for module in kinds:
        exact, fast = copy.deepcopy(module).double(), copy.deepcopy(module)
        make_fast(fast)
        x = torch.randn(6, 12, 7, 5)
        for network, images in ((exact, x.double()), (fast, x)):
            torch.cat([images[:, :5], network(images), images[:, 3:]], dim=1).pow(3).sum().backward()
        for (name, a), b in zip(fast.named_parameters(), exact.parameters()):
            assert_close(a.grad, b.grad, f"{type(module).__name__}.{name}", 10.0)


@settings(max_examples=30)
@given(batches, channels, sides, sides, st.floats(-300, 300), st.floats(0.1, 10))
def test_batch_norm(n: int, c: int, height: int, width: int, mean: float, spread: float) -> None:
    torch.manual_seed(n)
    norm = nn.BatchNorm2d(c)
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.uniform_(norm.bias, -1, 1)
    assert_equals_pytorch(norm, torch.randn(n + 4, c, height, width) * spread)
    # Float32 has no more digits than this for numbers that far from zero.
    x = (torch.randn(n + 4, c, height, width, dtype=torch.float64) * spread + mean).float()
    fast = copy.deepcopy(norm)
    make_fast(fast)
    torch.testing.assert_close(
        fast(x).double(), norm.double()(x.double()), rtol=0, atol=1e-6 * (1 + abs(mean) / spread)
    )


def test_batch_norm_over_many_chunks_of_rows() -> None:
    assert_equals_pytorch(nn.BatchNorm2d(21), torch.randn(9, 21, 31, 17) + 3)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_activations_over_the_whole_range(activation: str) -> None:
    """A 1x1 convolution that changes nothing shows it: values to 4 roundings, NaN as NaN."""
    x = torch.cat([torch.linspace(-100, 100, 20001), torch.tensor([0.0, -3.0, 3.0, 1e-30, 3e38, -3e38, torch.nan])])
    number, ones = maps.ACTIVATIONS[ACTIVATIONS[activation]], torch.ones(1)
    norm = nn.BatchNorm2d(1)
    out, _, _ = maps.pointwise(x.view(-1, 1, 1, 1), ones.view(1, 1, 1, 1), ones, ones, norm, number)
    exact, fast = ACTIVATIONS[activation]()(x[:-1].double()), out.flatten()
    assert ((fast[:-1].double() - exact).abs() <= 4 * 2**-24 * exact.abs() + 1e-35).all()
    assert fast[-1].isnan()


SLOPES = {"relu": [0.0, 0.0, 1.0], "hswish": [0.0, 0.5, 1.0]}
"""At -3, 0 and 3, as PyTorch has them; before 2.9 its hard-swish took the other sides' at the two kinks."""


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_slopes_at_the_kinks(activation: str) -> None:
    x = torch.tensor([-3.0, 0.0, 3.0], requires_grad=True)
    ACTIVATIONS[activation]()(x).sum().backward()
    assert x.grad is not None
    expected = torch.tensor(SLOPES.get(activation, x.grad.tolist()))
    pixels, window = x.detach().view(3, 1, 1, 1), Window(1, 1, 0, 1)
    number, ones = maps.ACTIVATIONS[ACTIVATIONS[activation]], torch.ones(3, 1, 1, 1)
    slopes = maps.depthwise_backward(ones, pixels, None, ones[:1], number, window)[0].flatten()
    assert_close(slopes, expected.double(), "slopes")
    if torch.__version__ >= "2.9":  # compared as versions
        assert_close(expected, x.grad.double(), "PyTorch's slopes")


def network(**options: object) -> CellNetwork:
    torch.manual_seed(0)
    defaults = {"num_classes": 3, "init_channels": 8, "layers": 3, "activation": "swish", "squeeze_excite": True}
    return CellNetwork(**{**defaults, **options})  # type: ignore[arg-type]


# Not 4 channels: PyTorch 2.14's own 1x1 convolution of stride 2 from 4 to 2 channels, in channels-last memory, writes
# beyond its tensors on a CPU with AVX2.
IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1)).contiguous(
    memory_format=torch.channels_last
)


def gradients(built: nn.Module, images: Tensor = IMAGES) -> dict[str, Tensor]:
    built.zero_grad()
    out = built(images)
    (out[0].square().sum() + out[1].square().sum() if isinstance(out, tuple) else out.square().sum()).backward()
    return {name.removeprefix("module."): p.grad.clone() for name, p in built.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("genotype", ["gaea-imagenet", "nasnet-a", "pc-darts-imagenet"])
def test_the_whole_network(genotype: str) -> None:
    plain, fast = network(genotype=genotype, auxiliary=True), network(genotype=genotype, auxiliary=True)
    assert accelerate(fast) == "own kernels"
    exact = gradients(plain.double(), IMAGES.double())
    for name, gradient in gradients(fast).items():
        error = (gradient.double() - exact[name]).norm() / exact[name].norm()
        assert error < 1e-3 or exact[name].norm() < 1e-6, f"{name}: {error:.1e}"
    for (name, a), b in zip(fast.named_buffers(), plain.buffers()):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-4, atol=1e-4, msg=name)


def test_bit_for_bit_the_same_in_every_run_and_for_any_number_of_threads() -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 20, 15, 15).contiguous(memory_format=torch.channels_last)
    weight, window = torch.randn(20, 1, 5, 5), Window(5, 2, 4, 2)
    results: list[list[Tensor]] = []
    kinds = nn.BatchNorm2d(20), ConvNorm(20, 40, nn.SiLU), SeparableConv(20, 5, 2, nn.SiLU)
    for threads in (1, 1, 2, 3):
        torch.set_num_threads(threads)
        try:
            results.append([])
            for kind in kinds:
                module = copy.deepcopy(kind)
                make_fast(module)
                leaf = x.clone(memory_format=torch.channels_last).requires_grad_()
                out = module(leaf)
                out.square().sum().backward()
                made = [leaf.grad, *(p.grad for p in module.parameters())]
                results[-1] += [out, *module.buffers(), *(grad for grad in made if grad is not None)]
            inner = maps.depthwise(x, None, weight, 2, window)
            grads = maps.depthwise_backward(inner, x, None, weight, 2, window)
            sums = maps.sums_over_pixels(x, x)
            results[-1] += [inner, *grads, sums, maps.scaled_images(x, sums, sums)]
        finally:
            torch.set_num_threads(1)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_a_fast_network_is_the_same_to_everyone_else(tmp_path: Path) -> None:
    plain, fast = network(), network()
    keys = list(plain.state_dict())
    make_fast(fast)
    assert list(fast.state_dict()) == keys
    with torch.no_grad():
        assert torch.equal(plain.eval()(IMAGES), fast.eval()(IMAGES))  # evaluation is PyTorch's
    copied = pickle.loads(pickle.dumps(copy.deepcopy(fast)))
    assert torch.equal(copied(IMAGES), fast(IMAGES))
    fast.train()
    torch.export.export(fast, (IMAGES,))
    with torch.autocast("cpu", torch.bfloat16):
        assert fast(IMAGES).dtype is torch.bfloat16
    make_plain(fast)
    assert [type(a) for a in fast.modules()] == [type(a) for a in plain.modules()]
    torch.jit.script(fast.eval())


@pytest.fixture
def one_process() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_distributed_and_checkpointed_cells(one_process: None) -> None:
    fast = network().to(memory_format=torch.channels_last)
    make_fast(fast)
    expected = gradients(fast)
    shared = gradients(DistributedDataParallel(fast))
    fast.set_grad_checkpointing()
    for other in (shared, gradients(fast)):
        assert other.keys() == expected.keys()
        for name, gradient in other.items():
            torch.testing.assert_close(gradient, expected[name], msg=name)


def test_one_value_a_channel_is_refused_as_pytorch_does() -> None:
    for module in (nn.BatchNorm2d(4), DilatedConv(4, 3, 2, nn.SiLU), ConvNorm(4, 4, nn.SiLU)):
        make_fast(module)
        with pytest.raises(ValueError, match="more than 1 value"):
            module(torch.randn(1, 4, 1, 1))


@pytest.fixture
def unbuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache directory with nothing in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for known in (build.library, availability):
        known.cache_clear()
    yield tmp_path
    for known in (build.library, availability):
        known.cache_clear()


def test_without_a_compiler_everything_works_as_before(unbuilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(unbuilt))
    built = network()
    assert accelerate(built) == "PyTorch's kernels (no C++ compiler)"
    assert [type(a) for a in built.modules()] == [type(a) for a in network().modules()]


def test_a_compiler_that_fails_is_quoted_in_one_line(unbuilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = unbuilt / "broken"
    script.write_text("#!/bin/sh\necho 'x.cpp: fatal error: no space left' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    sentence = accelerate(network())
    assert sentence == "PyTorch's kernels (the C++ compiler failed: x.cpp: fatal error: no space left)"
    assert not list((unbuilt / "gaeanet").iterdir())


def test_a_damaged_library_is_made_anew(unbuilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_build", lambda compiler, runtime, path: path.write_bytes(b"half a file"))
    assert accelerate(network()).startswith("PyTorch's kernels (they do not load: ")
    assert not list((unbuilt / "gaeanet").iterdir())


@pytest.mark.slow
def test_two_processes_build_at_once(unbuilt: Path) -> None:
    quick = "build.FLAGS = tuple(flag for flag in build.FLAGS if flag != '-O3')"
    code = f"from gaeanet.kernels import build; {quick}; print(build.library()._name)"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    names = {process.communicate()[0].strip() for process in both}
    assert all(process.returncode == 0 for process in both)
    assert names == {str(path) for path in (unbuilt / "gaeanet").iterdir()}


def test_one_openmp_runtime() -> None:
    maps = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    assert len([path for path in maps if Path(path).name.startswith(("libgomp", "libomp", "libiomp"))]) == 1
