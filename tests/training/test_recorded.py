"""Replayed steps: what they leave as it was, when they are refused, and that no number changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from steps import Trainee
from tape import Tape
from tiny import NET, Result
from torch import Tensor

from gaeanet.config.experiment import Experiment, Hyperparameters
from gaeanet.errors import RequestError
from gaeanet.models.build import build_network
from gaeanet.optim.rates import Rates, Row
from gaeanet.runtime.processes import Processes
from gaeanet.training import acceleration, recorded
from gaeanet.training.acceleration import Way, choose
from gaeanet.training.proof import Doubts
from gaeanet.training.recorded import CannotRecord, Recorder, Stepper
from gaeanet.training.step import step

Run = Callable[..., Result]
Write = Callable[..., Path]

BATCH, SIZE = 8, 32


def processes(device: str, world_size: int = 1) -> Processes:
    found = Processes()
    found.device, found.world_size = torch.device(device), world_size
    return found


def trainee(device: str = "cpu", **values: Any) -> Trainee:
    settings = {**NET, "global_batch_size": BATCH, "image_size": SIZE, "compile": False, **values}
    hp = Hyperparameters(**settings)
    return Trainee(Experiment(hyperparameters=hp), processes=processes(device), flat=True)


def batch(seed: int, size: int = SIZE) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (BATCH, 3, size, size), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 3, (BATCH,), generator=generator)


def rates_of(update: int) -> Row:
    return Row(0.05 / (1 + update), 0.2, 0.3)


VARIANTS: list[dict[str, Any]] = [
    {"do_SE": True, "drop_path_prob": 0.3, "auxiliary": True},
    {"optimizer": "muon", "momentum": 0.8, "max_batch_per_slot": 3},
    {"mixup_alpha": 0.4, "cutmix_alpha": 1.0, "ema_decay": 0.0},
    {"freeze": "stem", "layer_decay": 0.7, "decay_norms_and_biases": False, "drop_prob": 0.2},
]


def both_ways(device: str, values: dict[str, Any], steps: list[tuple[int, int]]) -> tuple[Trainee, Trainee]:
    """A learner whose steps were launched and one whose steps were replayed, on the same (seed, size) batches."""
    launched, replayed = trainee(device, **values), trainee(device, **values)
    rates = [Rates(rates_of, 3, one.learner.device) for one in (launched, replayed)]
    recorder = Recorder(replayed.learner, replayed.objective, rates[1])
    for number, (seed, size) in enumerate(steps):
        if number % 3 == 0:
            for window in rates:
                window.move_to(number)
        images, labels = batch(seed, size)
        for one in (launched, replayed):
            torch.manual_seed(seed)
            if one is launched:
                shard = one.objective.prepare(one.learner, images, labels)
                step(one.learner, shard, one.objective, rates[0].at(one.learner.updates))
            else:
                recorder.step(images, labels)
    return launched, replayed


@pytest.mark.parametrize("values", VARIANTS)
def test_replayed_steps_are_those_that_are_launched(tape: Tape, values: dict[str, Any]) -> None:
    """A recording reads and writes nothing but tensors that stay where they are, and its warm-up leaves no trace."""
    sizes = [(0, SIZE), (1, SIZE), (2, SIZE + 8), (3, SIZE), (4, SIZE + 8)]
    launched, replayed = both_ways("cpu", values, sizes)
    assert (tape.recorded, tape.replayed) == (2, 5)
    expected, found = launched.learner.tensors(), replayed.learner.tensors()
    for group, tensors in expected.items():
        for name, tensor in tensors.items():
            assert torch.equal(found[group][name], tensor), f"{group} {name}"
    assert torch.equal(launched.learner.counts, replayed.learner.counts)
    assert launched.learner.batches == replayed.learner.batches == 5


def test_what_cannot_be_recorded_leaves_all_as_it_was(tape: Tape, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(recorded, "record", fail)
    one = trainee(drop_path_prob=0.3)
    before = {group: {k: v.clone() for k, v in t.items()} for group, t in one.learner.tensors().items()}
    draws = torch.get_rng_state()
    recorder = Recorder(one.learner, one.objective, Rates(rates_of, 3, one.learner.device))
    with pytest.raises(CannotRecord, match="out of memory"):
        recorder.step(*batch(0))
    assert torch.equal(torch.get_rng_state(), draws)
    assert (one.learner.batches, one.learner.counts.tolist()) == (0, [0, 0, 0])
    for group, tensors in one.learner.tensors().items():
        assert all(torch.equal(value, before[group][name]) for name, value in tensors.items())


def test_what_cannot_be_recorded_is_launched(tape: Tape, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    launched, replayed = trainee(), trainee()
    replayed.learner.way = Way("each step one CUDA graph", recorded=True)
    said = []
    for one in (launched, replayed):
        stepper = Stepper(one.learner, one.objective, Rates(rates_of, 3, one.learner.device))
        monkeypatch.setattr(recorded, "record", fail)
        for seed in range(3):
            said += stepper.step(*batch(seed))
    assert len(said) == 1
    assert said[0].startswith("steps cannot be recorded (operation not permitted when stream is capturing): ")
    assert "launched one by one instead" in replayed.learner.way.text
    for name, value in launched.network.state_dict().items():
        assert torch.equal(replayed.network.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("changes", "where", "words"),
    [
        ({}, ("cpu",), "is for GPUs, this runs on cpu"),
        ({"precision": "fp16"}, ("cuda",), "cannot hold the loss scale of fp16"),
        ({"sync_batch_norm": True}, ("cuda", 2), "cannot hold synchronised batch norm"),
    ],
)
def test_steps_that_cannot_be_recorded(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], where: tuple[Any, ...], words: str
) -> None:
    monkeypatch.setattr(acceleration, "doubts", lambda *arguments: Doubts("why not", arguments[-1]))
    values = {**NET, "global_batch_size": BATCH, **changes}
    precision = str(changes.get("precision", "bf16"))
    asked = Hyperparameters(**{**values, "compile": "graphs"})
    network = build_network(asked)
    with pytest.raises(RequestError, match=rf"hyperparameters.compile: graphs {words}: use auto or false$"):
        choose(asked, network, precision, processes(*where))
    monkeypatch.setattr(Processes, "from_first", lambda self, value: value)
    way = choose(Hyperparameters(**{**values, "compile": "auto"}), network, precision, processes(*where))
    assert not way.recorded
    if where[0] == "cuda":
        assert way.text == f"PyTorch's kernels (not our own: why not), launched one by one (a CUDA graph {words})"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_is_one_line(gaeanet: Run, experiment_file: Write, t3: Path) -> None:
    result = gaeanet("train", experiment_file(compile="graphs"), "--data", t3)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "hyperparameters.compile: graphs is for GPUs" in result.err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("values", VARIANTS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_replayed_steps_are_those_that_are_launched(precision: str, values: dict[str, Any]) -> None:
    sizes = [(0, SIZE), (1, SIZE), (2, SIZE + 8), (3, SIZE), (4, SIZE + 8)]
    launched, replayed = both_ways("cuda", {**values, "precision": precision}, sizes)
    expected, found = launched.network.state_dict(), replayed.network.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-2, atol=1e-3, msg=name)
    assert torch.equal(launched.learner.counts, replayed.learner.counts)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("way", ["auto", "graphs"])
def test_law_2_on_a_gpu_a_resumed_learner_equals_one_that_never_stopped(way: str) -> None:
    values = {"compile": way, "precision": "bf16", "do_SE": True, "activation": "swish", "drop_path_prob": 0.2}

    def steps(one: Trainee, numbers: range) -> None:
        stepper = Stepper(one.learner, one.objective, Rates(rates_of, 8, one.learner.device))
        for number in numbers:
            torch.cuda.manual_seed(number)
            stepper.step(*batch(number))

    straight, broken, resumed = (trainee("cuda", **values) for _ in range(3))
    assert straight.learner.way.recorded, straight.learner.way.text
    steps(straight, range(6))
    steps(broken, range(3))
    saved = {group: {k: v.cpu() for k, v in tensors.items()} for group, tensors in broken.learner.tensors().items()}
    resumed.learner.load(saved)
    resumed.learner.counts.copy_(broken.learner.counts)
    steps(resumed, range(3, 6))
    for group, tensors in straight.learner.tensors().items():
        for name, tensor in tensors.items():
            assert torch.equal(resumed.learner.tensors()[group][name], tensor), f"{group} {name}"
