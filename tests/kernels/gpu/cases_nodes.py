"""The kernels of a cell's states and of pooling against PyTorch in float64. In Triton's interpreter, or on a GPU."""

import pytest
import torch
from torch import Tensor, nn
from triton_cases import DEVICE, DTYPES, needs_triton_to_run

nodes = pytest.importorskip("gaeanet.kernels.gpu.nodes")  # needs Triton
from gaeanet.kernels.gpu import pooling  # noqa: E402
from gaeanet.kernels.gpu.batch_norm import Normalization, finish_backward  # noqa: E402
from gaeanet.kernels.gpu.maps import Size, as_map, rows  # noqa: E402
from gaeanet.kernels.gpu.nodes import Term  # noqa: E402

pytestmark = needs_triton_to_run
MODULES: list[nn.Module] = [nn.Identity(), nn.ReLU(), nn.SiLU(), nn.Hardswish()]
SIZE = Size(3, 7, 5)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape).to(DEVICE, dtype)


def normalization(channels: int) -> Normalization:
    return Normalization(random(channels), random(channels).abs() + 0.5, random(channels), random(channels))


def strided(channels: int, dtype: torch.dtype) -> Tensor:
    """Rows that are a slice of wider ones."""
    return random(SIZE.pixels, 3 * channels, dtype=dtype)[:, channels : 2 * channels]


def term(kind: str, channels: int, dtype: torch.dtype) -> Term:
    """`n`ormalized, `f` with drop-path's factors as well, or `p`lain and strided."""
    if kind == "p":
        return Term(strided(channels, dtype))
    factors = torch.tensor([0.0, 1.25, 1.25], device=DEVICE) if kind == "f" else None
    return Term(random(SIZE.pixels, channels, dtype=dtype) + 0.5, normalization(channels), factors)


def exact(value: Term) -> tuple[Tensor, Tensor]:
    """The term in float64, and what its batch norm normalized."""
    x = value.rows.double()
    normalized = x
    if value.normalization is not None:
        norm = value.normalization
        normalized = (x - norm.mean) * norm.rstd
        x = normalized * norm.weight + norm.bias
    return x * scale(value), normalized


def scale(value: Term) -> Tensor | float:
    if value.factors is None:
        return 1.0
    return value.factors.double().repeat_interleave(SIZE.height * SIZE.width)[:, None]


def assert_close(value: Tensor, reference: Tensor, dtype: torch.dtype, roundings: float = 1.0) -> None:
    """A result rounded once, to the map's dtype, has half a unit in its last place of error, relative to itself."""
    assert value.shape == reference.shape
    unit = torch.finfo(dtype).eps if dtype is torch.bfloat16 else 2e-6
    allowed = 0.51 * unit * roundings * reference.abs() + 2e-6 * reference.abs().max().clamp_min(1.0)
    if dtype is torch.float32:
        allowed = 2e-6 * roundings * reference.abs().max().clamp_min(1.0).expand_as(reference)
    assert ((value.double() - reference).abs() <= allowed).all(), (value.double() - reference).abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("kinds", "channels", "activation", "stored"),
    [
        ("nn", 48, 2, True),
        ("ff", 5, 1, True),
        ("np", 24, 3, True),
        ("pf", 96, 2, True),
        ("pp", 16, 0, True),
        ("n", 192, 2, False),
        ("n", 16, 0, True),
    ],
)
def test_a_state_is_the_sum_of_its_terms(
    kinds: str, channels: int, activation: int, stored: bool, dtype: torch.dtype
) -> None:
    terms = [term(kind, channels, dtype) for kind in kinds]
    wide = random(SIZE.pixels, 2 * channels, dtype=dtype)
    before = wide.clone()
    out = wide[:, channels:] if stored else None
    active = nodes.forward(terms, SIZE, out, activation)
    total = sum(exact(each)[0] for each in terms)
    assert isinstance(total, Tensor)
    assert torch.equal(wide[:, :channels], before[:, :channels])
    if out is not None:
        assert_close(out, total, dtype)
        total = out.double()
    if activation:
        assert_close(active, MODULES[activation](total), dtype)
    else:
        assert active is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("kinds", "channels", "activation", "whole", "direct", "active"),
    [
        ("nn", 48, 2, True, 0, 3),
        ("nn", 192, 2, False, 1, 1),
        ("ff", 16, 1, True, 1, 2),
        ("fp", 24, 3, True, 0, 1),
        ("pn", 96, 2, True, 2, 0),
        ("pp", 5, 2, True, 0, 1),
        ("n", 16, 2, False, 1, 4),  # an input: its value is batch norm itself
        ("n", 5, 3, False, 1, 0),
    ],
)
def test_a_state_s_gradient_is_the_sum_over_its_readers(
    kinds: str, channels: int, activation: int, whole: bool, direct: int, active: int, dtype: torch.dtype
) -> None:
    terms = [term(kind, channels, dtype) for kind in kinds]
    value = strided(channels, dtype) if len(terms) == 2 else None
    part = strided(channels, dtype) if whole else None
    directs = [random(SIZE.pixels, channels, dtype=dtype) for _ in range(direct)]
    actives = [random(SIZE.pixels, channels, dtype=dtype) for _ in range(active)]
    grads, partials = nodes.backward(terms, SIZE, part, directs, actives, value, activation)

    total = sum((g.double() for g in [*directs, *([] if part is None else [part])]), torch.zeros(1, device=DEVICE))
    if actives:
        state = (exact(terms[0])[0] if value is None else value.double()).requires_grad_()
        MODULES[activation](state).backward(sum(g.double() for g in actives))
        assert state.grad is not None
        total = total + state.grad
    normed = [k for k, each in enumerate(terms) if each.normalization is not None]
    assert len(grads) == len(terms)
    for each, grad in zip(terms, grads):
        assert grad.is_contiguous()
        assert_close(grad, total * scale(each), dtype)
    if not normed:
        assert partials is None
        return
    sums = finish_backward(partials.view(len(partials), 2, -1)).view(len(normed), 2, channels)
    for k, both in zip(normed, sums):
        grad = grads[k].double()
        assert_close(both, torch.stack([grad.sum(0), (grad * exact(terms[k])[1]).sum(0)]), torch.float32, 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize(("channels", "stride"), [(5, 1), (48, 2), (96, 1), (16, 2)])
def test_pooling(channels: int, stride: int, mean: bool, dtype: torch.dtype) -> None:
    x = strided(channels, dtype).relu()  # zeros are equal: the first one of a window is its largest
    reference = as_map(x.double().contiguous(), SIZE).requires_grad_()
    module = nn.AvgPool2d(3, stride, 1, count_include_pad=False) if mean else nn.MaxPool2d(3, stride, 1)
    expected = module(reference)
    grad = torch.randn_like(expected)
    grad = grad.to(dtype)
    expected.backward(grad.double())
    assert reference.grad is not None
    grad_rows = rows(grad).contiguous()
    if mean:
        out = pooling.average(x, SIZE, 3, stride)
        x_grad = pooling.average_backward(grad_rows, SIZE, 3, stride)
    else:
        out, taps = pooling.maximum(x, SIZE, 3, stride)
        x_grad = pooling.maximum_backward(grad_rows, taps, SIZE, 3, stride)
    assert_close(out, rows(expected.detach()), dtype)
    assert_close(x_grad, rows(reference.grad), dtype)


def test_a_map_beyond_32_bit_indices_is_refused() -> None:
    rows_ = torch.empty(1, 8, device=DEVICE)
    size = Size(2**20, 64, 32)
    for refused in (
        lambda: nodes.forward([Term(rows_)], size),
        lambda: nodes.backward([Term(rows_)], size, direct=[rows_]),
        lambda: pooling.average(rows_, size, 3, 1),
    ):
        with pytest.raises(ValueError, match="2\\^31"):
            refused()
