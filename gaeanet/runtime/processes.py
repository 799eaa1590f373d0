"""The process group of a run: joining it, agreeing, and stopping on signals."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store, default_pg_timeout
from torch.distributed.rendezvous import rendezvous

from gaeanet.errors import RequestError, RunError, reason
from gaeanet.runtime.host import usable_cores
from gaeanet.runtime.ranks import ranks
from gaeanet.runtime.rendezvous import fresh_store, refusal_of_any
from gaeanet.runtime.slurm import cores_of_task

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""By which schedulers, people and closed terminals ask a run to stop."""
_LOOK = 0.05
"""Seconds from one look to the next whether a process that was asked to stop is held up."""


class Processes:
    """The processes that torchrun, a cluster's launcher or `srun` started for this run, or this one alone.

    Attributes:
        rank, local_rank, world_size: This process among them.
        device: Where this process computes.

    Raises:
        RunError: The processes do not find each other.
        RequestError: Another one refuses to start; the message is its own.
    """

    def __init__(self) -> None:
        here = ranks()
        self.rank, self.local_rank, self.world_size = here.rank, here.local_rank, here.world_size
        self.device = default_device(here.gpu)
        self._control: dist.ProcessGroup | None = None
        if "OMP_NUM_THREADS" not in os.environ and cores_of_task(os.environ):
            torch.set_num_threads(usable_cores())  # PyTorch counts the machine's cores where Slurm binds no task to its
        if here.init_method is not None:
            store: Store = PrefixStore("gaeanet", _rendezvous(here.init_method))
            if not here.supervised and (refusal := refusal_of_any(store, self.rank, self.world_size, None)):
                raise RequestError(refusal)
            store = fresh_store(store, self.rank, self.world_size)
            on_gpu = self.device.type == "cuda"
            if on_gpu:
                torch.cuda.set_device(self.device)
            dist.init_process_group(
                "nccl" if on_gpu else "gloo",
                store=store,
                rank=self.rank,
                world_size=self.world_size,
                device_id=self.device if on_gpu else None,
            )
            # Control messages go over gloo between CPUs, so that they never wait for a GPU's queue.
            control = dist.new_group(backend="gloo")
            assert isinstance(control, dist.ProcessGroup)  # not a member only of groups of some ranks
            self._control = control

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the process that writes and logs."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes of a tensor on the device, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def broadcast(self, tensors: list[Tensor]) -> None:
        """Broadcasts the first process's tensors to all, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def any_of(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag whether it is set on at least one process; a collective, which every process must call."""
        if self.world_size == 1:
            return flags
        shared = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX, group=self._control)
        return tuple(map(bool, shared.tolist()))

    def from_first(self, value: Any) -> Any:
        """The first process's `value` (plain data), on every process."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0, group=self._control)
        return box[0]

    def leave(self) -> None:
        """Takes this process out of the group."""
        if self._control is not None and dist.is_initialized():
            dist.destroy_process_group()
            self._control = None


def report_refusal(reason: str) -> None:
    """Lets the other processes of the run know that this one refuses to start: they would wait for it.

    Nothing happens where there are none, or where their launcher ends them all when one has ended.
    """
    here = ranks()
    if here.init_method is not None and not here.supervised:
        with contextlib.suppress(RunError, dist.DistError):  # they have not come, or are gone
            store = PrefixStore("gaeanet", _rendezvous(here.init_method, _PATIENCE))
            refusal_of_any(store, here.rank, here.world_size, reason)


_PATIENCE = timedelta(minutes=5)
"""How long a process that refuses to start waits for the others, which may still be importing."""


def _rendezvous(url: str, patience: timedelta = default_pg_timeout) -> Store:
    """The store that all processes of the run share."""
    try:
        store: Store = next(rendezvous(url, timeout=patience))[0]
    except ValueError as error:  # MASTER_ADDR or MASTER_PORT
        variable = next((word for word in str(error).split() if word.startswith("MASTER")), "MASTER_ADDR")
        raise RequestError(
            f"the environment has WORLD_SIZE={ranks().world_size}, but no {variable} that this process could find the "
            "others by: start the processes with torchrun, or unset WORLD_SIZE"
        ) from None
    except (dist.DistError, OSError) as error:
        where = url.partition("?")[0]
        if where == "env://":
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise RunError(
            f"the processes of this run cannot reach each other at {where}: {reason(error)}; MASTER_ADDR and "
            "MASTER_PORT name another host or a free port"
        ) from None
    return store


class StoppedWaiting(BaseException):
    """A stop was asked for while the run waited for something that may never come."""


class StopRequest:
    """Notices the signals that ask a run to stop; a second one of them ends the process immediately.

    A closed terminal sends SIGHUP and may send it again, so that one alone never ends the process.

    Attributes:
        received: The first signal's name.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[int, Any] = {}
        self._waits, self._grace = False, 0.0
        self._alarm: tuple[Any, tuple[float, float]] | None = None
        self._position: tuple[int, int] | None = None

    def __enter__(self) -> StopRequest:
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def waiting(self, grace: float = 0.0) -> Iterator[None]:
        """Around waiting for what may never come (a read on a stalled mount): a stop raises `StoppedWaiting` there.

        Args:
            grace: Seconds after the stop that what is awaited may still come.
        """
        if self.received is not None and not grace:
            raise StoppedWaiting
        self._waits, self._grace = True, grace
        try:
            if self.received is not None:
                self._watch()
            yield
        finally:
            self._waits = False
            self._unwatch()

    def _watch(self) -> None:
        """Looks again and again whether the process is held up, by the timer that it has; see `_look`."""
        if self._alarm is None:
            self._position = None
            handler = signal.signal(signal.SIGALRM, self._look)
            self._alarm = handler, signal.setitimer(signal.ITIMER_REAL, max(_LOOK, self._grace), _LOOK)

    def _unwatch(self) -> None:
        if self._alarm is not None:
            (handler, timer), self._alarm = self._alarm, None
            signal.setitimer(signal.ITIMER_REAL, *timer)
            signal.signal(signal.SIGALRM, handler)

    def _look(self, _: int, frame: FrameType | None) -> None:
        """Raises `StoppedWaiting` where the process is at the very instruction where it was at the last look.

        Raised anywhere, it might be lost: Python drops what is raised in a destructor or a callback, and reports it on
        standard error.
        """
        position = None if frame is None else (id(frame), frame.f_lasti)
        held_up, self._position = position == self._position, position
        while frame is not None:
            held_up &= frame.f_code.co_name != "__del__"
            frame = frame.f_back
        if held_up and self._waits:
            raise StoppedWaiting

    def _notice(self, number: int, _: FrameType | None) -> None:
        if self.received is not None and number != signal.SIGHUP:
            os._exit(128 + number)
        self.received = self.received or signal.Signals(number).name
        if self._waits:
            self._watch()


def default_device(gpu: int = 0) -> torch.device:
    """The best device of this machine; `gpu` is the index among several GPUs."""
    if torch.cuda.is_available():
        return torch.device("cuda", gpu)
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")
