"""Failures of the machine end in one line with a remedy; faults of the program stay visible."""

from __future__ import annotations

import errno

import pytest
import torch.distributed as dist

from gaeanet.cli.diagnose import explained


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (RuntimeError("received 0 items of ancdata"), "ulimit -n"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "max_batch_per_slot"),
        (
            RuntimeError("DataLoader worker (pid 3) is killed by signal: Bus error. insufficient shared memory"),
            "/dev/shm",
        ),
        (RuntimeError("DataLoader worker (pid(s) 3) exited unexpectedly"), "num_workers_train"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"), "failed first"),
        (
            RuntimeError("Failed to recv, got 0 bytes. Connection was likely closed. Did the server crash?"),
            "failed first",
        ),
        (RuntimeError("wait timeout after 300000ms, keys: /gaeanet/token/1"), "failed first"),
        (dist.DistNetworkError("failed to recv, got 0 bytes"), "failed first"),  # PyTorch 2.6's
        (dist.DistStoreError("in words of some other release"), "failed first"),
        (OSError(errno.ENOSPC, "No space left on device", "/run/metrics.jsonl"), "/run/metrics.jsonl: no space left"),
    ],
)
def test_field_report_47_a_known_failure_gets_its_remedy(error: Exception, remedy: str) -> None:
    found = explained(error)
    assert found is not None
    assert remedy in str(found)
    assert "\n" not in str(found)


def test_a_fault_of_the_program_is_not_explained_away() -> None:
    assert explained(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert explained(KeyError("gloo")) is None
