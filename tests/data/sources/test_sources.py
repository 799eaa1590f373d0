"""Law 4: the same images as folder, bucket, shards and shards in a bucket are the same data set."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import lives
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save
from services import Proxy, upload
from tiny import Result, make_folder, read_log

from gaeanet.config.data import Data
from gaeanet.config.experiment import Hyperparameters
from gaeanet.data.images.decode import to_pixels
from gaeanet.data.images.transforms import TrainingTransform
from gaeanet.data.loading.loader import training_batches
from gaeanet.data.prepare.prepare import prepare
from gaeanet.data.sources import order
from gaeanet.data.sources.catalog import Catalog, Split, check_imagenet_is_whole, imagenet_wnids
from gaeanet.data.sources.index import catalog_arrays, read_index, write_index
from gaeanet.data.sources.open import open_location
from gaeanet.data.sources.shards import SHUFFLE_WINDOW, BucketShardSource, ShardSource
from gaeanet.data.sources.source import Source
from gaeanet.data.sources.splits import with_minival
from gaeanet.errors import RequestError, RunError

Run = Callable[..., Result]

MODEL_DEF = Path(__file__).parents[3] / "model_def.py"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """300 images for training and 60 for validation, of ten classes; some with odd names, one a PNG."""
    root = make_folder(tmp_path / "photos", classes=10, train=30, val=6)
    folder = root / "train" / "n00000003"
    (folder / "train_1.JPEG").rename(folder / "a b.c.ä.JPEG")
    (folder / "train_2.JPEG").rename(folder / f"{'long' * 40}.jpg")
    (folder / "train_3.JPEG").rename(folder / "a b_c_ä.JPEG")
    image = to_pixels((folder / "train_4.JPEG").read_bytes()).permute(1, 2, 0).numpy()
    Image.fromarray(image).save(folder / "train_4.JPEG", "PNG")
    return root


def draws(source: Source, **options: int) -> list[tuple[list[int], list[int]]]:
    hp = Hyperparameters(image_size=32, color_jitter=False)
    batches = training_batches(source, TrainingTransform(hp), global_batch=30, epochs=1, seed=5, **options)
    return [(b.images.long().sum((1, 2, 3)).tolist(), b.labels.tolist()) for b in batches]


def test_law_4_folder_bucket_shards_and_shards_in_a_bucket_are_one_data_set(
    gcs: Proxy,
    photos: Path,
    tmp_path: Path,
) -> None:
    shards = tmp_path / "shards"
    prepare(str(photos), shards, shards=True, shard_bytes=30_000)
    assert 5 < len(list(shards.glob("train-*.tar"))) <= 16
    upload(photos, "gs://photos/law-4/folder", lambda name: name.replace("val/", "validation/", 1))
    upload(shards, "gs://photos/law-4/shards")
    places = [str(photos), "gs://photos/law-4/folder", str(shards), "gs://photos/law-4/shards"]
    sources = [open_location(place) for place in places]
    assert [type(source).__name__ for source in sources] == [
        "FolderSource",
        "BucketFolderSource",
        "ShardSource",
        "BucketShardSource",
    ]
    first = sources[0].catalog
    orders = [first_order.tolist() for first_order in (sources[0].epoch_order(5, e) for e in range(2))]
    pixels = {
        split: [to_pixels(sources[0].read(split, k)) for k in range(len(first.split(split)))]
        for split in ("train", "val")
    }
    for source in sources[1:]:
        assert source.catalog.classes == first.classes
        assert source.catalog.fingerprint == first.fingerprint
        assert source.sizes_fingerprint == sources[1].sizes_fingerprint is not None
        assert [source.epoch_order(5, epoch).tolist() for epoch in range(2)] == orders
        for split, images in pixels.items():
            assert source.catalog.split(split).labels.tolist() == first.split(split).labels.tolist()
            for k, image in enumerate(images):
                assert torch.equal(to_pixels(source.read(split, k)), image)
    plain = draws(sources[0])
    for source in sources[1:]:
        assert draws(source, workers=2) == plain


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_shards_are_read_whole_and_once_an_epoch(
    gcs: Proxy, photos: Path, tmp_path: Path, workers: int
) -> None:
    shards = tmp_path / "shards"
    prepare(str(photos), shards, shards=True, shard_bytes=10_000)
    count = len(list(shards.glob("train-*.tar")))
    assert count > 2 * (SHUFFLE_WINDOW + 1)
    upload(shards, "gs://photos/streamed")
    source = open_location("gs://photos/streamed")
    read: list[str] = []
    gcs.faults = lambda method, path: read.append(path) if method == "GET" and "/train-" in path else None
    epoch = draws(source, workers=workers)
    assert epoch == draws(ShardSource(str(shards)))
    assert len(set(read)) == count
    # Workers drift apart, here by most of the epoch: a shard that one has left may be wanted by the other once more.
    assert len(read) <= (2 if workers else 1) * count
    window = list((tmp_path / "cache" / "gaeanet").glob("*.window/*.tar"))
    assert len(window) <= 2 * (SHUFFLE_WINDOW + 1)


def test_held_out_images_of_streamed_shards_are_requests_of_their_own(gcs: Proxy, photos: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    prepare(str(photos), shards, shards=True, shard_bytes=10_000)
    upload(shards, "gs://photos/held-out")
    source = with_minival(open_location("gs://photos/held-out"), 0.1)
    read: list[str] = []
    gcs.faults = lambda method, path: read.append(path) if method == "GET" and "/train-" in path else None
    found = list(source.fetch("val", range(30)))
    assert found == list(with_minival(ShardSource(str(shards)), 0.1).fetch("val", range(30)))
    assert len(read) == 30
    assert not list((tmp_path / "cache" / "gaeanet").glob("*.window/*.tar"))


def test_a_shard_that_changed_under_a_stream_is_read_sample_by_sample(gcs: Proxy, photos: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    prepare(str(photos), shards, shards=True, shard_bytes=4_000)
    upload(shards, "gs://photos/changed")
    source = open_location("gs://photos/changed")
    expected = list(source.fetch("train", range(20)))
    for path in (tmp_path / "cache" / "gaeanet").glob("*.window/*.tar"):
        path.write_bytes(bytes(path.stat().st_size))
    assert list(source.fetch("train", range(20))) == expected


def test_any_tool_reads_the_shards(photos: Path, tmp_path: Path) -> None:
    import webdataset

    shards = tmp_path / "shards"
    prepare(str(photos), shards, shards=True, shard_bytes=100_000)
    source = ShardSource(str(shards))
    names = [source.catalog.train.name(k) for k in range(300)]
    expected = sorted((source.read("train", k), int(source.catalog.train.labels[k])) for k in range(300))
    urls = [str(path) for path in sorted(shards.glob("train-*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert sorted((sample["jpg"], int(sample["cls"])) for sample in samples) == expected
    assert len({sample["__key__"] for sample in samples}) == 300
    assert all(sample["__key__"].split("/")[0] == f"n{int(sample['cls']):08d}" for sample in samples)
    with tarfile.open(urls[0]) as tar:
        assert tar.getnames()[0].endswith(".jpg")
        assert tar.getnames()[1].endswith(".cls")
    assert f"n00000003/{'long' * 40}.jpg" in names


def test_field_report_33_batches_are_mixed_and_epochs_differ(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "photos", classes=10, train=30, val=1)
    shards = tmp_path / "shards"
    prepare(str(root), shards, shards=True, shard_bytes=8_000)
    source = ShardSource(str(shards))
    assert len(source._shards["train"]) > 2 * 16  # more than the window
    orders = [source.epoch_order(0, epoch) for epoch in range(3)]
    for sequence in orders:
        assert sorted(sequence) == list(range(300))
        distinct = [len(set(source.catalog.train.labels[sequence[k : k + 16]])) for k in range(0, 288, 16)]
        assert np.mean(distinct) > 5
        assert min(distinct) > 1
    assert orders[0].tolist() != orders[1].tolist() != orders[2].tolist()
    assert source.epoch_order(0, 0).tolist() == orders[0].tolist()
    assert source.epoch_order(1, 0).tolist() != orders[0].tolist()
    # in the batches of persistent workers too
    assert draws(source, workers=2) == draws(source)


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 8), st.integers(0, 2**63 - 1), st.integers(0, 99))
def test_a_windowed_order_visits_every_sample_and_few_shards_at_a_time(
    shards: int, each: int, window: int, seed: int, epoch: int
) -> None:
    shard_of = np.repeat(np.arange(shards, dtype=np.int32), each)
    sequence = order.windowed_order(shard_of, shards, window, seed, epoch)
    assert sorted(sequence) == list(range(shards * each))
    if shards <= window:
        assert sequence.tolist() == order.epoch_order(shards * each, seed, epoch).tolist()
        return
    seen = shard_of[sequence]
    first = {shard: np.flatnonzero(seen == shard)[0] for shard in range(shards)}
    last = {shard: np.flatnonzero(seen == shard)[-1] for shard in range(shards)}
    for position in range(len(seen)):
        assert sum(first[shard] <= position <= last[shard] for shard in range(shards)) <= window + 1


def test_field_report_31_every_process_has_the_same_number_of_batches(tmp_path: Path) -> None:
    begin = time.monotonic()
    root = make_folder(tmp_path / "photos", classes=3, train=3, val=1)
    for name, shard_bytes, world, workers in (("three", 2_500, 2, 0), ("one", 10**6, 2, 2)):
        shards = tmp_path / name
        prepare(str(root), shards, shards=True, shard_bytes=shard_bytes)
        source = ShardSource(str(shards))
        counts = np.bincount(source._where["train"][0])
        assert (len(counts) == 1) if name == "one" else (len(set(counts)) > 1)
        hp = Hyperparameters(image_size=32, color_jitter=False)
        parts = [
            list(
                training_batches(
                    source,
                    TrainingTransform(hp),
                    global_batch=3,
                    epochs=1,
                    seed=0,
                    rank=rank,
                    world_size=world,
                    workers=workers,
                )
            )
            for rank in range(world)
        ]
        assert {len(part) for part in parts} == {3}
        assert sum(len(batch.labels) for part in parts for batch in part) == 9
        assert sorted(x for part in parts for b in part for x in b.labels.tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert time.monotonic() - begin < 20


@pytest.mark.slow
def test_field_report_31_torchrun_ends_whatever_the_shards_hold(
    experiment_file: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_folder(tmp_path / "photos", classes=3, train=3, val=1)
    shards = tmp_path / "shards"
    prepare(str(root), shards, shards=True, shard_bytes=2_500)
    counts = np.bincount(ShardSource(str(shards))._where["train"][0])
    assert len(set(counts)) > 1
    config = experiment_file(epochs=1, data={"num_workers_train": 2})
    command = ["torchrun", "--standalone", "--nproc_per_node", "2"]
    command += [str(MODEL_DEF), str(config), "--data", str(shards), "--run-dir", str(tmp_path / "run")]
    code, said = lives.run(command, tmp_path / "said", {"CUDA_VISIBLE_DEVICES": ""}, timeout=120)
    assert code == 0, said
    assert "2 steps an epoch" in said  # said before the first
    lines = read_log(tmp_path / "run")
    assert [line["images"] for line in lines if line["kind"] == "train"][-1] == 8
    assert lines[-1]["count"] == 3


def test_shards_that_are_not_whole_are_refused_by_name(photos: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    prepare(str(photos), shards, shards=True, shard_bytes=100_000)
    source = ShardSource(str(shards))
    victim = shards / "train-000001.tar"
    whole = victim.read_bytes()
    victim.write_bytes(whole[:5000])
    with pytest.raises(RequestError, match=r"train-000001.tar: has 5,000 bytes, the index says"):
        ShardSource(str(shards))
    victim.write_bytes(bytes(len(whole)))
    index = next(k for k in range(300) if int(source._where["train"][0][k]) == 1)
    with pytest.raises(RunError, match=r"train-000001.tar: n.* have another digest .* copy or prepare the shard again"):
        ShardSource(str(shards)).read("train", index)
    victim.unlink()
    with pytest.raises(RequestError, match=r"train-000001.tar: missing: was a copy interrupted"):
        ShardSource(str(shards))
    (shards / "index.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(RequestError, match="not an index that gaeanet wrote"):
        ShardSource(str(shards))


ODD_ARRAYS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "a name ends beyond the names": ("ends", lambda x: np.append(x[:-1], 2**62)),
    "a name ends before it begins": ("ends", lambda x: np.append(x[-1], x[1:])),
    "names end where the sum overflows": ("ends", lambda x: np.append(2**63 - 1, x[1:])),
    "a label of no class": ("labels", lambda x: np.append(x[1:], np.int32(3))),
    "a negative label": ("labels", lambda x: np.append(x[1:], np.int32(-1))),
    "fewer labels than names": ("labels", lambda x: x[1:]),
    "labels of another type": ("labels", lambda x: x.astype(np.int64)),
    "a shard that is not there": ("shard", lambda x: np.append(x[1:], np.int32(99))),
    "an image that begins before its shard": ("offset", lambda x: np.append(x[1:], -1)),
    "an image that ends beyond its shard": ("offset", lambda x: np.append(x[1:], 2**63 - 1)),
    "an image of negative size": ("size", lambda x: -x),
    "an image of exabytes": ("size", lambda x: np.append(x[1:], 2**63 - 1)),
    "digests of another length": ("digest", lambda x: np.ascontiguousarray(x[:, :8])),
    "no samples": ("ends", lambda x: x[:0]),
}
ODD_FACTS = {
    "classes": [7, {"a": 1}, [1, 2, 3], None],
    "shards": [7, {"train": [["x", "y", "z"]], "val": []}, {"train": [["x.tar", -5, ""]], "val": [["x.tar", 5, ""]]}],
    "format": [None, [1]],
}


@pytest.fixture(scope="module")
def small_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small")
    prepare(str(make_folder(root / "photos", train=2, val=1)), root / "shards", shards=True)
    return root / "shards"


@pytest.mark.parametrize("what", [*ODD_ARRAYS, *ODD_FACTS])
def test_field_report_89_an_index_of_shards_that_makes_no_sense_is_one_line(
    what: str, small_shards: Path, tmp_path: Path
) -> None:
    path = tmp_path / "shards" / "index.safetensors"
    shutil.copytree(small_shards, path.parent)
    arrays, facts = read_index(small_shards / path.name)
    del facts["format"]
    if what in ODD_ARRAYS:
        field, change = ODD_ARRAYS[what]
        odd = [
            ({**arrays, f"{split}.{field}": change(arrays[f"{split}.{field}"])}, facts) for split in ("train", "val")
        ]
    else:
        odd = [(arrays, {**facts, what: value}) for value in ODD_FACTS[what]]
    for changed, said in odd:
        write_index(path, changed, said)
        with pytest.raises(RequestError, match=r"not the index of shards|index format"):
            ShardSource(str(path.parent))
    nested = b"[" * 100_000
    path.write_bytes(len(nested).to_bytes(8, "little") + nested)
    with pytest.raises(RequestError, match="not an index that gaeanet wrote"):
        ShardSource(str(path.parent))


def test_shards_in_a_bucket_follow_their_index(gcs: Proxy, photos: Path, tmp_path: Path) -> None:
    for name, shard_bytes in (("a", 100_000), ("b", 60_000)):
        prepare(str(photos), tmp_path / name, shards=True, shard_bytes=shard_bytes)
        upload(tmp_path / name, "gs://photos/changing")
        source = open_location("gs://photos/changing")
        assert isinstance(source, BucketShardSource)
        assert source.read("train", 17) == ShardSource(str(tmp_path / name)).read("train", 17)
    (tmp_path / "b" / "val-000000.tar").write_bytes(b"short")
    upload(tmp_path / "b", "gs://photos/changing")
    with pytest.raises(RequestError, match=r"gs://photos/changing/val-000000.tar: has 5 bytes, the index says"):
        open_location("gs://photos/changing")


TOUCHES = """
import sys
from pathlib import Path
from gaeanet.data.sources.index import catalog_from, read_index
def own():  # kilobytes that belong to this process alone and to no file
    rows = [line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()]
    return int(next(row[1] for row in rows if row[0] == "Anonymous:"))
read_index(Path(sys.argv[1]))
before = own()
arrays, facts = read_index(Path(sys.argv[1]))
catalog = catalog_from(arrays, facts["classes"])
assert sum(int(array.sum(dtype="int64")) for array in arrays.values()) > 0
assert catalog.train.name(1_281_166) == "n00000166/n00000166_1281166.JPEG"
print(own() - before)
"""


def test_a_catalog_of_imagenets_size_is_small_and_shared_by_processes(tmp_path: Path) -> None:
    count = 1_281_167
    split = Split.of((f"n{k % 1000:08d}/n{k % 1000:08d}_{k}.JPEG", k % 1000) for k in range(count))
    catalog = Catalog(tuple(f"n{k:08d}" for k in range(1000)), split, split)
    arrays = {
        **catalog_arrays(catalog),
        "train.sizes": np.full(count, 110_000),
        "train.digests": np.full((count, 16), 7, np.uint8),
    }
    path = tmp_path / "index"
    write_index(path, arrays, {"classes": list(catalog.classes)})
    assert path.stat().st_size < 200e6
    result = subprocess.run([sys.executable, "-c", TOUCHES, path], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 5_000  # all of it was read, and yet is the page cache's, once a machine


def test_an_index_is_the_file_that_safetensors_writes(tmp_path: Path) -> None:
    arrays = {
        "b": np.arange(6, dtype=np.int64).reshape(2, 3)[:, ::2],
        "a": np.arange(3, dtype=np.uint8),
        "c": np.empty((0, 20), np.uint8),
        "d": np.arange(5, dtype=np.int32),
        "e\u00e9": np.arange(1, dtype=np.int64),
    }
    write_index(tmp_path / "index", arrays, {"classes": ['caf\u00e9 "x"\n']})
    facts = json.dumps({"format": 1, "classes": ['caf\u00e9 "x"\n']})
    expected = save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, {"gaeanet": facts})
    assert (tmp_path / "index").read_bytes() == expected
    read, _ = read_index(tmp_path / "index")
    assert {name: array.tolist() for name, array in read.items()} == {n: a.tolist() for n, a in arrays.items()}


def test_workers_are_told_where_the_index_is_not_what_is_in_it(gcs: Proxy, photos: Path, tmp_path: Path) -> None:
    prepare(str(photos), tmp_path / "shards", shards=True)
    upload(photos, "gs://photos/told/folder")
    upload(tmp_path / "shards", "gs://photos/told/shards")
    for place in ("gs://photos/told/folder", "gs://photos/told/shards", str(tmp_path / "shards")):
        told = pickle.dumps(open_location(place))
        assert len(told) < 3_000
        assert len(pickle.loads(told).catalog.train) == 300


def test_field_report_22_a_run_is_not_resumed_with_another_table_of_classes(
    gaeanet: Run, experiment_file: Callable[..., Path], t3: Path
) -> None:
    config = experiment_file(epochs=1)
    assert gaeanet("train", config, "--data", t3).code == 0
    for split in ("train", "val"):
        (t3 / split / "n00000001").rename(t3 / split / "n00000009")
    refused = gaeanet("train", config, "--data", t3, "--resume")
    assert refused.code == 2
    assert "the classes found lack 1 class (n00000001) and have 1 class (n00000009) more" in refused.err


def test_all_of_imagenet_is_asked_for() -> None:
    wnids = imagenet_wnids()
    assert len(wnids) == 1000
    assert (wnids[0], wnids[-1]) == ("n01440764", "n15075141")

    def catalog(classes: tuple[str, ...]) -> Catalog:
        split = Split.of((f"{name}/x.JPEG", label) for label, name in enumerate(classes))
        return Catalog(classes, split, split)

    assert catalog(wnids).class_names[0] == "tench, Tinca tinca"
    assert catalog(("cat",)).class_names == ("cat",)
    with pytest.raises(
        RequestError, match=r"1000 train images, ImageNet has 1,281,167|1,000 train images, ImageNet has"
    ):
        check_imagenet_is_whole(catalog(wnids), "there")
    with pytest.raises(RequestError, match=r"there: 3 classes \(n01443537, n01484850, n01491361\) of ImageNet's 1000"):
        check_imagenet_is_whole(catalog((wnids[0], *wnids[4:])), "there")
    check_imagenet_is_whole(catalog(wnids[:10]), "a subset made on purpose")
    check_imagenet_is_whole(catalog(("cat", "dog")), "other classes")


def test_data_settings_are_checked() -> None:
    assert Data(cache_size="1.5 GB").cache_bytes == 1_500_000_000
    assert Data().cache_bytes is None
    with pytest.raises(ValueError, match="give a number with MB, GB or TB"):
        Data(cache_size="lots")
