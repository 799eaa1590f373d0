"""A run on a real Slurm of two nodes, by launch/slurm.sbatch: whatever Slurm does to it, the weights are the same."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import slurm
import yaml
from launch import joined, logged, together
from slurm import NODES, Slurm, wait_until
from tiny import NET, make_folder, read_log, same_but_for_speed, same_checkpoints

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
HELD = ROOT / "tests" / "support" / "held.py"
Submit = Callable[..., str]
TREE = {
    "data": {"num_workers_train": 1, "num_workers_val": 0},
    "hyperparameters": {**NET, "epochs": 20, "drop_path_prob": 0.1, "validate_every": 5, "checkpoint_every": 3},
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if reason := slurm.missing():
        pytest.skip(reason)
    programs = tmp_path_factory.mktemp("bin")
    (programs / "gaeanet").write_text(f'#!/bin/sh\nexec {sys.executable} {HELD} "$@"\n')
    (programs / "gaeanet").chmod(0o755)
    with Slurm() as cluster:
        cluster.environment.pop("OMP_NUM_THREADS", None)  # threads are to be Slurm's
        cluster.environment["PATH"] = f"{programs}{os.pathsep}{cluster.environment['PATH']}"
        cluster.environment["PYTHONPATH"] = str(ROOT)
        yield cluster


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A run of two processes without Slurm: its experiment file, its images, its directory."""
    root = tmp_path_factory.mktemp("undisturbed")
    data = make_folder(root / "t3")
    (root / "steady.yaml").write_text(yaml.safe_dump(TREE))
    arguments = ["train", root / "steady.yaml", "--data", data, "--run-dir", root / "run"]
    joined(together(2, arguments, root / "out"), root / "out")
    return root / "steady.yaml", data, root / "run"


@pytest.fixture
def submit(cluster: Slurm, tmp_path: Path) -> Submit:
    """Submits launch/slurm.sbatch for two nodes of one process each; its log is JOB.log."""

    def run(*arguments: Any, options: tuple[str, ...] = ()) -> str:
        size = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=0"]
        where = [f"--chdir={tmp_path}", f"--output={tmp_path}/%j.log"]
        return cluster("sbatch", "--parsable", *size, *where, *options, ROOT / "launch/slurm.sbatch", *arguments)

    return run


def test_law_2_whatever_slurm_does_the_weights_are_the_same(
    cluster: Slurm, submit: Submit, undisturbed: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """The time limit, a preemption and a lost node, one after another, in one job."""
    config, data, straight = undisturbed
    run, held = tmp_path / "run", tmp_path / "held"
    held.touch()
    job = submit(config, "--data", data, "--run-dir", run, options=("--time=60", "--signal=B:USR1@60"))
    output = tmp_path / f"{job}.log"

    def wait(condition: Callable[[], bool]) -> None:
        wait_until(condition, lambda: output.read_text()[-3000:], timeout=200)

    def train(restarts: int) -> None:
        """Waits until the job has been started again so often, and has come some steps further."""
        wait(lambda: cluster.restarts(job) >= restarts)
        goal = logged(run) + 4
        wait(lambda: cluster.restarts(job) >= restarts and logged(run) >= goal)

    train(0)
    cluster("scontrol", "update", f"JobId={job}", "EndTime=now+65")  # the signal is to come in five seconds
    wait(lambda: "stopped by SIGUSR1 after step" in output.read_text())
    wait(lambda: cluster.restarts(job) >= 1 and cluster.field(job) in ("PENDING", "RUNNING"))
    cluster("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    train(1)

    other = cluster("sbatch", "--parsable", "-p", "high", "-N2", "-c2", "-o", "/dev/null", "--wrap", "sleep 1")
    wait(lambda: "stopped by SIGTERM after step" in output.read_text())
    cluster.wait_for(other, "COMPLETED")
    train(2)

    cluster.kill_node(NODES[1])
    wait(lambda: "lost the other processes of this run" in output.read_text())
    held.unlink()
    cluster.repair_node(NODES[1])
    wait(lambda: cluster.restarts(job) >= 3 and cluster.field(job) == "COMPLETED")

    said = output.read_text()
    assert said.count("resumed after step") == 3
    assert said.count("exit code 75, requeued") == 2
    assert "plan: global 4 = 2 processes x 2 x 1" in said
    assert "CPU, 1 thread," in said
    assert "Traceback" not in said
    same_checkpoints(straight, run)
    assert same_but_for_speed(read_log(straight), read_log(run))


def test_a_cancelled_job_is_saved_and_stays_cancelled(
    cluster: Slurm, submit: Submit, undisturbed: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    config, data, _ = undisturbed
    (tmp_path / "held").touch()
    job = submit(config, "--data", data, "--run-dir", "run")
    wait_until(lambda: logged(tmp_path / "run") >= 3, "no step", timeout=120)
    cluster("scancel", job)
    cluster.wait_for(job, "CANCELLED")
    assert "state saved in run: run again with --resume" in (tmp_path / f"{job}.log").read_text()
    assert cluster.field(job, "Restarts") == "0"


def test_an_array_has_a_run_for_each_seed_and_a_refusal_is_not_repeated(
    cluster: Slurm, submit: Submit, undisturbed: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    config, data, _ = undisturbed
    seeds = ["--set", "hyperparameters.seed=%a", "--set", "hyperparameters.epochs=1", "--run-dir", "seed-%a"]
    (tmp_path / "seed-2" / "checkpoints").mkdir(parents=True)  # another run's
    options = ("--array=1-2", "--nodes=1", "--ntasks-per-node=2")
    job = submit(config, "--data", data, *seeds, options=options)
    cluster.wait_for(f"{job}_1", "COMPLETED")
    cluster.wait_for(f"{job}_2", "FAILED")
    said = [path.read_text() for path in tmp_path.glob("*.log")]
    assert yaml.safe_load((tmp_path / "seed-1" / "config.yaml").read_text())["hyperparameters"]["seed"] == 1
    assert logged(tmp_path / "seed-1") == 4
    assert sum("seed-2 already holds a run" in text for text in said) == 1
    assert not any("requeued" in text for text in said)


def test_srun_alone_is_enough(cluster: Slurm, undisturbed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    config, data, straight = undisturbed
    output = cluster("srun", "-N2", "-n2", "gaeanet", "train", config, "--data", data, "--run-dir", tmp_path / "run")
    assert "plan: global 4 = 2 processes x 2 x 1" in output
    same_checkpoints(straight, tmp_path / "run")


def test_a_port_that_is_taken_is_one_line(cluster: Slurm, undisturbed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    config, data, _ = undisturbed
    command = ["srun", "-n2", "--wait=5", "gaeanet", "train", config, "--data", data, "--run-dir", tmp_path / "run"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AssertionError) as failed:
            cluster(*command, MASTER_PORT=str(port))
    lines = [line for line in str(failed.value).splitlines() if "gaeanet" in line and "process 0" in line]
    assert len(lines) == 1
    assert f"cannot reach each other at tcp://127.0.0.1:{port}" in lines[0]
    assert "Traceback" not in str(failed.value)
