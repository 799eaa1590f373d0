"""Export and compilation: whole graphs, and none made anew when the drop-path rate moves."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from gaeanet.models.network import Cell, CellNetwork


def network(**options: object) -> CellNetwork:
    torch.manual_seed(0)
    defaults = {"num_classes": 3, "init_channels": 4, "layers": 3, "activation": "swish", "squeeze_excite": True}
    return CellNetwork(**{**defaults, **options})  # type: ignore[arg-type]


IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("training", [False, True])
def test_the_whole_network_is_one_graph_for_export(training: bool) -> None:
    built = network(drop_path_rate=0.2, auxiliary=True).train(training)
    program = torch.export.export(built, (IMAGES,))
    if not training:
        torch.testing.assert_close(program.module()(IMAGES), built(IMAGES))


def test_an_exported_network_takes_any_batch() -> None:
    built = network().eval()
    program = torch.export.export(built, (IMAGES,), dynamic_shapes={"x": {0: torch.export.Dim("batch", min=1, max=64)}})
    for batch in (1, 3, 7):
        images = torch.randn(batch, 3, 64, 64)
        torch.testing.assert_close(program.module()(images), built(images))


def test_compiled_training_makes_one_graph_for_a_whole_drop_path_ramp() -> None:
    torch._dynamo.reset()
    built = network(drop_path_rate=0.3, auxiliary=True).train()
    counter = CompileCounter()
    compiled = torch.compile(built, backend=counter, fullgraph=True)
    for epoch in range(12):
        built.set_drop_path_rate(0.3 * epoch / 12)
        logits, tower = compiled(IMAGES)
        (logits.sum() + tower.sum()).backward()
    assert counter.frame_count == 1
    built.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(IMAGES), network_like(built)(IMAGES))
    assert counter.frame_count == 2


def network_like(built: CellNetwork) -> CellNetwork:
    copy = network(drop_path_rate=0.3, auxiliary=True).eval()
    copy.load_state_dict(built.state_dict())
    return copy


def test_channels_last_changes_nothing_but_the_layout() -> None:
    plain, last = network().double(), network().double().to(memory_format=torch.channels_last)
    x = IMAGES.double()
    for training in (False, True):
        a = plain.train(training)(x)
        b = last.train(training)(x.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(a, b)
    plain(x).square().sum().backward()
    last(x.contiguous(memory_format=torch.channels_last)).square().sum().backward()
    for p, q in zip(plain.parameters(), last.parameters()):
        torch.testing.assert_close(p.grad, q.grad)


def rates_inside(wrapped: object, built: CellNetwork, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The rate that the cells see in each of four epochs."""
    seen: list[float] = []
    forward = Cell.forward

    def recording(self: Cell, older: torch.Tensor, newer: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        seen.append(float(rate))
        return forward(self, older, newer, rate)

    monkeypatch.setattr(Cell, "forward", recording)
    for epoch in range(4):
        built.set_drop_path_rate(0.3 * epoch / 4)
        wrapped(IMAGES)  # type: ignore[operator]
    return seen[:: len(built.cells)]


def test_field_report_4_the_same_rate_inside_plain_and_ddp(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        built = network(drop_path_rate=0.3).train()
        plain = rates_inside(built, built, patch)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with monkeypatch.context() as patch:
            built = network(drop_path_rate=0.3).train()
            ddp = rates_inside(torch.nn.parallel.DistributedDataParallel(built), built, patch)
    finally:
        torch.distributed.destroy_process_group()
    assert plain == ddp == pytest.approx([0, 0.075, 0.15, 0.225])


def test_field_report_4_the_same_rate_inside_a_compiled_network() -> None:
    """Seen from outside, since a compiled graph has no place to look in: the share of edges that were dropped."""
    torch._dynamo.reset()
    built = network(drop_path_rate=0.3, activation="relu", squeeze_excite=False).train()
    compiled = torch.compile(built, backend="aot_eager", fullgraph=True)
    for rate in (0.0, 0.15, 0.225):
        built.set_drop_path_rate(rate)
        torch.manual_seed(3)
        a = built(IMAGES)
        torch.manual_seed(3)
        b = compiled(IMAGES)
        torch.testing.assert_close(a, b)
