"""One life of a run in a forked process, for tests that end many of them."""

from __future__ import annotations

import multiprocessing
import os
import sys

import torch

import gaeanet.train
from gaeanet.cli import main

assert gaeanet.train  # imported once, before the forks


def live(arguments: list[str], output: str) -> None:
    """Runs a command line with its output in a file."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # as in a process that a shell started
    sys.exit(main(arguments))
