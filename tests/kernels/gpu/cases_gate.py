"""Squeeze-and-excitation's kernels against PyTorch in float64. Runs in Triton's interpreter, or on a GPU."""

import pytest
import torch
from torch import Tensor
from triton_cases import DEVICE, DTYPES, needs_triton_to_run

gate = pytest.importorskip("gaeanet.kernels.gpu.gate")  # needs Triton
from gaeanet.kernels.gpu.maps import Size  # noqa: E402

pytestmark = needs_triton_to_run


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("margin", [0, 8])
@pytest.mark.parametrize(("size", "channels"), [(Size(3, 7, 5), 5), (Size(1, 12, 13), 192), (Size(2, 3, 3), 24)])
def test_sums_and_scaling_are_pytorchs(size: Size, channels: int, margin: int, dtype: torch.dtype) -> None:
    x, grad = ((random(size.pixels, channels + margin, seed=k) + k).to(dtype)[:, margin:] for k in (1, 0))
    factors, shift = random(2, size.images, channels, seed=2)
    exact_x, exact_grad = (t.double().view(size.images, -1, channels) for t in (x.contiguous(), grad.contiguous()))
    means, dots = gate.channel_means(x, size), gate.channel_dots(grad, x, size)
    torch.testing.assert_close(means.double(), exact_x.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(dots.double(), (exact_grad * exact_x).sum(1), rtol=1e-5, atol=1e-4)
    scaled = exact_x * factors.double()[:, None]
    for value, exact in (
        (gate.scaled(x, size, factors), scaled),
        (gate.scaled(x, size, factors, shift), scaled + shift.double()[:, None]),
    ):
        assert value.dtype == dtype
        assert value.is_contiguous()
        error = (value.double() - exact.view(size.pixels, channels)).abs().max() / exact.abs().max()
        assert error <= 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize(
    ("size", "factors", "message"),
    [
        (Size(1, 5, 6), (1, 16), "rows of"),
        (Size(1, 5, 5), (1, 8), "factors"),
    ],
)
def test_refuses_other_shapes(size: Size, factors: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gate.scaled(torch.zeros(25, 16, device=DEVICE), size, torch.zeros(factors, device=DEVICE))
