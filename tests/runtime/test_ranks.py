"""A process's ranks in its run, from what launchers set in the environment."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaeanet.errors import RequestError
from gaeanet.runtime import host
from gaeanet.runtime.ranks import Ranks, ranks, without_ranks
from gaeanet.runtime.slurm import cores_of_task, first_host, port_of, read_task

STEP = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_NTASKS": "5",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_STEP_NODELIST": "gpu[07-08],login1",
    "SLURM_CPUS_ON_NODE": "24",
}
"""What srun sets for the last task of the second of three nodes."""
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


def test_without_a_launcher_a_process_is_alone() -> None:
    assert ranks({}) == Ranks(0, 1, 0, 1, 0, None, supervised=False, restarted=False)


def test_torchrun_comes_before_slurm() -> None:
    expected = Ranks(1, 4, 1, 2, 1, "env://", supervised=True)
    assert ranks(TORCHRUN) == ranks({**STEP, **TORCHRUN}) == expected
    assert ranks({**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "1"}).restarted


def test_under_srun_the_ranks_are_the_tasks() -> None:
    init_method = f"tcp://gpu07:{port_of(4711, 0)}?rank=3&world_size=5"
    assert ranks(STEP) == Ranks(3, 5, 1, 2, 1, init_method, supervised=False)
    assert ranks({**STEP, "SLURM_RESTART_COUNT": "2"}).restarted
    elsewhere = {**STEP, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    assert ranks(elsewhere).init_method == "tcp://10.0.0.1:29500?rank=3&world_size=5"


@pytest.mark.parametrize(("visible", "gpu"), [("0,1,2,3", 1), ("0", 0), ("GPU-1f2e", 0)])
def test_a_task_that_sees_one_gpu_takes_that_one(visible: str, gpu: int) -> None:
    assert ranks({**STEP, "CUDA_VISIBLE_DEVICES": visible}).gpu == gpu


def test_a_batch_script_and_a_step_of_one_task_are_alone() -> None:
    batch = {name: value for name, value in STEP.items() if not name.startswith("SLURM_STEP")}
    assert ranks(batch) == Ranks()
    assert ranks({**STEP, "SLURM_STEP_NUM_TASKS": "1"}) == Ranks()
    assert ranks({**batch, "SLURM_RESTART_COUNT": "1"}) == Ranks(restarted=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"SLURM_PROCID": None}, "SLURM_PROCID is not set, though SLURM_STEP_NUM_TASKS is"),
        ({"SLURM_LOCALID": "x"}, "not the variables of a Slurm task: .*'SLURM_LOCALID': 'x'"),
        ({"SLURM_NODEID": "3"}, "not the variables of a Slurm task: .*'SLURM_NODEID': '3'"),
        ({"SLURM_STEP_NODELIST": ""}, "not the variables of a Slurm task"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE is 'many', where torchrun sets a whole number from 1"),
    ],
)
def test_what_no_launcher_writes_is_refused(change: dict[str, Any], message: str) -> None:
    environment = {name: value for name, value in {**STEP, **change}.items() if value is not None}
    with pytest.raises(RequestError, match=message):
        ranks(environment)


@pytest.mark.parametrize("environment", [STEP, TORCHRUN, {**STEP, **TORCHRUN, "SLURM_RESTART_COUNT": "1"}])
def test_a_process_that_is_to_be_alone_is(environment: dict[str, str]) -> None:
    kept = without_ranks({**environment, "PATH": "/bin"})
    assert ranks(kept) == Ranks()
    assert kept["PATH"] == "/bin"


def test_refused_ranks_are_one_line(gaeanet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    refused = gaeanet("train", "const")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "start with srun" in refused.err


@given(
    st.from_regex(r"[a-z]{1,6}-?", fullmatch=True),
    st.integers(0, 99),
    st.integers(1, 30),
    st.integers(1, 4),
    st.sampled_from(["", "-ib"]),
)
def test_the_first_host_of_a_compressed_list(prefix: str, first: int, count: int, width: int, suffix: str) -> None:
    names = [f"{prefix}{number:0{width}}{suffix}" for number in (first, first + count)]
    start, end = (f"{number:0{width}}" for number in (first, first + count))
    for text in (
        names[0],
        ",".join(names),
        f"{prefix}[{start}-{end}]{suffix}",
        f"{prefix}[{start},{end}]{suffix},x[1-2]",
    ):
        assert first_host(text) == names[0]
    assert first_host(f"rack[1-2]{prefix}[{start}-{end}]") == f"rack1{prefix}{start}"


@given(st.integers(1, 2**31), st.integers(0, 7), st.integers(0, 7))
def test_a_port_is_the_steps_own(job: int, step: int, other: int) -> None:
    assert 10_000 <= port_of(job, step) < 30_000
    neighbours = {port_of(job + k, s) for k in range(8) for s in (step, other)}
    assert len(neighbours) == 8 * len({step, other})


@pytest.mark.parametrize(
    ("environment", "cores"),
    [
        ({}, None),
        ({"SLURM_CPUS_PER_TASK": "6"}, 6),
        (STEP, 12),  # 24 for the node's two tasks
        ({**STEP, "SLURM_NODEID": "2", "SLURM_LOCALID": "0"}, 24),
        ({**STEP, "SLURM_CPUS_PER_TASK": "3"}, 3),
        ({"SLURM_CPUS_ON_NODE": "4"}, 4),
        ({"SLURM_CPUS_PER_TASK": "?"}, None),
    ],
)
def test_cores_are_those_of_the_task(environment: dict[str, str], cores: int | None) -> None:
    assert cores_of_task(environment) == cores


def test_workers_and_threads_keep_to_the_tasks_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    assert host.usable_cores() == 6
    monkeypatch.setattr(host.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert host.usable_cores() == 2


def test_a_task_is_what_srun_has_started() -> None:
    task = read_task(STEP)
    assert task is not None
    assert (task.rank, task.tasks, task.local_rank, task.local_tasks) == (3, 5, 1, 2)
    assert read_task({}) is None


def test_a_launcher_that_does_not_say_how_many_processes_a_machine_has() -> None:
    alone_on_each = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}
    assert ranks(alone_on_each).local_world_size == 2
