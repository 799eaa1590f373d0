"""Buckets: read from real services on loopback, through a network that fails."""

from __future__ import annotations

import http.client
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from services import QUICK, Proxy, always, flaky, upload
from sessions import assert_nothing_left, mark, members, shared_memory
from tiny import Result, make_folder, read_log

from gaeanet.config.data import Data
from gaeanet.config.experiment import Hyperparameters, load_experiment
from gaeanet.data.images.transforms import TrainingTransform
from gaeanet.data.loading.loader import training_batches
from gaeanet.data.sources import bucket_folder
from gaeanet.data.sources.bucket_folder import BucketFolderSource
from gaeanet.data.sources.folder import FolderSource
from gaeanet.data.sources.open import open_location
from gaeanet.data.storage.bucket import BucketClient
from gaeanet.data.storage.bucket_index import BucketIndexes
from gaeanet.errors import RequestError, RunError
from gaeanet.runs.local import LocalContext
from gaeanet.training.train import train

Run = Callable[..., Result]
Write = Callable[..., Path]


def bucket(location: str, tmp_path: Path, **options: object) -> BucketFolderSource:
    client = BucketClient(location, QUICK)
    client.connect()
    return BucketFolderSource(client, cache=tmp_path / "cache", **options)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_training_from_a_bucket_equals_training_from_a_folder(
    request: pytest.FixtureRequest, gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path, scheme: str
) -> None:
    request.getfixturevalue("gcs" if scheme == "gs" else "s3")
    location = f"{scheme}://photos/{tmp_path.name}"
    upload(t3, location, lambda name: name.replace("val/", "validation/", 1))
    epochs = 2 if scheme == "gs" else 1
    config = experiment_file(data={"num_workers_train": 2, "num_workers_val": 2}, epochs=epochs)
    for name, data in (("folder", str(t3)), ("bucket", location)):
        result = gaeanet("train", config, "--data", data, "--run-dir", name)
        assert result.code == 0, result.err
    logs = [[{**line, "images_per_second": 0} for line in read_log(tmp_path / name)] for name in ("folder", "bucket")]
    assert logs[0] == logs[1]
    assert all(line["read_retries"] == 0 for line in logs[1])


def test_field_report_22_classes_and_labels_do_not_depend_on_listing_order(gcs: Proxy, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "images", classes=12, train=2, val=1)
    for split in ("train", "val"):
        for k in range(12):
            (folder / split / f"n{k:08d}").rename(folder / split / str(k))
    location = "gs://photos/report-22"
    upload(folder, location)
    gcs.backwards = True
    ours, theirs = bucket(location, tmp_path), FolderSource(str(folder))
    assert ours.catalog.classes == ("0", "1", "10", "11", "2", "3", "4", "5", "6", "7", "8", "9")
    assert ours.catalog.classes == theirs.catalog.classes
    assert ours.catalog.fingerprint == theirs.catalog.fingerprint
    for k in range(24):
        assert ours.read("train", k) == theirs.read("train", k)


def epoch_of(source: BucketFolderSource, workers: int = 0) -> tuple[int, list[int]]:
    """Retries in an epoch of single images, and each image's pixel sum."""
    hp = Hyperparameters(image_size=32, color_jitter=False)
    batches = list(training_batches(source, TrainingTransform(hp), global_batch=6, epochs=1, seed=1, workers=workers))
    return sum(b.retries for b in batches), [int(x) for b in batches for x in b.images.long().sum((1, 2, 3))]


def test_field_report_36_an_epoch_over_a_failing_network_holds_every_image_once(
    gcs: Proxy,
    tmp_path: Path,
    experiment_file: Write,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = make_folder(tmp_path / "images", train=20)
    location = "gs://photos/report-36"
    upload(folder, location)
    source = bucket(location, tmp_path)
    _, plain = epoch_of(source)
    gcs.faults = flaky(0.1, ("reset", "429", "503", "short", "stall", "other bytes"))
    gcs.seen.clear()
    retries, sums = epoch_of(source, workers=2)
    failed = sum(count for fault, count in gcs.seen.items() if fault not in ("requests", "None"))
    assert sums == plain
    assert len(sums) == 60
    assert retries >= failed > 0

    # and in the log of a run
    path = experiment_file(data={"location": location, "num_workers_train": 2}, epochs=1, global_batch_size=12)
    gcs.faults = flaky(0.2, ("reset", "429", "503", "short"), seed=3)
    gcs.seen.clear()
    monkeypatch.setattr("gaeanet.training.loop._write_report", lambda *_: None)  # it reads pictures after the last line
    train(load_experiment(path), source, LocalContext(tmp_path / "run"))
    lines = read_log(tmp_path / "run")
    failed = sum(gcs.seen[fault] for fault in ("reset", "429", "503", "short"))
    assert sum(line["read_retries"] for line in lines) >= failed > 0
    assert lines[-1]["count"] == 9


@pytest.mark.parametrize(("fault", "words"), [("403", "permission denied (403)"), ("404", "not found (404)")])
def test_field_report_36_a_permanent_error_names_the_object_at_once(
    gcs: Proxy,
    t3: Path,
    tmp_path: Path,
    fault: str,
    words: str,
) -> None:
    location = "gs://photos/report-36b"
    upload(t3, location)
    source = bucket(location, tmp_path)
    gcs.faults = always(fault, "train_4")
    gcs.seen.clear()
    begin = time.monotonic()
    with pytest.raises(RunError) as error:
        source.read("train", 4)
    assert time.monotonic() - begin < 5
    assert gcs.seen[fault] == 1
    assert source.retries == 0
    assert f"{location}/train/n00000000/train_4.JPEG: {words}" in str(error.value)


def test_field_report_36_a_run_stops_within_five_seconds_and_names_the_object(
    gcs: Proxy, gaeanet: Run, experiment_file: Write, t3: Path
) -> None:
    location = "gs://photos/report-36d"
    upload(t3, location)
    gcs.faults = always("404", "train/n00000001/train_4")
    begin = time.monotonic()
    result = gaeanet("train", experiment_file(epochs=1), "--data", location)
    assert time.monotonic() - begin < 5
    assert result.code == 1
    assert f"{location}/train/n00000001/train_4.JPEG: not found (404); if the bucket has changed, remove" in result.err
    assert gcs.seen["404"] == 1


def test_field_report_36_patience_ends(gcs: Proxy, t3: Path, tmp_path: Path) -> None:
    location = "gs://photos/report-36c"
    upload(t3, location)
    source = bucket(location, tmp_path)
    for fault, words in (("503", "HTTP status 503"), ("short", "error"), ("other bytes", "another digest")):
        gcs.faults = always(fault, "train_2")
        with pytest.raises(RunError, match=rf"train_2.JPEG: gave up after 8 tries: .*{words}"):
            source.read("train", 2)


def test_field_report_35_workers_open_their_own_client(gcs: Proxy, t3: Path, tmp_path: Path) -> None:
    location = "gs://photos/report-35"
    upload(t3, location)
    source = bucket(location, tmp_path)
    source.read("train", 0)  # the client of this process has been used
    pid = os.fork()
    if pid == 0:  # where forking anyway would hang, there is an error
        try:
            source._client.get("train/n00000000/train_0.JPEG", lambda _: None)
        except RunError as error:
            os._exit(7 if "before this process was forked" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    begin = time.monotonic()
    hp = Hyperparameters(image_size=32, color_jitter=False)
    batches = training_batches(source, TrainingTransform(hp), global_batch=6, epochs=2, seed=1, workers=2)
    assert sum(len(batch.labels) for batch in batches) == 36
    assert time.monotonic() - begin < 20


def test_the_listing_is_read_once_and_looked_at_again(gcs: Proxy, t3: Path, tmp_path: Path) -> None:
    location = "gs://photos/listing"
    upload(t3, location)
    first = bucket(location, tmp_path)
    index = first._index
    written = index.read_bytes()
    gcs.seen.clear()
    assert bucket(location, tmp_path)._index == index
    assert gcs.seen["requests"] == 9  # connect; per split: the class folders, and the objects of each of three
    (t3 / "train" / "n00000001" / "another.JPEG").write_bytes(
        (t3 / "train" / "n00000001" / "train_1.JPEG").read_bytes()
    )
    upload(t3, location)
    second = bucket(location, tmp_path)
    assert len(second.catalog.train) == 19
    # a run that has begun keeps its index, in workers that it starts later too
    assert index.read_bytes() == written
    assert len(pickle.loads(pickle.dumps(first)).catalog.train) == 18
    second._index.write_bytes(written[:300])
    assert len(bucket(location, tmp_path).catalog.train) == 19


@given(st.lists(st.integers(1, 900), min_size=1, max_size=60), st.integers(1, 20_000))
def test_an_index_is_looked_at_in_whole_classes_until_enough(counts: list[int], enough: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bucket_folder, "_LOOKED_AT", enough)
        labels = bucket_folder._some_labels(np.array(counts))
    held = [counts[label] for label in labels]
    assert len(set(labels)) == len(labels)
    assert sum(held[:-1]) < enough
    assert sum(held) >= min(enough, sum(counts))


def test_field_report_24_hidden_folders_and_other_objects_are_skipped_with_a_note(
    gcs: Proxy, t3: Path, tmp_path: Path
) -> None:
    (t3 / "train" / ".ipynb_checkpoints").mkdir()
    (t3 / "train" / ".ipynb_checkpoints" / "x.jpg").write_text("x")
    (t3 / "train" / "n00000001" / "notes.txt").write_text("x")
    (t3 / "train" / "README.txt").write_text("x")
    upload(t3, "gs://photos/strays")
    for _ in range(2):  # listed, and from the index
        source = bucket("gs://photos/strays", tmp_path)
        assert source.catalog.fingerprint == FolderSource(str(t3)).catalog.fingerprint
        assert source.notes == [
            "gs://photos/strays/train: skipped 1 object that is no image by name (n00000001/notes.txt)"
        ]


def test_indexes_not_used_for_a_month_are_forgotten(tmp_path: Path) -> None:
    indexes = BucketIndexes("gs://a/b", tmp_path, "listing")
    others = BucketIndexes("gs://a/c", tmp_path, "listing")
    for path in (indexes.path("old"), indexes.path("new"), others.path("old")):
        path.touch()
        os.utime(path, (0, 0) if "old" in path.name else None)
    assert indexes.newest() == indexes.path("new")
    indexes.use(indexes.path("new"))
    assert sorted(path.exists() for path in (indexes.path("old"), others.path("old"))) == [False, True]


def test_a_cache_that_cannot_be_written_is_refused_by_name(gcs: Proxy, t3: Path, tmp_path: Path) -> None:
    upload(t3, "gs://photos/no-cache")
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match=r"file/x: cannot be written: .*; set data.data_download_dir"):
        open_location("gs://photos/no-cache", Data(data_download_dir=str(tmp_path / "file" / "x")))


def test_requests_repeated_while_listing_are_told(gcs: Proxy, t3: Path, tmp_path: Path) -> None:
    upload(t3, "gs://photos/told")
    failed: list[str] = []

    def faults(method: str, path: str) -> str | None:
        if "n00000001" not in path or path in failed:
            return None
        failed.append(path)
        return "503"

    gcs.faults = faults
    source = bucket("gs://photos/told", tmp_path)
    assert "2 requests had to be repeated while the bucket was listed" in source.notes
    assert len(source.catalog.train) == 18


def test_what_a_bucket_lacks_is_refused_by_name(
    gcs: Proxy,
    t3: Path,
    tmp_path: Path,
    gaeanet: Run,
    experiment_file: Write,
) -> None:
    def refusal(location: str, **data: object) -> str:
        with pytest.raises(RequestError) as error:
            open_location(location, Data(**data))  # type: ignore[arg-type]
        return str(error.value)

    upload(t3 / "train", "gs://photos/no-val/train")
    assert "gs://photos/no-val: has no val/ or validation/ folder" in refusal("gs://photos/no-val")
    assert "gs://photos/nothing-here: has no train/ folder" in refusal("gs://photos/nothing-here")
    assert "gs://no-such-bucket: not found (404)" in refusal("gs://no-such-bucket")
    assert "give a directory, or gs://" in refusal("ftp://x/y")
    assert "data_download_dir must say where" in refusal("gs://photos/no-val", streaming=False)
    upload(t3, "gs://photos/differs")
    upload(t3 / "train" / "n00000001", "gs://photos/differs/train/extra")
    assert "validation lacks 1 class (extra)" in refusal("gs://photos/differs")


def test_a_prefix_too_high_or_too_low_is_told_the_right_one(gcs: Proxy, t3: Path) -> None:
    upload(t3, "gs://photos/hints/imagenet")
    for wrong in (
        "gs://photos/hints",
        "gs://photos/hints/imagenet/train",
        "gs://photos/hints/imagenet/train/n00000001",
    ):
        with pytest.raises(RequestError) as error:
            open_location(wrong)
        assert str(error.value) == (f"{wrong}: has no train/ folder in it; did you mean gs://photos/hints/imagenet?")


def test_a_flat_validation_folder_in_a_bucket_is_refused_with_what_to_do(gcs: Proxy, t3: Path) -> None:
    upload(t3 / "train", "gs://photos/flat/train")
    upload(t3 / "val" / "n00000000", "gs://photos/flat/val")
    with pytest.raises(
        RequestError, match=r"validation lacks 3 classes .*\? copied to a disk, gaeanet prepare sorts it"
    ):
        open_location("gs://photos/flat")


def test_a_public_bucket_is_read_without_credentials(
    s3: Proxy, t3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = http.client.HTTPConnection(s3.url.removeprefix("http://"))
    for path in sorted(path for path in t3.rglob("*") if path.is_file()):
        headers = {"x-amz-acl": "public-read", "Authorization": "AWS4-HMAC-SHA256 Credential=x/20250101/us-east-1/s3"}
        server.request("PUT", f"/photos/public/{path.relative_to(t3).as_posix()}", path.read_bytes(), headers)
        assert server.getresponse().read() is not None
    server.close()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")  # nobody there, as on any machine at home
    begin = time.monotonic()
    source = open_location("s3://photos/public")
    assert time.monotonic() - begin < 10
    assert "read without credentials" in source.notes
    assert source.read("train", 3) == FolderSource(str(t3)).read("train", 3)
    with pytest.raises(RequestError, match=r"not found \(404\) \(no S3 credentials were found here\)"):
        open_location("s3://no-such-bucket/x")


@pytest.mark.parametrize(
    "settings",
    [
        {"AZURE_STORAGE_ACCOUNT": "lab", "AZURE_STORAGE_KEY": "a2V5"},
        {"AZURE_STORAGE_CONNECTION_STRING": "AccountName=lab;AccountKey=a2V5MQ=="},
        {"AZURE_STORAGE_ACCOUNT_NAME": "lab", "AZURE_STORAGE_ACCOUNT_KEY": "a2V5"},
        {"AZURE_STORAGE_ACCOUNT": "lab", "AZURE_STORAGE_SAS_TOKEN": "sv=1&sig=x"},
        {"AZURE_STORAGE_ACCOUNT": "lab"},
        {},
    ],
)
def test_azure_is_asked_with_the_settings_of_its_own_tools(
    s3_server: Proxy, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No Azure server is at hand: what is looked at is the request, which the proxy answers with an error."""
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    for name, value in {**settings, "AZURE_STORAGE_ENDPOINT": s3_server.url}.items():
        monkeypatch.setenv(name, value)
    asked: list[str] = []
    s3_server.faults = lambda method, path: asked.append(path) or "403"  # type: ignore[func-returns-value]
    with pytest.raises(RequestError) as error:
        BucketClient("az://container/pre/fix", QUICK).connect()
    if not settings:
        assert "az://container/pre/fix: the storage account is not known: set AZURE_STORAGE_ACCOUNT" in str(error.value)
        assert not asked
        return
    assert "az://container/pre/fix: permission denied (403)" in str(error.value)
    assert asked[0].startswith("/container?restype=container&comp=list&prefix=pre/fix/")
    assert ("sig=x" in asked[0]) == ("AZURE_STORAGE_SAS_TOKEN" in settings)
    without = [*settings] == ["AZURE_STORAGE_ACCOUNT"]
    assert ("no Azure credentials were found" in str(error.value)) == without


def test_keys_of_an_aws_profile_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gaeanet.data.storage.credentials import has_credentials, settings_of

    for name in ("AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL", "AWS_WEB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    assert not has_credentials("s3")
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = A\naws_secret_access_key = B%C\n")
    (tmp_path / "config").write_text("[profile lab]\nregion = eu-west-1\n")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert has_credentials("s3")
    assert settings_of("s3") == {"region": "eu-west-1", "aws_access_key_id": "A", "aws_secret_access_key": "B%C"}


@pytest.mark.slow
def test_field_report_39_workers_of_a_killed_run_end_too(
    gcs: Proxy,
    experiment_file: Write,
    t3: Path,
    tmp_path: Path,
) -> None:
    """Workers that read from a bucket are children of a server, which does not notice that the run was killed."""
    upload(t3, "gs://photos/orphans")
    config = experiment_file(data={"num_workers_train": 2, "location": "gs://photos/orphans"}, epochs=1000)
    command = [sys.executable, "-m", "gaeanet.cli", "train", str(config), "--run-dir", str(tmp_path / "run")]
    log = tmp_path / "run" / "metrics.jsonl"
    segments, marked = shared_memory(), mark()
    quiet = {"stdout": subprocess.DEVNULL, "env": {**os.environ, "OMP_NUM_THREADS": "1", **marked}}
    run = subprocess.Popen(command, **quiet)
    end = time.monotonic() + 60
    while not (log.exists() and log.stat().st_size):
        assert run.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)
    assert len(members(marked)) > 2
    run.kill()
    run.wait()
    assert_nothing_left(marked, segments)
