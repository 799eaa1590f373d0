"""Field report 47: what workers take of shared memory and open files is worked out before it runs out."""

from __future__ import annotations

import os
import resource
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import NET, make_folder

from gaeanet.config.experiment import Experiment, experiment_from
from gaeanet.data.images.transforms import TrainingTransform
from gaeanet.data.loading.loader import training_batches
from gaeanet.data.loading.workers import PREFETCH
from gaeanet.data.sources.folder import FolderSource
from gaeanet.errors import RequestError
from gaeanet.training import preflight as limits
from gaeanet.training.preflight import check_open_files, check_shared_memory, needed_bytes, needed_files


def experiment(workers: int, **hyperparameters: Any) -> Experiment:
    data = {"num_workers_train": workers, "num_workers_val": 0}
    return experiment_from({"data": data, "hyperparameters": {**NET, **hyperparameters}})


@pytest.fixture(autouse=True)
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "usable_workers", lambda asked: asked)


def test_the_estimate_counts_whole_batches() -> None:
    one = needed_bytes(experiment(1, image_size=224, global_batch_size=128), 1, 1)
    assert one == PREFETCH * 128 * 3 * 224 * 224
    assert needed_bytes(experiment(16, image_size=224, global_batch_size=1024), 8, 8) == 8 * 16 * one
    assert needed_bytes(experiment(16, image_size=224, global_batch_size=1024), 8, 4) == 4 * 16 * one
    assert needed_bytes(experiment(0), 1, 1) == 0


def test_the_estimate_is_what_a_batch_really_takes(tmp_path: Any) -> None:
    exp = experiment(1, image_size=64, train_image_size=[32, 64], epochs=3, global_batch_size=6)
    source = FolderSource(str(make_folder(tmp_path / "t3")))
    transform = TrainingTransform(exp.hyperparameters)
    batches = training_batches(source, transform, global_batch=6, epochs=3, seed=0)
    largest = max(batch.images.untyped_storage().nbytes() for batch in batches)
    assert needed_bytes(exp, 1, 1) == PREFETCH * largest


def test_too_little_memory_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    room = SimpleNamespace(f_bavail=16384, f_frsize=4096)  # 64 MiB, as docker gives
    monkeypatch.setattr(os, "statvfs", lambda path: room)
    monkeypatch.setattr(limits, "SHM", limits.SHM.parent)
    check_shared_memory(experiment(2))
    with pytest.raises(
        RequestError, match=r"has 67 MB free.*16 workers.*up to 1,233 MB.*--shm-size=2g.*num_workers_train"
    ):
        check_shared_memory(experiment(16, image_size=224, global_batch_size=128))


def test_the_limit_on_open_files_is_raised_as_far_as_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"limits": (32, 4096)}
    monkeypatch.setattr(resource, "getrlimit", lambda what: now["limits"])
    monkeypatch.setattr(resource, "setrlimit", lambda what, limits: now.update(limits=limits))
    check_open_files(experiment(4))
    assert now["limits"] == (needed_files(experiment(4)), 4096)
    now["limits"] = (32, 64)
    with pytest.raises(RequestError, match=r"may open 64 files.*may need 128.*ulimit -n 4096.*num_workers_train"):
        check_open_files(experiment(4))
