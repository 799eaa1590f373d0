"""Batch norm's kernels against PyTorch in float64. Runs in Triton's interpreter, or on a GPU."""

import pytest
import torch
from torch import Tensor, nn
from triton_cases import DEVICE, DTYPES, needs_triton_to_run

batch_norm = pytest.importorskip("gaeanet.kernels.gpu.batch_norm")  # needs Triton

pytestmark = needs_triton_to_run
MODULES = [nn.Identity(), nn.ReLU(), nn.SiLU(), nn.Hardswish()]


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE, dtype)


def norm_of(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, momentum=0.3).to(DEVICE)
    with torch.no_grad():
        for parameter, values in zip((norm.weight, norm.bias, norm.running_mean), random(3, channels)):
            parameter.copy_(values)
    return norm


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("pixels", "channels", "mean"), [(2, 5, 0.0), (1234, 48, 3.0), (1000, 24, 4096.0), (77, 300, 1.0)]
)
def test_statistics_are_those_of_the_batch(pixels: int, channels: int, mean: float, dtype: torch.dtype) -> None:
    wide = (random(pixels, channels + 8) + mean).to(dtype)
    rows, norm, ours = wide[:, 8:], norm_of(channels), norm_of(channels)
    partials = batch_norm.statistics(rows)
    norm = norm.double()
    norm(rows.double()[:, :, None, None])
    found = batch_norm.finish(partials, ours)
    exact = rows.double()
    torch.testing.assert_close(found.mean.double(), exact.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        found.rstd.double(), (exact.var(0, unbiased=False) + norm.eps).rsqrt(), rtol=1e-4, atol=0
    )
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(ours, name).double(), getattr(norm, name), rtol=1e-4, atol=1e-6)
    assert ours.num_batches_tracked == 0
    assert torch.equal(partials[:, 0].sum(0), torch.full((channels,), float(pixels), device=DEVICE))


def test_finish_combines_programs_of_different_counts_in_more_than_one_block() -> None:
    counts = torch.arange(1, 301)
    rows = random(int(counts.sum()), 5) * 0.1 + 1000
    pieces = rows.double().split(counts.tolist())
    partials = torch.stack(
        [
            torch.stack([torch.full((5,), float(len(x)), device=DEVICE), x.mean(0), x.var(0, unbiased=False) * len(x)])
            for x in pieces
        ]
    ).float()
    found = batch_norm.finish(partials, norm_of(5))
    torch.testing.assert_close(
        found.rstd.double(), (rows.double().var(0, unbiased=False) + 1e-5).rsqrt(), rtol=1e-4, atol=0
    )
    torch.testing.assert_close(found.mean.double(), rows.double().mean(0), rtol=1e-7, atol=0)


def test_finish_backward_adds_over_programs() -> None:
    for shape in ((1, 2, 5), (300, 2, 48), (3, 70, 96)):
        partials = random(*shape)
        torch.testing.assert_close(
            batch_norm.finish_backward(partials).double(), partials.double().sum(0), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", range(4))
@pytest.mark.parametrize(("pixels", "channels"), [(35, 5), (300, 48)])
def test_apply_is_batch_norm_and_activation(pixels: int, channels: int, activation: int, dtype: torch.dtype) -> None:
    raw = (random(pixels, channels + 8) * 2 + 1).to(dtype)[:, 8:]
    normalization = batch_norm.Normalization(*(random(4, channels) * 0.5 + 1).unbind())
    exact = [t.double() for t in (normalization.mean, normalization.rstd, normalization.weight, normalization.bias)]
    expected = MODULES[activation]((raw.double() - exact[0]) * exact[1] * exact[2] + exact[3])
    rounding = 1e-5 if dtype == torch.float32 else 2**-8
    found = batch_norm.apply(raw, normalization, activation)
    assert found.is_contiguous()
    torch.testing.assert_close(found.double(), expected, rtol=rounding, atol=rounding / 4)
    half = batch_norm.apply(raw[:, 2:], normalization.channels(2, channels), activation)
    torch.testing.assert_close(half, found[:, 2:], rtol=rounding, atol=rounding / 4)


def test_a_batch_norm_without_running_statistics_is_refused() -> None:
    with pytest.raises(ValueError, match="running statistics"):
        batch_norm.finish(random(1, 3, 5), nn.BatchNorm2d(5, track_running_stats=False).to(DEVICE))
