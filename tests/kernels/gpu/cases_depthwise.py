"""The depthwise convolution's kernels against PyTorch in float64. Runs in Triton's interpreter, or on a GPU."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from triton_cases import DEVICE, DTYPES, needs_triton_to_run

depthwise = pytest.importorskip("gaeanet.kernels.gpu.depthwise")  # needs Triton
from gaeanet.kernels.gpu.maps import Size, as_map, rows  # noqa: E402
from gaeanet.kernels.maps import Window  # noqa: E402

pytestmark = needs_triton_to_run
MODULES = [nn.Identity(), nn.ReLU(), nn.SiLU(), nn.Hardswish()]

CASES = [
    # images, height, width, channels, kernel, stride, dilation
    (1, 5, 7, 5, 3, 1, 1),
    (1, 3, 7, 192, 5, 1, 1),
    (1, 4, 28, 16, 5, 1, 1),
    (3, 9, 6, 24, 5, 1, 2),
    (1, 2, 3, 16, 7, 1, 1),
    (1, 3, 33, 32, 3, 1, 2),
    (1, 9, 9, 48, 3, 2, 1),
    (2, 7, 10, 16, 5, 2, 1),
    (1, 6, 16, 5, 5, 2, 2),
    (1, 5, 13, 16, 7, 2, 2),
]
PARAMETERS = "images", "height", "width", "channels", "kernel", "stride", "dilation"


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def window_of(kernel: int, stride: int, dilation: int) -> Window:
    return Window(kernel, stride, dilation * (kernel - 1) // 2, dilation)


def convolution(x: Tensor, weight: Tensor, window: Window) -> Tensor:
    return nn.functional.conv2d(x, weight, None, window.stride, window.padding, window.dilation, len(weight))


def assert_as_exact(value: Tensor, exact: Tensor, usual: Tensor) -> None:
    """Errors are of rounding: no worse than those of PyTorch's operators in the same dtype, `usual`, or than a few."""
    assert value.shape == exact.shape
    scale = exact.abs().max()
    error, usual_error = ((t.double() - exact).abs().max() / scale for t in (value, usual))
    assert error <= max(1.5 * usual_error, 2e-6), f"{error:.1e}, of PyTorch {usual_error:.1e}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(PARAMETERS, CASES)
def test_convolution_and_its_gradients_are_pytorchs(
    images: int, height: int, width: int, channels: int, kernel: int, stride: int, dilation: int, dtype: torch.dtype
) -> None:
    size, window = Size(images, height, width), window_of(kernel, stride, dilation)
    x = random(images, channels, height, width).to(dtype).to(memory_format=torch.channels_last)
    weight = random(channels, 1, kernel, kernel, seed=2)
    results = []
    for as_dtype in (torch.float64, dtype):
        inputs = x.to(as_dtype).requires_grad_(), weight.to(as_dtype).requires_grad_()
        out = convolution(*inputs, window)
        grad = random(*out.shape, seed=1).to(dtype)
        results.append((out.detach(), *torch.autograd.grad(out, inputs, grad.to(as_dtype))))
    x_rows, grad_rows = rows(x), rows(grad).contiguous()
    ours = (
        as_map(depthwise.forward(x_rows, size, weight, window), size.strided(stride)),
        as_map(depthwise.data_gradient(grad_rows, size, weight, window), size),
        depthwise.weight_gradient(grad_rows, x_rows, size, weight, window),
    )
    for value, exact, usual in zip(ours, *results):
        assert_as_exact(value, exact, usual)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", range(4))
@pytest.mark.parametrize(PARAMETERS, [(2, 7, 9, 24, 3, 1, 1), (1, 9, 10, 16, 5, 2, 1)])
def test_gradient_behind_batch_norm_with_its_sums(
    images: int, height: int, width: int, channels: int, kernel: int, stride: int, dilation: int, activation: int,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    size, window = Size(images, height, width), window_of(kernel, stride, dilation)
    raw = (random(images, channels, height, width) + 1.0).to(dtype).to(memory_format=torch.channels_last)
    weight = random(channels, 1, kernel, kernel, seed=2)
    mean, bias, gamma = random(3, channels, seed=3)
    norm = SimpleNamespace(mean=mean + 1.0, rstd=mean.square() + 0.5, weight=gamma, bias=bias)
    values = {name: value.double()[None, :, None, None] for name, value in vars(norm).items()}
    normal = (raw.double() - values["mean"]) * values["rstd"]
    results = []
    for as_dtype in (torch.float64, dtype):
        z = (normal * values["weight"] + values["bias"]).to(as_dtype).requires_grad_()
        out = convolution(MODULES[activation](z), weight.to(as_dtype), window)
        grad = random(*out.shape, seed=1).to(dtype)
        results += torch.autograd.grad(out, z, grad.to(as_dtype))
    g, partials = depthwise.data_gradient_behind(
        rows(grad).contiguous(), size, weight, window, rows(raw), norm, activation
    )
    assert_as_exact(as_map(g, size), *results)
    assert partials.shape[1:] == (2, channels)
    sums = torch.stack([g.double().sum(0), (g.double() * rows(normal)).sum(0)])
    torch.testing.assert_close(partials.double().sum(0), sums, rtol=1e-5, atol=1e-4)


def test_partial_sums_of_several_tiles_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    size, window = Size(2, 18, 4), window_of(3, 1, 1)
    x, grad = random(size.pixels, 16), random(size.pixels, 16, seed=1)
    weight = random(16, 1, 3, 3, seed=2)
    mean, rstd, gamma, bias = random(4, 16, seed=3)
    norm = SimpleNamespace(mean=mean, rstd=rstd.square(), weight=gamma, bias=bias)

    def results() -> tuple[Tensor, Tensor, Tensor]:
        of_weight = depthwise.weight_gradient(grad, x, size, weight, window)
        of_data, partials = depthwise.data_gradient_behind(grad, size, weight, window, x, norm, 2)
        return of_weight, of_data, partials

    many = results()
    for value, again in zip(many, results()):
        assert torch.equal(value, again)
    monkeypatch.setattr(depthwise, "BEHIND_NORM", depthwise.BEHIND_NORM._replace(programs=1))
    monkeypatch.setitem(depthwise.WEIGHT_GRADIENT, 3, depthwise.WEIGHT_GRADIENT[3]._replace(programs=1))
    few = results()
    assert len(few[2]) == 1 < len(many[2])
    torch.testing.assert_close(few[0], many[0])
    assert torch.equal(few[1], many[1])
    torch.testing.assert_close(few[2].sum(0), many[2].sum(0), rtol=1e-4, atol=1e-4)


def test_weight_in_the_kernels_layout_is_not_copied() -> None:
    size, window = Size(1, 5, 5), window_of(3, 1, 1)
    x, filters = random(size.pixels, 16), random(9, 16)
    weight = filters.T.view(16, 1, 3, 3)
    assert weight.flatten(1).t().contiguous().data_ptr() == filters.data_ptr()
    value = depthwise.forward(x, size, weight, window)
    assert torch.equal(value, depthwise.forward(x, size, weight.contiguous(), window))


@pytest.mark.parametrize(
    ("size", "channels", "window", "message"),
    [
        (Size(1, 5, 5), 16, Window(4, 1, 2, 1), "no depthwise kernel"),
        (Size(1, 5, 5), 16, Window(3, 1, 0, 1), "padding"),
        (Size(1, 5, 6), 16, Window(3, 1, 1, 1), "dense"),
        (Size(1, 5, 5), 8, Window(3, 1, 1, 1), "dense"),
        (Size(2**20, 32, 8), 16, Window(3, 1, 1, 1), "fewer than"),
    ],
)
def test_refuses_what_it_cannot_do(size: Size, channels: int, window: Window, message: str) -> None:
    x, weight = (
        torch.zeros(25, 16, device=DEVICE),
        torch.zeros(channels, 1, window.kernel, window.kernel, device=DEVICE),
    )
    with pytest.raises(ValueError, match=message):
        depthwise.forward(x, size, weight, window)
