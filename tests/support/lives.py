"""Processes of a run that are forked from a server which has everything imported: a test can start and end many.

multiprocessing's own forkserver does not do: before Python 3.13 it does not look for what it shall import in beforehand
where the tests are, and it is one with the server that the product starts for its workers.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

_NUMBER = array.array("i").itemsize
_server: tuple[socket.socket, subprocess.Popen[bytes]] | None = None


class Life:
    """A process forked from the server: `pid`, and how it ends."""

    def __init__(self, answers: int) -> None:
        self._answers = answers
        self._code: int | None = None
        pid = self._answer()
        assert pid is not None, "the server of lives has ended"
        self.pid = pid

    def __del__(self) -> None:
        os.close(self._answers)

    def _answer(self) -> int | None:
        data = os.read(self._answers, _NUMBER)
        return array.array("i", data)[0] if data else None

    def join(self, timeout: float | None = None) -> None:
        """Waits for the end, as long as that."""
        if self._code is None and select.select([self._answers], [], [], timeout)[0]:
            status = self._answer()
            assert status is not None, "the server of lives has ended"
            self._code = os.waitstatus_to_exitcode(status)

    @property
    def exitcode(self) -> int | None:
        """None while it lives; the negative number of the signal that ended it."""
        self.join(0)
        return self._code

    def is_alive(self) -> bool:
        return self.exitcode is None

    def send_signal(self, number: int) -> None:
        if self.is_alive():
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    arguments: list[str], output: Path, environment: dict[str, str] | None = None, cwd: Path | None = None
) -> Life:
    """Starts a command in a session of its own, its output in a file.

    Args:
        arguments: Those of `gaeanet`, or of another command: `share ...` runs sharing.py, `torchrun ...` torchrun's
            agent, `python FILE ...` a file.
        environment: What is set besides what is set here.
    """
    values = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    request = [arguments, str(output), values, str(cwd or Path.cwd())]
    answers, theirs = os.pipe()
    with contextlib.closing(os.fdopen(theirs, "wb")):
        # The length goes ahead: a request may be longer than what one call receives.
        data = json.dumps(request).encode()
        socket.send_fds(_connection(), [len(data).to_bytes(4, "big")], [theirs])
        _connection().sendall(data)
    return Life(answers)


def run(
    arguments: list[str],
    output: Path,
    environment: dict[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 200,
) -> tuple[int | None, str]:
    """Runs a command to its end; its exit code (None where it took too long) and what it said."""
    life = start(arguments, output, environment, cwd)
    life.join(timeout)
    code = life.exitcode
    life.kill()
    return code, output.read_text(errors="replace")


def _connection() -> socket.socket:
    """The server's, which is started with the first life and ends with this process."""
    global _server
    if _server is None:
        ours, theirs = socket.socketpair()
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, str(theirs.fileno())]
        _server = ours, subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()])
        theirs.close()
        atexit.register(_end)
    return _server[0]


def _end() -> None:
    assert _server
    _server[0].close()
    _server[1].wait()


def _serve(connection: socket.socket) -> None:
    """Forks a life for each request, and passes on how it ended."""
    told: dict[int, int] = {}
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, which is for the tests
    while True:
        ready, _, _ = select.select([connection, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            while told:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                answers = told.pop(pid)
                with contextlib.suppress(BrokenPipeError):
                    os.write(answers, array.array("i", [status]).tobytes())
                os.close(answers)
        if connection in ready:
            length, descriptors, _, _ = socket.recv_fds(connection, 4, 1)
            if not length:
                return
            data = b""
            while len(data) < int.from_bytes(length, "big"):
                data += connection.recv(int.from_bytes(length, "big") - len(data))
            pid = os.fork()
            if not pid:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                signal.set_wakeup_fd(-1)
                for descriptor in (connection.detach(), woken, wake, *descriptors, *told.values()):
                    os.close(descriptor)
                _live(*json.loads(data))
            told[pid] = descriptors[0]
            os.write(descriptors[0], array.array("i", [pid]).tobytes())


def _live(arguments: list[str], output: str, environment: dict[str, str], cwd: str) -> None:
    """A life, in the process that was forked for it: never returns."""
    code = 1
    try:
        os.setsid()
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(cwd)
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for standard in (1, 2):
            os.dup2(descriptor, standard)
        os.close(descriptor)
        code = _command(arguments)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(Exception):
            # What multiprocessing and logging have registered, as at the end of any process.
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _command(arguments: list[str]) -> int:
    name, *rest = arguments
    if name == "share":
        import sharing

        sharing.main(*rest)
        return 0
    if name == "torchrun":
        from torch.distributed.run import main as agent

        sys.argv = ["torchrun", *rest]
        agent(rest)
        return 0
    if name == "python":
        sys.argv, sys.path[0] = rest, str(Path(rest[0]).parent)
        runpy.run_path(rest[0], run_name="__main__")
        return 0
    from gaeanet.cli.main import main

    sys.argv = ["gaeanet", *arguments]
    return main(arguments)


def _import_all() -> None:
    """Imports what a command imports on its way, once for all lives."""
    import matplotlib.backends.backend_agg
    import matplotlib.figure
    import sharing
    import torch
    import torch.distributed.run

    import gaeanet.cli.diagnose
    import gaeanet.data.prepare.prepare
    import gaeanet.evaluation.score
    import gaeanet.report.describe
    import gaeanet.report.gather
    import gaeanet.training.train

    modules: list[Any] = [matplotlib, torch, gaeanet, sharing]
    assert all(modules)
    torch.set_num_threads(1)


if __name__ == "__main__":
    gc.disable()
    _import_all()
    gc.freeze()  # no life has to look through it, nor to copy its pages
    gc.enable()
    _serve(socket.socket(fileno=int(sys.argv[1])))
