"""A real Slurm of two nodes on this machine, with a controller, node daemons and a munge of its own.

Nothing is installed, no file outside of the directory is written, and nothing outlives the `with` block.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType

from services import end_with_the_tests

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "scancel", "squeue", "sinfo")
NODES = ("127.0.0.1", "127.0.0.2")
"""The nodes' names are addresses, so that the first of the list can be reached without a name service."""
_PATH = f"{os.environ['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/sbin"

_CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={dir}/munge.socket
CryptoType=crypto/munge
CredType=cred/munge
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool-%n
SlurmctldPidFile={dir}/slurmctld.pid
SlurmdPidFile={dir}/slurmd-%n.pid
SlurmctldLogFile={dir}/slurmctld.log
SlurmdLogFile={dir}/slurmd-%n.log
SlurmctldPort={ports[0]}
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
FirstJobId={job}
JobRequeue=1
ReturnToService=2
SlurmdTimeout=10
KillWait=30
SchedulerParameters=sched_interval=1,batch_sched_delay=1,bf_interval=1
MpiDefault=none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={nodes[0]} NodeHostname={host} NodeAddr={nodes[0]} Port={ports[1]} CPUs=2 RealMemory=2000 State=UNKNOWN
NodeName={nodes[1]} NodeHostname={host} NodeAddr={nodes[1]} Port={ports[2]} CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str | None:
    """What this machine lacks for a Slurm of one's own, as a reason to skip; None where there is everything."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]
    if absent:
        return f"no Slurm here ({', '.join(absent)} not installed): apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "slurmd starts jobs as their users, which takes root"
    return None


class Slurm:
    """Two nodes of two cores, partitions `low` (the default) and `high`, which preempts it with 60 s of grace."""

    def __init__(self) -> None:
        # A short name: sockets are in it, and their names may be only about 100 characters long.
        self.dir = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.dir.chmod(0o755)  # munge refuses a socket that others cannot reach
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.dir / name).mkdir()
        (self.dir / "munge.key").write_bytes(os.urandom(1024))
        (self.dir / "munge.key").chmod(0o400)
        text = _CONFIGURATION.format(
            dir=self.dir,
            host=socket.gethostname().partition(".")[0],
            user=getpass.getuser(),
            ports=_free_ports(3),
            nodes=NODES,
            job=os.getpid(),  # another Slurm on this machine has others, and a run's port is made from the number
        )
        (self.dir / "slurm.conf").write_text(text)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH"))}
        self.environment = {**kept, "PATH": _PATH, "SLURM_CONF": str(self.dir / "slurm.conf")}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Slurm:
        try:
            munge = [f"--{name}={self.dir / f'munge.{name[:4]}'}" for name in ("pid-file", "log-file", "seed-file")]
            self._start(
                "munge", "munged", "-F", "-f", f"-S{self.dir}/munge.socket", f"--key-file={self.dir}/munge.key", *munge
            )
            wait_until(lambda: (self.dir / "munge.socket").exists(), "munge does not start")
            self._start("slurmctld", "slurmctld", "-D")
            for node in NODES:
                self.start_node(node)
            self.wait_for_nodes()
        except BaseException:
            print(self.daemons_said())  # pytest shows it with the failure
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            self("scancel", "--signal=KILL", "--full", "--user", str(os.getuid()))
            self("scancel", "--user", str(os.getuid()))
            wait_until(lambda: not self("squeue", "-h"), "jobs do not end", timeout=15)
        for pid in self.processes():
            _kill(pid)
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.dir, ignore_errors=True)

    def __call__(self, *command: object, **environment: str) -> str:
        """Runs a command of Slurm, and returns what it printed."""
        done = subprocess.run(
            [str(word) for word in command],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def start_node(self, node: str) -> None:
        self._start(node, "slurmd", "-D", "-N", node)

    def wait_for_nodes(self) -> None:
        """Waits until both nodes are idle."""
        wait_until(
            lambda: self("sinfo", "-h", "-N", "-p", "low", "-o", "%T").split() == ["idle"] * 2, "nodes are not idle"
        )

    def kill_node(self, node: str) -> None:
        """Ends a machine: its daemon and all that runs of a job there, at once.

        The controller hears of it now; by itself it would take SlurmdTimeout (five minutes by default).
        """
        for pid in [self._daemons[node].pid, *self.processes(f"SLURMD_NODENAME={node}")]:
            _kill(pid)
        self._daemons.pop(node).wait()
        self("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=died")

    def repair_node(self, node: str) -> None:
        """Starts a machine again."""
        self.start_node(node)
        self("scontrol", "update", f"NodeName={node}", "State=RESUME")

    def daemons_said(self) -> str:
        """The last lines of each daemon's output and log."""
        paths = sorted([*self.dir.glob("*.out"), *self.dir.glob("*.log")])
        return "\n".join(f"{path.name}: {line}" for path in paths for line in path.read_text().splitlines()[-20:])

    def processes(self, variable: str = "SLURMD_NODENAME=") -> list[int]:
        """Processes of this Slurm's jobs, their shepherds included, with this in their environment."""
        marks = (f"SLURM_CONF={self.dir}/slurm.conf".encode(), variable.encode())
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit():
                    words = (entry / "environ").read_bytes().split(b"\0")
                    if marks[0] in words and any(word.startswith(marks[1]) for word in words):
                        found.append(int(entry.name))
        return found

    def fields(self, job: str) -> dict[str, str]:
        """What `scontrol show job` shows at one moment."""
        return dict(word.partition("=")[::2] for word in self("scontrol", "show", "job", job, "-o").split())

    def field(self, job: str, name: str = "JobState") -> str:
        """One of the fields: its state is RUNNING, PENDING, COMPLETED, ..."""
        return self.fields(job)[name]

    def restarts(self, job: str) -> int:
        """How often a job has been requeued; one that has been starts after 3 seconds in place of two minutes.

        Not at once: a node launches nothing of a job in the second in which it has killed it, and the job fails.
        """
        fields = self.fields(job)
        if fields["JobState"] == "PENDING" and fields["Reason"] == "BeginTime" and fields["StartTime"] != "Unknown":
            if datetime.fromisoformat(fields["StartTime"]) > datetime.now() + timedelta(seconds=10):  # local times
                self("scontrol", "update", f"JobId={job}", "StartTime=now+3")
        return int(fields["Restarts"])

    def wait_for(self, job: str, state: str, timeout: float = 120) -> None:
        """Waits until a job is in this state."""
        wait_until(lambda: self.field(job) == state, lambda: f"job {job} is {self.field(job)}, not {state}", timeout)

    def _start(self, name: str, *command: str) -> None:
        output = open(self.dir / f"{name}.out", "ab")  # noqa: SIM115 (the daemon's)
        with output:
            self._daemons[name] = subprocess.Popen(
                command,
                env=self.environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=end_with_the_tests,
            )


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def wait_until(condition: Callable[[], object], message: str | Callable[[], str], timeout: float = 60) -> None:
    """Waits until the condition holds; fails with the message where that takes too long."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, message if isinstance(message, str) else message()
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens at, all different."""
    with contextlib.ExitStack() as open_ones:
        sockets = [open_ones.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(one.getsockname()[1]) for one in sockets]
