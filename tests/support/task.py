"""What an agent does with a trial: gives it a container, prepares it and runs it with the real harness."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import yaml
from master import Master

ROOT = Path(__file__).parents[2]
SITE = Path(__file__).parent / "site"
BIN = Path(sys.executable).parent

TINY = {
    "data.num_workers_train": 0,
    "data.num_workers_val": 0,
    "data.generated_per_class": 20,
    "hyperparameters.num_classes": 2,
    "hyperparameters.init_channels": 8,
    "hyperparameters.layers": 2,
    "hyperparameters.image_size": 32,
    "hyperparameters.global_batch_size": 4,
    "hyperparameters.epochs": 2,
}
"""const.yaml in seconds: 2 epochs of 10 steps."""


def client(master: Master, home: Path, *arguments: Any) -> subprocess.CompletedProcess[str]:
    """Runs the real command-line client from the project's root, for a user with an empty home."""
    keep = {key: value for key, value in os.environ.items() if not key.startswith("DET_")}
    return subprocess.run(
        [BIN / "det", "-m", master.url, *map(str, arguments)],
        cwd=ROOT,
        env={**keep, "HOME": str(home), "DET_USER": "somebody", "DET_PASS": "secret"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def submit(master: Master, home: Path, file: str = "const.yaml", **values: Any) -> None:
    """`det experiment create FILE .` with values set."""
    settings = [word for key, value in values.items() for word in ("--config", f"{key}={value}")]
    result = client(master, home, "experiment", "create", *settings, file, ".")
    assert "Created experiment" in result.stdout, result.stderr


class Allocation:
    """One life of a trial: a fresh container, from its preparation to its exit code."""

    def __init__(
        self, master: Master, storage: Path, *, slots: int = 1, checkpoint: str | None = None, run: int = 1
    ) -> None:
        self.master, self.id = master, f"1.{uuid.uuid4().hex[:8]}.{run}"
        self.container = Path(tempfile.mkdtemp(prefix="task-"))
        self.work = self.container / "workdir"
        for name in ("info", "train/model", "train/logs", "workdir"):
            (self.container / name).mkdir(parents=True)
        master.slots = slots
        master.new_allocation()
        config = yaml.safe_load(master.submissions[-1]["config"])
        config["checkpoint_storage"] |= {"type": "directory", "container_path": str(storage)}
        storage.mkdir(exist_ok=True)
        steps = next((c["metadata"]["steps_completed"] for c in master.checkpoints if c["uuid"] == checkpoint), 0)
        keep = {key: value for key, value in os.environ.items() if not key.startswith("DET_")}
        self.environment = {
            **keep,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(SITE),
            "HOME": str(self.container),
            # Compiled kernels are the machine's: no need to make them anew in each container.
            "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"),
            "OMP_NUM_THREADS": "1",
            "TASK_CONTAINER": str(self.container),
            "C10D_PORT": str(free_port()),
            "INTER_TRAIN_PROCESS_COMM_PORT_1": str(free_port()),
            "INTER_TRAIN_PROCESS_COMM_PORT_2": str(free_port()),
            "DET_MASTER": master.url,
            "DET_CLUSTER_ID": "cluster",
            "DET_AGENT_ID": "agent",
            "DET_CONTAINER_ID": "container",
            "DET_RESOURCES_ID": "resources",
            "DET_RESOURCES_TYPE": "docker-container",
            "DET_SLOT_IDS": json.dumps(list(range(slots))),
            "DET_TASK_ID": "task",
            "DET_TASK_TYPE": "TRIAL",
            "DET_ALLOCATION_ID": self.id,
            "DET_SESSION_TOKEN": "token",
            "DET_USER": "somebody",
            "DET_TRIAL_ID": "1",
            "DET_EXPERIMENT_ID": "1",
            "DET_TRIAL_SEED": "7",
            "DET_TRIAL_RUN_ID": str(run),
            "DET_EXPERIMENT_CONFIG": json.dumps(config),
            "DET_HPARAMS": json.dumps(config["hyperparameters"]),
            "DET_STEPS_COMPLETED": str(steps),
            **({"DET_LATEST_CHECKPOINT": checkpoint} if checkpoint else {}),
        }
        self._before = _shared_memory()
        self.process: subprocess.Popen[str] | None = None
        self.output = ""

    def start(self) -> Allocation:
        """Fetches the submitted files into the empty working directory and starts the entrypoint."""
        prepare = ["--download_context_directory", "--resources", "--rendezvous"]
        done = self._popen("determined.exec.prep_container", *prepare)
        out, _ = done.communicate(timeout=60)
        assert done.returncode == 0, out
        self.process = self._popen("determined.exec.launch")
        return self

    def finish(self, timeout: float = 120) -> int:
        """Waits for the end, and asserts that no process, port or shared memory is left; `output` has what was said."""
        assert self.process
        try:
            self.output, _ = self.process.communicate(timeout=timeout)
            end = time.monotonic() + 10
            while left := _session(self.process.pid):
                assert time.monotonic() < end, left
                time.sleep(0.05)
            for name in ("C10D_PORT", "INTER_TRAIN_PROCESS_COMM_PORT_1", "INTER_TRAIN_PROCESS_COMM_PORT_2"):
                with socket.create_server(("127.0.0.1", int(self.environment[name]))):
                    pass  # nobody listens there any more
            segments = [re.match(r"torch_(\d+)_", name) for name in _shared_memory() - self._before]
            assert all(Path(f"/proc/{segment[1]}").exists() for segment in segments if segment)
        finally:
            self.remove()
        return self.process.returncode

    def remove(self) -> None:
        """Ends what still runs and takes the container away."""
        if self.process and _session(self.process.pid):
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        shutil.rmtree(self.container, ignore_errors=True)
        tensorboard = Path("/tmp/tensorboard")
        if tensorboard.is_symlink() and self.id in os.readlink(tensorboard):
            tensorboard.unlink(missing_ok=True)
        shutil.rmtree(f"/tmp/tensorboard-{self.id}-0", ignore_errors=True)
        Path(f"/tmp/pid_server-{self.id}").unlink(missing_ok=True)

    def _popen(self, module: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["python3", "-m", module, *arguments],
            executable=BIN / "python3",
            cwd=self.work,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()}


def _session(leader: int) -> list[int]:
    """Living processes of the session that `leader` was started in."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(entry.name))
    return found
