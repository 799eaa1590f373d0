"""Processes of a run that are forked from a server which has torch imported: a test can start and end many of them."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

import matplotlib.figure  # what a run imports on its way, once for all
import sharing
import torch

import gaeanet.report
import gaeanet.train
from gaeanet.cli import main

assert gaeanet.train
assert gaeanet.report
assert matplotlib.figure

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["lives"])


def start(arguments: list[str], output: Path, environment: dict[str, str] | None = None) -> BaseProcess:
    """Starts `gaeanet ARGUMENTS` in a session of its own, its output in a file; `share ...` runs sharing.py."""
    process = _server.Process(target=_live, args=(arguments, str(output), environment or {}))
    process.start()
    return process


def _live(arguments: list[str], output: str, environment: dict[str, str]) -> None:
    os.setsid()
    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # as in a process that a shell started
    if arguments[0] == "share":
        sharing.main(*arguments[1:])
    else:
        sys.exit(main(arguments))
