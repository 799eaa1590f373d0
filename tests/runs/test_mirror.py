"""Checkpoints in a bucket: a run goes on where its own machine is gone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from launch import alone, joined, together
from services import QUICK, Proxy, always
from tiny import Result, read_log, same_but_for_speed, same_checkpoints

from gaeanet.artifacts.checkpoint import load
from gaeanet.runs import mirror
from gaeanet.runs.mirror import Mirror

Run = Callable[..., Result]
Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror.Mirror.__init__, "__defaults__", (QUICK,))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_another_machine_goes_on_from_the_bucket(
    request: pytest.FixtureRequest, gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path, scheme: str
) -> None:
    request.getfixturevalue("gcs" if scheme == "gs" else "s3")
    location = f"{scheme}://photos/{tmp_path.name}/run"
    straight = gaeanet("train", experiment_file(epochs=4, checkpoint_every=3), "--data", t3, "--run-dir", "straight")
    assert straight.code == 0, straight.err
    settings = {"checkpoint_every": 3, "checkpoint_bucket": location}
    # Half of it here; the rate is that of four epochs, so that the halves make a whole.
    config = experiment_file(epochs=4, **settings)
    run = tmp_path / "here"
    assert gaeanet("train", config, "--data", t3, "--run-dir", run).code == 0
    there = Mirror(location)
    assert list(there.checkpoints()) == sorted(p.name for p in (run / "checkpoints").glob("step-*"))
    # The first machine is gone; what lay in the bucket after step 9 is all that is left.
    shutil.rmtree(run)
    for name in list(there.checkpoints())[1:]:
        there._client.delete(f"checkpoints/{name}/manifest.json")
    left = list(there.checkpoints())
    result = gaeanet("train", config, "--data", t3, "--run-dir", run, "--resume")
    assert result.code == 0, result.err
    assert f"downloaded {left[0]} from {location}" in result.out
    mine, others = (load(folder / "checkpoints" / "latest")[0] for folder in (run, tmp_path / "straight"))
    assert mine.keys() == others.keys()
    assert all(torch.equal(value, others[group][name]) for group in mine for name, value in mine[group].items())
    assert same_but_for_speed(read_log(tmp_path / "straight"), read_log(run))


@pytest.mark.slow
def test_machines_that_share_no_directory_go_on_from_the_bucket(
    gcs: Proxy, experiment_file: Write, t3: Path, tmp_path: Path
) -> None:
    """The second time on other machines, one of which has another run's checkpoint in the directory of that name."""
    location = f"gs://photos/{tmp_path.name}/run"
    config = experiment_file(epochs=4, checkpoint_every=3, checkpoint_bucket=location)
    arguments = ["train", config, "--data", t3, "--run-dir", "run"]
    homes = [tmp_path / name for name in ("a", "b", "c", "d")]
    for home in homes:
        home.mkdir()
    joined(together(2, arguments, tmp_path / "out", homes[:2]), tmp_path / "out")
    there = Mirror(location)
    for name in list(there.checkpoints())[1:]:
        there._client.delete(f"checkpoints/{name}/manifest.json")
    (left,) = there.checkpoints()

    other = experiment_file("other", epochs=4, checkpoint_every=3, seed=1)
    alone(["train", other, "--data", t3, "--run-dir", homes[3] / "run"], tmp_path / "other").join(120)
    assert (homes[3] / "run" / "checkpoints" / left).is_dir()
    out = joined(together(2, [*arguments, "--resume"], tmp_path / "out", homes[2:]), tmp_path / "out")
    assert f"downloaded {left} from {location}" in out
    same_checkpoints(homes[0] / "run", homes[2] / "run")
    assert same_but_for_speed(read_log(homes[0] / "run"), read_log(homes[2] / "run"))


def test_a_bucket_that_holds_a_run_is_not_written_over(
    gcs: Proxy,
    gaeanet: Run,
    experiment_file: Write,
    t3: Path,
) -> None:
    config = experiment_file(epochs=1, checkpoint_bucket="gs://photos/taken")
    assert gaeanet("train", config, "--data", t3, "--run-dir", "a").code == 0
    refused = gaeanet("train", config, "--data", t3, "--run-dir", "b")
    assert refused.code == 2
    assert refused.err == (
        "gaeanet: gs://photos/taken already holds a run: continue it with --resume, or change "
        "hyperparameters.checkpoint_bucket\n"
    )


def test_a_bucket_that_cannot_be_written_is_refused_before_the_first_step(
    gcs: Proxy,
    gaeanet: Run,
    experiment_file: Write,
    t3: Path,
    tmp_path: Path,
) -> None:
    gcs.faults = lambda method, path: "403" if method == "PUT" else None
    result = gaeanet("train", experiment_file(checkpoint_bucket="gs://photos/closed"), "--data", t3, "--run-dir", "r")
    assert result.code == 1
    assert "gs://photos/closed/" in result.err
    assert "403" in result.err
    assert result.err.count("\n") == 1
    assert not (tmp_path / "r" / "metrics.jsonl").read_text()


def test_a_copy_that_fails_on_the_way_is_told_and_the_run_goes_on(
    gcs: Proxy,
    gaeanet: Run,
    experiment_file: Write,
    t3: Path,
) -> None:
    def one_is_refused(method: str, path: str) -> str | None:
        return "403" if method == "PUT" and "step-000000004" in path else None

    gcs.faults = one_is_refused
    config = experiment_file(epochs=3, checkpoint_bucket="gs://photos/gap", keep_best=3, keep_latest=3)
    result = gaeanet("train", config, "--data", t3, "--run-dir", "r")
    assert result.code == 0, result.err
    assert "the last copy to the bucket failed: gs://photos/gap/checkpoints/step-000000004/" in result.out
    assert "step-000000012" in Mirror("gs://photos/gap").checkpoints()


def test_a_last_copy_that_fails_ends_the_run_with_a_failure(
    gcs: Proxy,
    gaeanet: Run,
    experiment_file: Write,
    t3: Path,
) -> None:
    gcs.faults = always("403", "step-000000008")
    result = gaeanet("train", experiment_file(checkpoint_bucket="gs://photos/late"), "--data", t3, "--run-dir", "r")
    assert result.code == 1
    assert (
        "everything is in r, but its mirror is incomplete: gs://photos/late/checkpoints/step-000000008/" in result.err
    )
