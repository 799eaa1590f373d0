"""The 1x1 convolution's kernels against PyTorch in float64. Runs in Triton's interpreter, or on a GPU."""

import pytest
import torch
from torch import Tensor, nn
from triton_cases import DEVICE, INTERPRETED, needs_triton_to_run

pointwise = pytest.importorskip("gaeanet.kernels.gpu.pointwise")  # needs Triton
from gaeanet.kernels.gpu import batch_norm  # noqa: E402
from gaeanet.kernels.gpu.maps import Size, as_map, rows  # noqa: E402

pytestmark = needs_triton_to_run
DTYPE = torch.float32 if INTERPRETED else torch.bfloat16  # tensor cores round float32, which no network uses here
MODULES = [nn.Identity(), nn.ReLU(), nn.SiLU(), nn.Hardswish()]

CASES = [
    # images, height, width, inputs, outputs, activation, gather, steps wider than channels
    (1, 5, 7, 5, 7, 3, None, 0),
    (3, 9, 7, 48, 48, 0, None, 8),
    (2, 7, 7, 96, 96, 0, None, 0),
    (1, 6, 6, 192, 192, 0, None, 0),
    (1, 9, 9, 192, 48, 2, None, 8),
    (1, 5, 5, 200, 130, 2, None, 0),
    (2, 9, 9, 48, 24, 1, 0, 16),
    (2, 9, 9, 48, 24, 1, 1, 16),
    (1, 8, 7, 16, 150, 1, 1, 2),
]
PARAMETERS = "images", "height", "width", "inputs", "outputs", "activation", "gather", "margin"


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE)


def wide(pixels: int, channels: int, margin: int) -> Tensor:
    """Rows with `margin` values between them."""
    return (random(pixels, channels + margin) + 0.3).to(DTYPE)[:, margin:]


def gathered(x: Tensor, size: Size, gather: int | None) -> Tensor:
    """The rows that a product reads."""
    if gather is None:
        return x
    image = as_map(x, size)
    image = nn.functional.pad(image, (0, size.width % 2, 0, size.height % 2))
    return rows(image[:, :, gather::2, gather::2])


def reference(
    x: Tensor, weight: Tensor, norm: nn.BatchNorm2d, grad: Tensor, activation: int, size: Size, gather: int | None
) -> tuple[Tensor, ...]:
    """The product, and the gradients of x and weight behind the product's batch norm, by PyTorch in x's dtype."""
    x, weight = (t.detach().clone().requires_grad_() for t in (x, weight))
    raw = MODULES[activation](gathered(x, size, gather)) @ weight.T
    scale, shift = (
        t.detach() if x.dtype == torch.bfloat16 else t.detach().to(x.dtype) for t in (norm.weight, norm.bias)
    )
    nn.functional.batch_norm(raw, None, None, scale, shift, training=True).backward(grad.to(x.dtype))
    return raw.detach(), *(t.grad for t in (x, weight) if t.grad is not None)


def assert_as_close(found: Tensor, exact: Tensor, theirs: Tensor | None, tolerance: float = 2e-5) -> None:
    """That a result is right up to float32 rounding, or on a GPU no worse than 1.5 times PyTorch's own in bf16."""
    scale = exact.abs().max()
    error = ((found.double() - exact).norm() / exact.norm()).item()
    if theirs is not None:
        tolerance = 1.5 * ((theirs.double() - exact).norm() / exact.norm()).item() + 1e-4
    assert error <= tolerance, f"relative error {error:.2e} > {tolerance:.2e}"
    assert (found.double() - exact).abs().max() <= 50 * tolerance * scale


@pytest.fixture(autouse=True)
def two_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few tiles for each program, as in maps larger than these."""
    monkeypatch.setattr(pointwise.parts, "programs", lambda tiles, limit: min(tiles, limit, 2))


@pytest.mark.parametrize(PARAMETERS, CASES)
def test_product_and_gradients(
    images: int, height: int, width: int, inputs: int, outputs: int, activation: int, gather: int | None, margin: int
) -> None:
    size = Size(images, height, width)
    to = size if gather is None else size.strided(2)
    x, grad = wide(size.pixels, inputs, margin), wide(to.pixels, outputs, margin)
    weight = (random(outputs, inputs) / inputs**0.5).to(DTYPE)
    norm = nn.BatchNorm2d(outputs).to(DEVICE)
    with torch.no_grad():
        norm.weight.copy_(random(outputs) + 1)
    given = activation, size, gather
    exact = reference(x.double(), weight.double(), norm, grad, *given)
    theirs = reference(x, weight, norm, grad, *given) if DEVICE == "cuda" else (None, None, None)

    around = torch.full((to.pixels, outputs + margin), 7.0, dtype=DTYPE, device=DEVICE)
    raw, partials = pointwise.forward(x, weight, *given, out=around[:, margin:])
    assert raw.data_ptr() == around[:, margin:].data_ptr()
    assert (around[:, :margin] == 7).all()
    assert_as_close(raw, exact[0], theirs[0])
    dense, again = pointwise.forward(x, weight, *given)
    assert dense.is_contiguous()
    assert torch.equal(dense, raw)
    assert torch.equal(again, partials)

    normalization = batch_norm.finish(partials, norm)
    values = raw.double()
    torch.testing.assert_close(normalization.mean.double(), values.mean(0), rtol=1e-5, atol=1e-6)
    deviation = (values.var(0, unbiased=False) + norm.eps).sqrt()
    torch.testing.assert_close(normalization.rstd.double() * deviation, torch.ones_like(deviation), rtol=1e-5, atol=0)

    normalized = (values - normalization.mean) * normalization.rstd
    sums = torch.zeros(2, outputs + 3, device=DEVICE)
    sums[:, 3:] = torch.stack([grad.double().sum(0), (grad * normalized).sum(0)])
    behind = grad, raw, normalization, sums[:, 3:], x, weight, *given
    x_grad, weight_grad = pointwise.backward(*behind)
    assert weight_grad is not None
    assert weight_grad.dtype == torch.float32
    assert_as_close(x_grad, exact[1], theirs[1])
    assert_as_close(weight_grad, exact[2], theirs[2])

    if outputs <= 128:  # beyond, the kernel is the same
        alone, none = pointwise.backward(*behind, need_weight=False)
        assert none is None
        assert_as_close(alone, exact[1], theirs[1])
    if margin == 0:
        return
    around = torch.full((size.pixels, inputs + margin), 7.0, dtype=DTYPE, device=DEVICE)
    into, again = pointwise.backward(*behind, into=around[:, margin:])
    written = torch.ones(images, height, width, dtype=torch.bool, device=DEVICE)
    if gather is not None:
        written.zero_()
        written[:, gather::2, gather::2] = True
    written = written.flatten()
    assert torch.equal(again, weight_grad)
    assert torch.equal(into[written], x_grad[written])
    assert (into[~written] == 7).all()
    assert (x_grad[~written] == 0).all()
    assert (around[:, :margin] == 7).all()


def test_misfits_are_refused() -> None:
    size, x = Size(1, 4, 4), wide(16, 8, 0)
    weight = random(4, 8).to(DTYPE)
    with pytest.raises(ValueError, match=r"rows must be \(20, 8\)"):
        pointwise.forward(x, weight, 0, Size(1, 4, 5))
    with pytest.raises(ValueError, match="contiguous channels"):
        pointwise.forward(wide(8, 16, 0).T, weight, 0, size)
    with pytest.raises(ValueError, match="dtype"):
        pointwise.forward(x, weight.double(), 0, size)
    with pytest.raises(ValueError, match="32-bit"):
        pointwise.forward(torch.empty(2**28, 8, device="meta"), weight, 0, Size(1, 2**14, 2**14))
