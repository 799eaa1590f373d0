"""Memory that a process keeps."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from gaeanet.runtime import host
if sys.argv[1] == "kept":
    host.keep_freed_memory()
def step():
    return [torch.ones(10_000_000) for _ in range(2)]
for _ in range(10):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_a_step_takes_the_pages_of_the_last_one() -> None:
    """Forty megabytes, twice a step, are 19,500 pages of 4 KiB."""
    if page_faults("left as it is") < 90_000:
        pytest.skip("this system does not make pages anew for every large block: its C library is not glibc")
    assert page_faults("kept") < 1_000
