"""Fused cells and networks against plain ones in float64. Runs in Triton's interpreter, or on a GPU under autocast.

Plain PyTorch in the same precision is the measure: a fused network may be 1.5 times as far from float64 as that is.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from triton_cases import DEVICE, INTERPRETED, needs_triton_to_run

cell_function = pytest.importorskip("gaeanet.models.cell_function")  # needs Triton
from gaeanet.cells.genotype import Edge, Genotype  # noqa: E402
from gaeanet.cells.zoo import ZOO  # noqa: E402
from gaeanet.models.fused import FusedCell, fuse, unfuse  # noqa: E402
from gaeanet.models.network import Cell, CellNetwork  # noqa: E402
from gaeanet.models.operations import ACTIVATIONS, SqueezeExcite  # noqa: E402

pytestmark = needs_triton_to_run
NORMAL = ("skip_connect 1", "sep_conv_3x3 0", "dil_conv_5x5 2", "avg_pool_3x3 0", "max_pool_3x3 3", "skip_connect 2")
REDUCE = ("max_pool_3x3 0", "skip_connect 1", "conv_7x1_1x7 0", "dil_conv_3x3 2")
SMALL = ("dil_conv_3x3 0", "skip_connect 1")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The fused functions that are called within."""
    calls: list[str] = []
    for function in (cell_function.CellFunction, cell_function.GatedFunction):

        def counting(*arguments: Any, apply: Any = function.apply, name: str = function.__name__) -> Any:
            calls.append(name)
            return apply(*arguments)

        monkeypatch.setattr(function, "apply", counting)
    yield calls


def edges(*texts: str) -> tuple[Edge, ...]:
    return tuple(Edge(text.split()[0], int(text.split()[1])) for text in texts)


def build_cell(
    texts: tuple[str, ...], concat: tuple[int, ...], activation: str, width: int = 8, **options: Any
) -> Cell:
    arguments = {"reduction": False, "after_reduction": False, "drop_path": False} | options
    cell = Cell(edges(*texts), concat, 12, 16, width, activation=ACTIVATIONS[activation], **arguments)
    return varied(cell)


def varied(module: nn.Module) -> Any:
    """The module in training, with batch norms that are not the identity."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight, 1.0, 0.3)
            nn.init.normal_(norm.bias, 0.0, 0.3)
    return module.to(DEVICE).train()


def step(module: nn.Module, inputs: list[Tensor], call: Callable[..., Any], seed: int = 1) -> dict[str, Tensor]:
    """Outputs, gradients and buffers after a training step on detached inputs."""
    inputs = [x.clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs]
    torch.manual_seed(seed)
    with torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda" and inputs[0].dtype is not torch.float64):
        outputs = call(module, *inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    torch.manual_seed(seed + 1)
    grads = [torch.randn(out.shape, device=DEVICE, dtype=torch.bfloat16).to(out.dtype) for out in outputs]
    torch.autograd.backward(outputs, grads)
    results = {f"output {k}": out.detach() for k, out in enumerate(outputs)}
    results |= {f"input {k}": x.grad for k, x in enumerate(inputs) if x.grad is not None}
    results |= {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return results | dict(module.named_buffers())


def assert_as_exact_as_pytorch(module: nn.Module, inputs: list[Tensor], call: Callable[..., Any]) -> None:
    exact, plain, fused = copy.deepcopy(module).double(), copy.deepcopy(module), copy.deepcopy(module)
    fuse(fused)
    reference = step(exact, [x.double() for x in inputs], call)
    results = [step(network, inputs, call) for network in (plain, fused)]
    assert results[1].keys() == reference.keys()
    for (name, parameter), (_, other) in zip(fused.named_parameters(), plain.named_parameters()):
        if other.grad is not None:
            assert parameter.grad is not None, name
            assert parameter.grad.stride() == parameter.stride(), name

    def errors(result: dict[str, Tensor]) -> dict[str, float]:
        return {
            name: float((result[name].double() - exact).norm() / exact.double().norm().clamp_min(1e-3))
            for name, exact in reference.items()
        }

    of_plain, of_fused = (errors(result) for result in results)
    rounding = 1e-6 if INTERPRETED else 1e-3
    worst = max(of_fused, key=lambda name: of_fused[name])
    assert of_fused[worst] < 4 * max(of_plain.values()) + rounding, (worst, of_fused[worst], of_plain[worst])
    squares = [sum(error**2 for error in each.values()) ** 0.5 for each in (of_plain, of_fused)]
    # One sample's rounding is luck; the sum over all tensors is less so. float32's is that of a few dozen roundings.
    assert squares[1] < (2.5 if INTERPRETED else 1.5) * squares[0] + rounding, squares


def channels_last(*shape: int) -> Tensor:
    return torch.randn(*shape).to(DEVICE).contiguous(memory_format=torch.channels_last)


def run_cell(rate: float = 0.0) -> Callable[..., Tensor]:
    def call(cell: Cell, older: Tensor, newer: Tensor) -> Tensor:
        out: Tensor = cell(older, newer, torch.tensor(rate, device=DEVICE))
        return out

    return call


@pytest.mark.parametrize(
    ("texts", "concat", "activation", "options"),
    [
        (NORMAL, (2, 4), "swish", {"drop_path": True}),
        (REDUCE, (3, 2), "relu", {"reduction": True, "after_reduction": True}),
        (("sep_conv_5x5 1", "skip_connect 1"), (2,), "hswish", {"width": 5}),  # nobody reads the older input
    ],
)
def test_a_cell(
    texts: tuple[str, ...], concat: tuple[int, ...], activation: str, options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    cell = build_cell(texts, concat, activation, **options)
    older = channels_last(3, 12, 9, 13) if options.get("after_reduction") else channels_last(3, 12, 5, 7)
    with counted(monkeypatch) as calls:
        assert_as_exact_as_pytorch(cell, [older, channels_last(3, 16, 5, 7)], run_cell(0.4))
    assert calls == ["CellFunction"]


@pytest.mark.slow
@pytest.mark.parametrize("reduction", [False, True])
@pytest.mark.parametrize("name", ZOO)
def test_published_cells(name: str, reduction: bool) -> None:
    genotype = ZOO[name].genotype
    chosen, concat = (
        (genotype.reduce, genotype.reduce_concat) if reduction else (genotype.normal, genotype.normal_concat)
    )
    cell = build_cell(tuple(f"{e.operation} {e.input}" for e in chosen), concat, "swish", reduction=reduction)
    assert_as_exact_as_pytorch(cell, [channels_last(2, 12, 5, 5), channels_last(2, 16, 5, 5)], run_cell())


def small_network(**options: Any) -> CellNetwork:
    genotype = Genotype(edges(*SMALL), (2,), edges(*SMALL), (2,))
    arguments = {"genotype": genotype, "init_channels": 8, "layers": 1, "num_classes": 5} | options
    network: CellNetwork = varied(CellNetwork(**arguments))
    return network.to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"layers": 3, "activation": "swish", "squeeze_excite": True, "drop_path_rate": 0.3, "auxiliary": True}, 36),
        ({"stem": "cifar"}, 5),  # both inputs of its first cell are the same map
    ],
)
def test_a_network(options: dict[str, Any], size: int) -> None:
    assert_as_exact_as_pytorch(small_network(**options), [channels_last(2, 3, size, size)], lambda net, x: net(x))


def test_a_gate() -> None:
    module = varied(SqueezeExcite(24, 5, nn.SiLU))
    assert_as_exact_as_pytorch(module, [channels_last(2, 24, 5, 7) + 0.3], lambda gate, x: gate(x))


def test_runs_are_bit_exact_with_checkpointing_or_without() -> None:
    network = small_network(squeeze_excite=True, drop_path_rate=0.3)
    fuse(network)
    saving = copy.deepcopy(network)
    saving.set_grad_checkpointing(True)
    x = [channels_last(2, 3, 32, 32)]
    results = [step(net, x, lambda net, x: net(x)) for net in (network, saving)]
    for name, value in results[0].items():
        if "running" not in name and "tracked" not in name:  # recomputed cells average twice, as plain ones do
            assert torch.equal(value, results[1][name]), name


def test_a_cell_keeps_its_names() -> None:
    cell = build_cell(NORMAL, (2, 3), "relu")
    names = list(cell.state_dict())
    fuse(cell)
    assert type(copy.deepcopy(cell)) is FusedCell
    assert list(cell.state_dict()) == names
    unfuse(cell)
    assert type(cell) is Cell


def test_some_gradients_alone_and_none_of_gradients() -> None:
    cell = build_cell(("skip_connect 1", "skip_connect 0"), (2,), "relu")
    fuse(cell)
    newer = channels_last(2, 16, 4, 4).requires_grad_()
    weight = next(cell.preprocess0.parameters())
    with torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda"):
        out = run_cell()(cell, channels_last(2, 12, 4, 4), newer)
        (grad,) = torch.autograd.grad(out.float().square().sum(), weight, retain_graph=True)
        assert grad.shape == weight.shape
        (grad,) = torch.autograd.grad(out.float().square().sum(), newer, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.float().sum().backward()


def frozen(cell: Cell) -> None:
    next(cell.parameters()).requires_grad_(False)


def evaluated(cell: Cell) -> None:
    cell.eval()


def norm_evaluated(cell: Cell) -> None:
    next(m for m in cell.modules() if isinstance(m, nn.BatchNorm2d)).eval()


def norm_without_statistics(cell: Cell) -> None:
    cell.preprocess1.op[2] = nn.BatchNorm2d(8, track_running_stats=False).to(DEVICE)  # type: ignore[operator, index]


def norm_synchronised(cell: Cell) -> None:
    cell.preprocess1.op[2] = nn.SyncBatchNorm(8).to(DEVICE).eval()  # type: ignore[operator, index]


def other_precision(cell: Cell) -> None:
    cell.double()


@pytest.mark.parametrize(
    "change", [frozen, evaluated, norm_evaluated, norm_without_statistics, norm_synchronised, other_precision]
)
def test_what_the_kernels_do_not_support_is_computed_as_before(
    change: Callable[[Cell], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = build_cell(NORMAL[:4], (2, 3), "relu")
    change(cell)
    fuse(cell)
    dtype = next(cell.parameters()).dtype
    with counted(monkeypatch) as calls:
        out = run_cell()(cell, channels_last(2, 12, 4, 4).to(dtype), channels_last(2, 16, 4, 4).to(dtype))
    assert out.shape == (2, 16, 4, 4)
    assert calls == []


def test_a_batch_of_one_value_a_channel_is_refused_as_before() -> None:
    cell = build_cell(NORMAL[:4], (2, 3), "relu")
    fuse(cell)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        run_cell()(cell, channels_last(1, 12, 1, 1), channels_last(1, 16, 1, 1))


@pytest.mark.filterwarnings("ignore")  # that it is deprecated
def test_a_traced_cell_is_a_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = build_cell(NORMAL[:4], (2, 3), "relu")
    fuse(cell)
    inputs = channels_last(2, 12, 4, 4), channels_last(2, 16, 4, 4), torch.tensor(0.0, device=DEVICE)
    with counted(monkeypatch) as calls:
        torch.jit.trace(cell, inputs, check_trace=False)
    assert calls == []
