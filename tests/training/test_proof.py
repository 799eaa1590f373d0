"""Fast ways are taken only where they are proven: wrong numbers, crashes and hangs lead to the next way, in words."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import NET
from torch import nn

from gaeanet.config.experiment import Hyperparameters
from gaeanet.models.build import build_network
from gaeanet.runtime.processes import Processes
from gaeanet.training import acceleration, proof, recorded, trial
from gaeanet.training.compilation import compile_shard
from gaeanet.training.proof import Doubts, doubts
from gaeanet.training.recorded import Recorder

CPU = torch.device("cpu")
HP = Hyperparameters(**{**NET, "do_SE": True, "auxiliary": True, "drop_path_prob": 0.2, "activation": "swish"})


def off_by(factor: float) -> Callable[[nn.Module], None]:
    """A `fuse` whose network has logits that are off by so much."""

    def fuse(network: nn.Module) -> None:
        network.classifier.register_forward_hook(lambda module, inputs, output: output * factor)

    return fuse


def test_right_kernels_are_not_doubted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "fuse", off_by(1.0 + 1e-4))
    assert trial.kernels_doubt(HP, CPU, torch.bfloat16, count=8) is None


@pytest.mark.parametrize("factor", [1.1, float("nan")])
def test_wrong_numbers_are_doubted(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    monkeypatch.setattr(trial, "fuse", off_by(factor))
    doubt = trial.kernels_doubt(HP, CPU, torch.bfloat16, count=8)
    assert doubt is not None
    assert "from float32, PyTorch's" in doubt


@pytest.fixture
def tape(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Callable[[], None]], None]], None]:
    """Lets a CPU replay steps in the way that is given."""

    def use(replay: Callable[[Callable[[], None]], None]) -> None:
        monkeypatch.setattr(recorded, "record", lambda work, pool: lambda: replay(work))
        monkeypatch.setattr(recorded, "beside", nullcontext)
        monkeypatch.setattr(torch.random, "fork_rng", lambda devices: nullcontext())
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
        monkeypatch.setattr(Recorder, "_wait", lambda self: None)

    return use


def test_replayed_steps_that_move_as_launched_ones_are_not_doubted(tape: Callable[..., None]) -> None:
    hp = Hyperparameters(**{**NET, "activation": "swish"})  # nothing is drawn
    tape(lambda work: work())
    assert trial.graph_doubt(hp, "fp32", CPU, fused=False) is None


@pytest.mark.parametrize("repeats", [0, 2])
def test_replayed_steps_that_move_otherwise_are_doubted(tape: Callable[..., None], repeats: int) -> None:
    def replay(work: Callable[[], None]) -> None:
        for _ in range(repeats):
            work()

    tape(replay)
    doubt = trial.graph_doubt(HP, "fp32", CPU, fused=False)
    assert doubt is not None
    assert doubt.startswith("moves weights")


def test_a_trial_that_has_no_memory_has_no_verdict(tape: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    def record(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    tape(lambda work: work())
    monkeypatch.setattr(recorded, "record", record)
    with pytest.raises(recorded.CannotRecord):
        trial.graph_doubt(HP, "fp32", CPU, fused=False)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """A GPU that the kernels suit, and a cache of its own; the requests of trials, which find nothing wrong."""
    requests: list[dict[str, Any]] = []

    def tried(request: dict[str, Any]) -> Doubts:
        requests.append(json.loads(json.dumps(request)))
        return Doubts(None, None)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(proof, "obstacle", lambda device, dtype: None if dtype is torch.bfloat16 else "fp32")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(proof, "_tried", tried)
    return requests


def test_a_verdict_is_remembered_for_the_network_and_the_card(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        assert doubts(HP, "bf16", CPU, 4) == Doubts(None, None)
    assert len(asked) == 1
    doubts(HP, "bf16", CPU, 8)
    doubts(HP.model_copy(update={"layers": 4}), "bf16", CPU, 4)
    assert len(asked) == 3
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "another card")
    doubts(HP, "bf16", CPU, 4)
    assert len(asked) == 4
    assert doubts(HP, "fp32", CPU, 4) == Doubts("fp32", None)
    assert not asked[-1]["kernels"]
    assert asked[-1]["graph"]
    assert doubts(HP, "fp32", CPU, 4, "no") == Doubts("fp32", "no")
    assert len(asked) == 5, "nothing to prove, no trial"


def test_a_found_fault_is_remembered_and_a_failure_is_not(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(request: dict[str, Any]) -> Doubts:
        raise proof.TrialFailed("the trial failed: out of memory")

    monkeypatch.setattr(proof, "_tried", fails)
    assert doubts(HP, "bf16", CPU, 4) == Doubts(*["the trial failed: out of memory"] * 2)
    monkeypatch.setattr(proof, "_tried", lambda request: Doubts("wrong", None))
    assert doubts(HP, "bf16", CPU, 4) == Doubts("wrong", None)
    monkeypatch.setattr(proof, "_tried", fails)
    assert doubts(HP, "bf16", CPU, 4) == Doubts("wrong", None)
    (file,) = (tmp_path / "cache").rglob("proof-*.json")
    file.write_bytes(b"{")  # damaged
    assert doubts(HP, "bf16", CPU, 4) == Doubts(*["the trial failed: out of memory"] * 2)


def request(**changes: Any) -> dict[str, Any]:
    values = {"hyperparameters": HP.spelled_out(), "precision": "fp32", "device": "cpu", "micro_batch": 4}
    return {**values, "kernels": True, "graph": True, **changes}


@pytest.mark.slow
def test_a_trial_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU records nothing, and says so; the run's place among its processes is not the trial's."""
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    found = proof._tried(request(kernels=False))
    assert found.kernels is None
    assert found.graph


@pytest.mark.slow
def test_trials_that_crash_or_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(proof.TrialFailed, match=r"^the trial failed: RuntimeError: .* device"):
        proof._tried(request(device="nowhere"))
    monkeypatch.setattr(proof, "SECONDS", 0.05)
    with pytest.raises(proof.TrialFailed, match=r"^the trial took more than 0\.05 s$"):
        proof._tried(request())


@pytest.mark.parametrize(
    ("found", "text", "recorded", "fused"),
    [
        (Doubts(None, None), "own kernels, each step one CUDA graph", True, True),
        (Doubts("fp32", None), "PyTorch's kernels (not our own: fp32), each step one CUDA graph", True, False),
        (
            Doubts("wrong", "moves"),
            "PyTorch's kernels (not our own: wrong), launched one by one (a CUDA graph moves)",
            False,
            False,
        ),
    ],
)
def test_auto_takes_the_fastest_way_that_is_proven(
    monkeypatch: pytest.MonkeyPatch, found: Doubts, text: str, recorded: bool, fused: bool
) -> None:
    calls = []
    monkeypatch.setattr(acceleration, "doubts", lambda *arguments: found)
    monkeypatch.setattr(acceleration, "fuse", calls.append)
    processes = Processes()
    processes.device = torch.device("cuda")
    way = acceleration.choose(HP.model_copy(update={"compile": "auto"}), build_network(HP), "bf16", processes)
    assert (way.text, way.recorded, bool(calls)) == (text, recorded, fused)


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_processes_share_the_compilation_of_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each variant is one process's, and there is one for every operation of the network's cells."""
    from triton.runtime.jit import JITFunction

    compiled: list[str] = []

    def warmup(self: Any, *arguments: Any, grid: Any, **constants: Any) -> Any:
        compiled.append(self.__name__)
        return SimpleNamespace(hash=f"{self.__name__} {sorted((k, repr(v)) for k, v in constants.items())}")

    monkeypatch.setattr(JITFunction, "warmup", warmup)
    assert compile_shard(HP, 90, 0, 1) > 30
    whole = Counter(compiled)
    assert {"convolve", "weight_gradient_kernel", "forward_kernel", "backward_kernel"} <= whole.keys()
    compiled.clear()
    parts = [compile_shard(HP, 90, shard, 3) for shard in range(3)]
    assert Counter(compiled) == whole
    assert min(parts) > 0
