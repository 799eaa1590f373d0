"""The ranks of this process in its run, as its launcher reports them. Nothing here needs torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from gaeanet.errors import RequestError
from gaeanet.runtime import slurm
from gaeanet.runtime.names import shortened, shown


@dataclass(frozen=True)
class Ranks:
    """The ranks of a process in its run.

    Attributes:
        rank, world_size: Its number, and how many processes there are.
        local_rank, local_world_size: The same on its machine.
        gpu: The index of its GPU among those that it can see.
        init_method: The URL by which PyTorch finds the other processes; None where no launcher started this one.
        supervised: Whether the launcher ends all processes when one of them fails, as torchrun does.
        restarted: Whether the launcher has started this run before, so that what is in its directory is its own.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    gpu: int = 0
    init_method: str | None = None
    supervised: bool = False
    restarted: bool = False


def ranks(environment: Mapping[str, str] | None = None) -> Ranks:
    """The ranks that torchrun, a cluster's launcher or `srun` has given to this process; alone without any.

    Launchers that set WORLD_SIZE come first: under `srun torchrun` the processes are torchrun's. MASTER_ADDR and
    MASTER_PORT, where they are set, name the rendezvous, under `srun` too.

    Raises:
        RequestError: A variable is not a number, or missing.
    """
    environment = os.environ if environment is None else environment
    if "WORLD_SIZE" in environment:
        return _by_torchrun(environment)
    task = slurm.read_task(environment)
    if task is None:
        return Ranks(restarted=environment.get("SLURM_RESTART_COUNT", "0") != "0")
    host = environment.get("MASTER_ADDR") or task.first_host
    port = environment.get("MASTER_PORT") or task.port
    # With --gpus-per-task each task sees only its own GPU, which is number 0 to it.
    one_gpu = environment.get("CUDA_VISIBLE_DEVICES", ",").count(",") == 0
    return Ranks(
        rank=task.rank,
        world_size=task.tasks,
        local_rank=task.local_rank,
        local_world_size=task.local_tasks,
        gpu=0 if one_gpu else task.local_rank,
        init_method=f"tcp://{host}:{port}?rank={task.rank}&world_size={task.tasks}",
        restarted=task.requeued,
    )


def without_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for a process that is to be alone, whatever started this one."""
    return {name: value for name, value in environment.items() if name not in _NAMES}


_NAMES = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("TORCHELASTIC_RESTART_COUNT", "SLURM_STEP_NUM_TASKS", "SLURM_RESTART_COUNT"),
)


def _by_torchrun(environment: Mapping[str, str]) -> Ranks:
    rank, world_size, local_rank, local_world_size, restarts = (
        _number(environment, name, least) for name, least in _BY_TORCHRUN.items()
    )
    if "LOCAL_WORLD_SIZE" not in environment:  # not every launcher sets it
        local_world_size = local_rank + 1
    if rank >= world_size or local_rank >= local_world_size:
        raise RequestError(
            f"RANK is {rank} of WORLD_SIZE {world_size}, LOCAL_RANK {local_rank} of LOCAL_WORLD_SIZE "
            f"{local_world_size}: processes count from 0; unset them, or start with torchrun"
        )
    return Ranks(
        rank, world_size, local_rank, local_world_size, local_rank, "env://", supervised=True, restarted=restarts > 0
    )


def _number(environment: Mapping[str, str], name: str, least: int) -> int:
    text = environment.get(name, str(least))
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= least):
        raise RequestError(
            f"{name} is {shortened(shown(repr(text)))}, where torchrun sets a whole number from {least}: unset it, or "
            "start with torchrun"
        )
    return int(text)


_BY_TORCHRUN = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "TORCHELASTIC_RESTART_COUNT": 0}
"""What torchrun sets, and the least value of each, which is also what it is where it is not set."""
