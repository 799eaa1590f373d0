"""Replaying a step's kernels: what it leaves as it was, when it is refused, and, on a GPU, that no number changes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from steps import Trainee
from tiny import NET, Result
from torch import Tensor, nn

from gaeanet.config.experiment import Experiment, Hyperparameters
from gaeanet.data.sources.synthetic import SyntheticSource
from gaeanet.errors import RequestError
from gaeanet.models.build import build_network
from gaeanet.runtime.processes import Processes
from gaeanet.training.cuda_graph import Graphed, check_capturable

Run = Callable[..., Result]
Write = Callable[..., Path]

BATCH, SIZE = 8, 32


def processes(device: str, world_size: int = 1) -> Processes:
    found = Processes()
    found.device, found.world_size = torch.device(device), world_size
    return found


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Stands in for a GPU's recorder: runs forward and backward as it does, and notes what is replayed."""
    replayed: list[tuple[int, ...]] = []

    def record(passes: nn.Module, sample: tuple[Tensor, ...], **options: Any) -> Callable[[Tensor], Any]:
        assert options == {"allow_unused_input": True}
        assert not torch.is_autocast_cache_enabled()
        warnings.warn("the stream does not match", stacklevel=1)
        for _ in range(3):
            torch.autograd.grad(passes(*sample).sum(), list(passes.parameters()), allow_unused=True)

        def replay(images: Tensor) -> Any:
            replayed.append(tuple(images.shape))
            return passes(images)

        return replay

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    return replayed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.filterwarnings("error")
def test_recording_moves_neither_statistics_nor_draws_nor_gradients(
    recorded: list[tuple[int, ...]], dtype: torch.dtype
) -> None:
    network = build_network(Hyperparameters(**NET, drop_path_prob=0.3)).train()
    network.set_drop_path_rate(0.3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    draws = torch.get_rng_state()
    shared = Graphed(network, BATCH, SIZE, dtype)
    assert torch.equal(torch.get_rng_state(), draws)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    for batch, size in ((BATCH, SIZE), (BATCH - 1, SIZE), (BATCH, SIZE + 1)):
        images = torch.randn(batch, 3, size, size)
        shared(images)
        assert recorded == [(BATCH, 3, SIZE, SIZE)]  # all others take the usual way


@pytest.mark.parametrize(
    ("changes", "where", "words"),
    [
        ({}, ("cpu",), "is for GPUs, this runs on cpu"),
        ({}, ("cuda", 2), "is for one process, these are 2"),
        ({"max_batch_per_slot": 4}, ("cuda",), "needs one micro-batch a step, max_batch_per_slot is 4"),
        ({"train_image_size": [32, 64], "image_size": 64}, ("cuda",), "is for images of one size, these grow from 32"),
    ],
)
def test_steps_that_are_not_alike_are_refused(changes: dict[str, Any], where: tuple[Any, ...], words: str) -> None:
    hp = Hyperparameters(**{**NET, "global_batch_size": BATCH, **changes, "compile": "graphs"})
    with pytest.raises(RequestError, match=rf"hyperparameters.compile: graphs {words}.*: use auto or false$"):
        check_capturable(hp, processes(*where))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_is_one_line(gaeanet: Run, experiment_file: Write, t3: Path) -> None:
    result = gaeanet("train", experiment_file(compile="graphs"), "--data", t3)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "hyperparameters.compile: graphs is for GPUs" in result.err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_replayed_steps_are_those_that_are_launched(precision: str) -> None:
    source, states = SyntheticSource(3, 10, SIZE, seed=9), {}
    for way in (False, "graphs"):
        values = {**NET, "global_batch_size": BATCH, "image_size": SIZE, "precision": precision, "compile": way}
        hp = Hyperparameters(**values, optimizer="muon", drop_path_prob=0.2, auxiliary=True, ema_decay=0.9)
        states[way] = Trainee(Experiment(hyperparameters=hp), source, processes("cuda"))
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        images = torch.randint(0, 256, (BATCH, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 3, (BATCH,), generator=generator)
        for state in states.values():
            torch.cuda.manual_seed(step)
            state.step(images, labels, 0.01, 0.2)
    launched, replayed = (state.network.state_dict() for state in states.values())
    for name, value in launched.items():
        assert torch.allclose(replayed[name], value, rtol=1e-2, atol=1e-3), name
