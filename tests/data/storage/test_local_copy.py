"""The local copy of a bucket: whole files only, whoever is killed, however many write."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from readers import read_all, reads, reads_and_compares
from services import Proxy, flaky, upload
from tiny import Result, make_folder

from gaeanet.config.data import Data
from gaeanet.data.prepare.prepare import prepare
from gaeanet.data.sources.folder import FolderSource
from gaeanet.data.sources.open import open_location
from gaeanet.data.sources.shards import ShardSource
from gaeanet.data.sources.source import Source
from gaeanet.data.storage.local_copy import LocalCopy, directory_of
from gaeanet.errors import RequestError, RunError

Run = Callable[..., Result]


def copied(location: str, folder: Path, **options: str) -> Source:
    return open_location(location, Data(streaming=False, data_download_dir=str(folder), **options))


def kept_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.suffix in (".JPEG", ".tar"))


def upload_as(form: str, images: Path, location: str) -> Path:
    """Uploads class folders as they are, or as shards, and returns what was uploaded."""
    root = images
    if form == "shards":
        root = images.with_name("shards")
        prepare(str(images), root, shards=True, shard_bytes=12_000)
    upload(root, location)
    return root


@pytest.mark.parametrize("form", ["folder", "shards"])
def test_field_report_37_killed_at_any_moment_every_image_equals_the_source(
    gcs: Proxy,
    tmp_path: Path,
    form: str,
) -> None:
    images = make_folder(tmp_path / "images", train=12)
    location = f"gs://photos/copy-{form}"
    upload_as(form, images, location)
    expected = read_all(FolderSource(str(images)))
    source = copied(location, tmp_path / "copy")
    context = multiprocessing.get_context("forkserver")
    place = directory_of(location, tmp_path / "copy")
    gcs.delay = 0.05
    for goal in (1, 9_000, 20_000, 35_000, 50_000):  # bytes that are kept when the reader is killed
        process = context.Process(target=reads, args=(source,))
        process.start()
        deadline = time.monotonic() + 30
        while kept_bytes(place) < goal and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "ended before it could be killed"
    gcs.delay = 0.0
    # what a kill in the middle of a write, or a disk, may have left
    (place / ".partial" / f"{'0' * 16}.{os.uname().nodename}.999999999.00000000").write_bytes(b"half")
    again = copied(location, tmp_path / "copy")
    assert read_all(again) == expected
    gcs.seen.clear()
    assert read_all(again) == expected
    assert gcs.seen["requests"] == 0  # everything is on this machine now
    assert [path.name for path in (place / ".partial").iterdir() if not path.name.endswith(".lock")] == []


@pytest.mark.parametrize("form", ["folder", "shards"])
def test_field_report_37_four_processes_share_a_copy(gcs: Proxy, tmp_path: Path, form: str) -> None:
    images = make_folder(tmp_path / "images")
    location = f"gs://photos/shared-{form}"
    uploaded = upload_as(form, images, location)
    expected = read_all(FolderSource(str(images)))
    source = copied(location, tmp_path / "copy")
    gcs.seen.clear()
    gcs.delay = 0.02
    context = multiprocessing.get_context("forkserver")
    readers = [context.Process(target=reads_and_compares, args=(source, expected)) for _ in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(30)
    assert [reader.exitcode for reader in readers] == [0, 0, 0, 0]
    if form == "shards":  # one of them fetched each shard
        assert gcs.seen["requests"] == len(list(uploaded.glob("*.tar")))


def test_field_report_37_the_copy_stays_below_its_limit_and_says_so(gcs: Proxy, tmp_path: Path) -> None:
    images = make_folder(tmp_path / "images", train=40, val=3)
    upload(images, "gs://photos/limited")
    source = copied("gs://photos/limited", tmp_path / "copy", cache_size="0.1 MB")
    assert "fit in data.cache_size, the rest is read each time" in source.notes[0]
    for _ in range(2):
        assert read_all(source) == read_all(FolderSource(str(images)))
    assert 90_000 < kept_bytes(tmp_path / "copy") <= 100_000


def test_field_report_37_copies_of_two_buckets_do_not_mix(gcs: Proxy, tmp_path: Path) -> None:
    for name, train in (("one", 3), ("two", 4)):
        images = make_folder(tmp_path / name, train=train)
        victim = images / "train" / "n00000000" / "train_0.JPEG"
        victim.write_bytes((images / "train" / f"n0000000{train - 2}" / "train_1.JPEG").read_bytes())
        upload(images, f"gs://photos/{name}")
    sources = [copied(f"gs://photos/{name}", tmp_path / "copy") for name in ("one", "two")]
    for _ in range(2):
        assert sources[0].read("train", 0) != sources[1].read("train", 0)


def test_field_report_37_a_kept_file_that_is_not_right_is_fetched_again(gcs: Proxy, t3: Path, tmp_path: Path) -> None:
    upload(t3, "gs://photos/again")
    source = copied("gs://photos/again", tmp_path / "copy")
    right = source.read("train", 5)
    path = next((tmp_path / "copy").rglob("train_5.JPEG"))
    for wrong in (right[:100], bytes(len(right)), b""):
        path.write_bytes(wrong)
        assert source.read("train", 5) == right
        assert path.read_bytes() == right
    gcs.faults = flaky(0.5, ("other bytes", "short"))
    assert read_all(source) == read_all(FolderSource(str(t3)))


def test_a_shard_that_arrives_damaged_is_not_kept(gcs: Proxy, t3: Path, tmp_path: Path) -> None:
    prepare(str(t3), tmp_path / "shards", shards=True)
    victim = tmp_path / "shards" / "train-000000.tar"
    whole = victim.read_bytes()
    victim.write_bytes(whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:])
    upload(tmp_path / "shards", "gs://photos/damaged-shard")
    source = copied("gs://photos/damaged-shard", tmp_path / "copy")
    with pytest.raises(RunError, match=r"train-000000.tar: n.*: the \d+ bytes have another digest than the index says"):
        source.read("train", 3)
    assert not list((tmp_path / "copy").rglob("train-*.tar"))
    victim.write_bytes(whole)
    assert ShardSource(str(tmp_path / "shards")).read("train", 3) == FolderSource(str(t3)).read("train", 3)


def test_a_disk_that_is_too_small_is_refused_at_the_start(tmp_path: Path) -> None:
    sizes = {"val": np.array([10**15]), "train": np.array([10, 20, 30])}
    with pytest.raises(
        RequestError, match=r"the local copy would take 1000000.0 GB more, .* set data.cache_size to less"
    ):
        LocalCopy(tmp_path / "copy", sizes, None)
    copy = LocalCopy(tmp_path / "copy", {"train": sizes["train"]}, 30)
    assert [copy.keeps("train", k) for k in range(3)] == [True, True, False]
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="data.data_download_dir: .* cannot be written"):
        LocalCopy(tmp_path / "file" / "x", {"train": sizes["train"]}, None)
