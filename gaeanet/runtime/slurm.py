"""What Slurm reports to the tasks of a job step, in variables of the environment. Nothing here needs torch.

`srun` sets them for each process it starts. A batch script has some of them too, but is no task among others:
SLURM_STEP_NUM_TASKS, which only `srun` sets, distinguishes them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from gaeanet.errors import RequestError


@dataclass(frozen=True)
class Task:
    """A process among those that one `srun` has started.

    Attributes:
        rank, local_rank: Its number among all tasks, and among those of its node.
        tasks, local_tasks: How many tasks there are, and how many on its node.
        first_host: The node of task 0.
        port: Where task 0 is to listen; another for each job and step.
        requeued: Whether Slurm has started this job before.
    """

    rank: int
    local_rank: int
    tasks: int
    local_tasks: int
    first_host: str
    port: int
    requeued: bool


def read_task(environment: Mapping[str, str]) -> Task | None:
    """The task that this process is; None outside of `srun`, and for a step of a single task.

    Raises:
        RequestError: A variable is missing, or is not what Slurm writes.
    """
    if environment.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return None
    try:
        job, step = int(environment["SLURM_JOB_ID"]), int(environment["SLURM_STEP_ID"])
        node = int(environment["SLURM_NODEID"])
        task = Task(
            rank=int(environment["SLURM_PROCID"]),
            local_rank=int(environment["SLURM_LOCALID"]),
            tasks=int(environment["SLURM_NTASKS"]),
            local_tasks=_counts(environment["SLURM_STEP_TASKS_PER_NODE"])[node],
            first_host=first_host(environment["SLURM_STEP_NODELIST"]),
            port=port_of(job, step),
            requeued=environment.get("SLURM_RESTART_COUNT", "0") != "0",
        )
        if not (0 <= task.rank < task.tasks and 0 <= task.local_rank < task.local_tasks and min(node, job, step) >= 0):
            raise ValueError("a rank beyond their number")
        return task
    except KeyError as error:
        raise RequestError(f"{error.args[0]} is not set, though SLURM_STEP_NUM_TASKS is: start with srun") from None
    except (ValueError, IndexError):
        values = {name: environment.get(name) for name in _NUMBERS}
        raise RequestError(f"not the variables of a Slurm task: {values}: start with srun") from None


_NUMBERS = (
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_NTASKS",
    "SLURM_STEP_TASKS_PER_NODE",
    "SLURM_NODEID",
)


_MOST_NODES = 1_000_000


def cores_of_task(environment: Mapping[str, str]) -> int | None:
    """CPU cores that Slurm has allocated to this task, or to this batch script; None outside of a job.

    Without `--cpus-per-task`, the tasks of a node share what the job has there. Slurm binds tasks to cores only where
    its administrator has configured that, so the affinity mask may show more.
    """
    try:
        if "SLURM_CPUS_PER_TASK" in environment:
            return max(1, int(environment["SLURM_CPUS_PER_TASK"]))
        if "SLURM_CPUS_ON_NODE" in environment:
            task = read_task(environment)
            return max(1, int(environment["SLURM_CPUS_ON_NODE"]) // (task.local_tasks if task else 1))
    except ValueError:
        return None
    return None


def first_host(nodes: str) -> str:
    """The first name of Slurm's compressed list: `gpu03` of `gpu[03-05,09],login1`."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])+", nodes)
    if first is None:
        raise ValueError(nodes)
    return re.sub(r"\[([^\]]*)\]", lambda group: re.split("[-,]", group[1])[0], first[0])


def port_of(job: int, step: int) -> int:
    """A port for a job's step, below those that systems hand out by themselves; neighbours have different ones."""
    return 10_000 + (job * 8 + step) % 20_000


def _counts(tasks_per_node: str) -> list[int]:
    """Tasks of each node: [2, 2, 1] for `2(x2),1`."""
    counts = list[int]()
    for entry in tasks_per_node.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", entry)
        if match is None or int(match[2] or 1) > _MOST_NODES:
            raise ValueError(entry)
        counts += [int(match[1])] * int(match[2] or 1)
    return counts
