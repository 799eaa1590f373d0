"""Law 4 for the formats of others: written by their own tools, they are the same data set as class folders."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import foreign
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import COLOURS, Result, jpeg, make_folder

from gaeanet.data.prepare.prepare import prepare
from gaeanet.data.sources.folder import FolderSource
from gaeanet.data.sources.open import open_location
from gaeanet.data.sources.samples import Samples
from gaeanet.errors import GaeanetError, RequestError

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with ILSVRC2012's file names: three classes, 18 images for training and 9 for validation."""
    made = make_folder(tmp_path_factory.mktemp("foreign") / "photos")
    for split in ("train", "val"):
        for number, file in enumerate(sorted((made / split).glob("*/*"))):
            wnid = file.parent.name
            name = f"{wnid}_{number}" if split == "train" else f"ILSVRC2012_val_{number + 1:08d}"
            file.rename(file.with_name(f"{name}.JPEG"))
    return made


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory of our own for the indexes of tars."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "gaeanet"


PLACES: dict[str, Callable[[Path, Path], Path]] = {
    "parquet": foreign.parquet,
    "tars": foreign.tars,
    "numbered tars": lambda folder, root: foreign.tars(folder, root, keys="number"),
    "Google's TFRecords": lambda folder, root: foreign.tfrecords(folder, root, "google"),
    "TFDS": lambda folder, root: foreign.tfrecords(folder, root, "tfds"),
    "MDS": foreign.mds,
    "Arrow": foreign.arrow,
    "gunzipped": foreign.gunzipped,
}


@pytest.fixture(scope="module")
def place(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A directory with the same images in a format; written once, not to be changed."""
    written: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in written:
            written[name] = PLACES[name](photos, tmp_path_factory.mktemp("places") / name.replace(" ", "-"))
        return written[name]

    return get


def files_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def refusal(location: Path, *parts: str) -> str:
    """The one line that `prepare` refuses a place with, before it writes anything."""
    destination = location.parent / "refused"
    with pytest.raises(RequestError) as error:
        prepare(str(location), destination, shards=False)
    assert not destination.exists()
    for part in parts:
        assert part in str(error.value), error.value
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", PLACES)
def test_law_4_every_format_has_the_catalog_and_bytes_of_the_folder(
    name: str, place: Callable[[str], Path], photos: Path
) -> None:
    ours, theirs = open_location(str(place(name))), FolderSource(str(photos))
    assert ours.catalog.fingerprint == theirs.catalog.fingerprint
    if not ours.sequential:
        assert ours.sizes_fingerprint == open_location(str(place("tars"))).sizes_fingerprint is not None
    assert ours.epoch_order(5, 1).tolist() == theirs.epoch_order(5, 1).tolist()
    for split, count in (("train", 18), ("val", 9)):
        expected = [theirs.read(split, k) for k in range(count)]
        assert [ours.read(split, k) for k in range(count)] == expected
        order = ours.reading_order(split).tolist()
        assert sorted(order) == list(range(count))
        assert list(ours.fetch(split, order)) == [expected[k] for k in order]
        if not ours.sequential:
            assert [ours.size(split, k) for k in range(count)] == [len(data) for data in expected]


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("shards", [False, True])
def test_law_4_prepare_writes_the_same_files_from_every_format(
    name: str, shards: bool, place: Callable[[str], Path], photos: Path, tmp_path: Path
) -> None:
    prepare(str(photos), tmp_path / "expected", shards=shards, shard_bytes=9_000)
    prepare(str(place(name)), tmp_path / "out", shards=shards, shard_bytes=9_000)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "expected")


@pytest.mark.parametrize("shards", [False, True])
def test_prepare_from_parquet_resumes_and_ends_with_the_same_files(
    shards: bool, place: Callable[[str], Path], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gaeanet.data.prepare import shard_writer
    from gaeanet.data.sources.parquet import ParquetSource

    prepare(str(photos), tmp_path / "expected", shards=shards)
    monkeypatch.setattr(shard_writer, "_AT_ONCE", 0)
    fetch = ParquetSource.fetch
    for limit in (0, 3, 8, 5):
        left = multiprocessing.Value("i", limit)  # images are read by several processes

        def stopped(self, split, indices, left=left):  # type: ignore[no-untyped-def]
            for data in fetch(self, split, indices):
                with left.get_lock():
                    if not left.value:
                        raise KeyboardInterrupt
                    left.value -= 1
                yield data

        monkeypatch.setattr(ParquetSource, "fetch", stopped)
        with pytest.raises(KeyboardInterrupt):
            prepare(str(place("parquet")), tmp_path / "out", shards=shards)
        with pytest.raises(RequestError, match="was stopped here before its end"):
            open_location(str(tmp_path / "out"))
    monkeypatch.setattr(ParquetSource, "fetch", fetch)
    prepare(str(place("parquet")), tmp_path / "out", shards=shards)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "expected")


def test_law_4_training_from_tars_tfrecords_mds_and_arrow_is_the_run_from_folders(
    gaeanet: Run, experiment_file: Callable[..., Path], place: Callable[[str], Path], photos: Path, tmp_path: Path
) -> None:
    for name, location in (("folder", photos), *((name, place(name)) for name in ("tars", "TFDS", "MDS", "Arrow"))):
        result = gaeanet("train", experiment_file(epochs=1), "--data", location, "--run-dir", tmp_path / name)
        assert result.code == 0, result.err
        same_weights(tmp_path / "folder", tmp_path / name)


def same_weights(a: Path, b: Path) -> None:
    from gaeanet.artifacts.checkpoint import load

    (ours, _), (theirs, _) = (load(run / "checkpoints" / "latest") for run in (a, b))
    for group in ours:
        assert {name: value.tolist() for name, value in ours[group].items()} == {
            name: value.tolist() for name, value in theirs[group].items()
        }


def test_training_from_parquet_is_refused_with_the_command_that_prepares_it(
    gaeanet: Run, experiment_file: Callable[..., Path], place: Callable[[str], Path]
) -> None:
    result = gaeanet("train", experiment_file(), "--data", place("parquet"))
    assert result.code == 2
    assert f"cannot be read in random order: gaeanet prepare {place('parquet')} DESTINATION first" in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("name", PLACES)
def test_verify_decodes_every_format(name: str, gaeanet: Run, place: Callable[[str], Path]) -> None:
    result = gaeanet("prepare", place(name), "--verify")
    assert result.code == 0, result.err
    assert "27 of 27 images decode" in result.out


# Refusals that all formats share: see also the formats' own below.


@pytest.mark.parametrize("name", ["parquet", "tars", "Google's TFRecords", "TFDS", "MDS", "Arrow"])
def test_a_shard_that_is_missing_cut_short_or_damaged_is_named(
    name: str, place: Callable[[str], Path], tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(place(name), root)
    (root / "_info.json").unlink(missing_ok=True)
    victim = sorted(path for path in root.rglob("*0001*") if "train" in path.relative_to(root).as_posix())[0]
    whole = victim.read_bytes()
    for cut in (0, 100, len(whole) // 2, len(whole) // 2 // 512 * 512, len(whole) - 1024 * 10):
        victim.write_bytes(whole[: max(0, cut)])
        refusal(root, str(victim), "download it again")
    victim.unlink()
    refusal(root, "missing", "download it again")


def test_shards_that_an_index_names_must_be_there_and_hold_what_it_says(
    place: Callable[[str], Path], tmp_path: Path
) -> None:
    root = tmp_path / "tars"
    shutil.copytree(place("tars"), root)
    last = sorted(root.glob("*train*"))[-1]
    content = last.read_bytes()
    last.unlink()
    refusal(root, f"{last}: missing, one of the 5 shards that _info.json names")
    last.write_bytes(content)
    (root / "_info.json").unlink()
    index = {"__kind__": "wids-shard-index-v1", "shardlist": [{"url": last.name, "nsamples": 5}]}
    (root / "train.json").write_text(json.dumps(index))
    refusal(root, f"{last}: holds 4 samples, its index says 5")
    (root / "train.json").write_text('{"shardlist": [3]}')
    refusal(root, "train.json: not an index of shards")


def test_the_index_of_tars_is_made_once_and_again_where_a_file_has_changed(
    place: Callable[[str], Path], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gaeanet.data.sources import webdataset

    root = tmp_path / "tars"
    shutil.copytree(place("tars"), root)
    (root / "_info.json").unlink()
    read, calls = webdataset._members, list[Path]()
    monkeypatch.setattr(webdataset, "_members", lambda path: calls.append(path) or read(path))
    first = open_location(str(root))
    assert len(calls) == 5
    for source in (open_location(str(root)), pickle.loads(pickle.dumps(open_location(str(root))))):
        assert source.catalog.fingerprint == first.catalog.fingerprint
        assert [source.read("train", k) for k in range(18)] == [first.read("train", k) for k in range(18)]
    assert len(calls) == 5
    assert len(pickle.dumps(first)) < 2000
    (index,) = cache.glob("*.ranges.safetensors")
    expected, data = first.catalog.fingerprint, index.read_bytes()
    index.unlink()
    index.write_bytes(data[:-100])
    assert open_location(str(root)).catalog.fingerprint == expected
    assert len(calls) == 10
    tar = sorted(root.glob("*train*"))[0]
    os.utime(tar, ns=(1, 1))
    open_location(str(root))
    assert len(calls) == 15
    shutil.rmtree(cache)
    cache.write_text("no directory")
    assert "cannot be written: each process makes its own index of" in open_location(str(root)).notes[-1]


def write_tars(root: Path, train: list[tuple[str, bytes]]) -> Path:
    root.mkdir(exist_ok=True)
    image = jpeg(COLOURS[0], (20, 20))
    val = [(f"{k}.{suffix}", data) for k in range(2) for suffix, data in (("jpg", image), ("cls", b"%d" % k))]
    for split, members in (("train", train), ("val", val)):
        with tarfile.open(root / f"{split}-0.tar", "w") as tar:
            for name, data in members:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return root


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.jpg", b"x")], "train-0.tar: a.jpg: has no label"),
        ([("a.jpg", b"x"), ("a.cls", b"-1")], "a.jpg: its label is -1, must be 0 or more"),
        ([("a.jpg", b"x"), ("a.cls", b"")], "a.cls: must hold a class's number or name"),
        ([("a.jpg", b"x"), ("a.cls", b"0"), ("a.json", b'{"label": 1}')], "its .cls says 0, its .json 1: one is wrong"),
        ([("a.jpg", b"x"), ("a.json", b'{"label"')], "a.json: not JSON"),
        ([("a.jpg", b"x"), ("a.json", b"[" * 9000)], "a.json: not JSON"),
        ([("a.jpg", b"x"), ("a.json", b"[3]")], "a.json: must be an object with a label"),
        ([("a.jpg", b"x"), ("a.json", b'{"label": [1]}')], "a.json: label must be a class's number or name"),
        ([("a.jpg", b"x"), ("a.png", b"x"), ("a.cls", b"0")], "a: has 2 images"),
        ([("a.jpg", b"x"), ("a.jpg", b"x"), ("a.cls", b"0")], "holds two members called a.jpg"),
        ([("a.jpg", b"x"), ("a.cls", b"0"), ("b.jpg", b"x"), ("b.cls", b"0"), ("a.jpg", b"y")], "two samples"),
        ([("a.cls", b"0")], "has no train images"),
        ([("n00000001_5.jpg", b"x"), ("n00000001_5.cls", b"n00000002")], "label is n00000002, its name says n00000001"),
        (
            [("n00000001_5.jpg", b""), ("n00000001_5.cls", b"0"), ("n00000002_5.jpg", b""), ("n00000002_5.cls", b"0")],
            "its label is 0, which is n00000001 for others, its name says n00000002",
        ),
        (
            [("n00000001_5.jpg", b""), ("n00000001_5.cls", b"0"), ("n00000001_6.jpg", b""), ("n00000001_6.cls", b"1")],
            "n00000001 has the label 1, and 0 for others: one of them is wrong",
        ),
        ([("/a.jpg", b"x"), ("/a.cls", b"0"), ("/b/a.jpg", b"x"), ("/b/a.cls", b"0")], "leads out of it"),
    ],
)  # fmt: skip
def test_field_report_95_a_tar_with_something_wrong_is_refused_by_name(
    members: list[tuple[str, bytes]], message: str, tmp_path: Path
) -> None:
    root = write_tars(tmp_path / "t", [*members, ("y.jpg", b"x"), ("y.cls", b"0"), ("z.jpg", b"x"), ("z.cls", b"1")])
    if message == "has no train images":
        write_tars(root, members)
    refusal(root, message)


def test_long_names_hidden_members_and_labels_that_are_text(tmp_path: Path) -> None:
    long = f"{'d' * 90}/{'e' * 120}"
    members = [
        (f"{long}.jpg", b"1"),
        (f"{long}.cls", b"cat"),
        ("._b.jpg", b"mac"),
        ("b.PNG", b"22"),
        ("b.cls", b"dog\n"),
    ]
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        for split in ("train", "val"):
            with tarfile.open(tmp_path / f"{split}-0.tar", "w", format=form) as tar:
                for name, data in [("notes.txt", b"about"), *members]:
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        source = open_location(str(tmp_path))
        assert source.catalog.classes == ("cat", "dog")
        assert [source.catalog.train.name(k) for k in range(2)] == [f"cat/{'e' * 120}.jpg", "dog/b.png"]
        assert [source.read("train", k) for k in range(2)] == [b"1", b"22"]
        assert "skipped 2 members without an image (notes, notes)" in source.notes[0]


@given(st.lists(st.binary(min_size=0, max_size=1600), max_size=5), st.integers(0, 10_000), st.integers(0, 7))
def test_a_tar_with_any_bit_changed_gives_the_images_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes], at: int, bit: int
) -> None:
    root = tmp_path_factory.mktemp("bits")
    members = [(f"{k}.{suffix}", data) for k, c in enumerate(contents) for suffix, data in (("jpg", c), ("cls", b"0"))]
    write_tars(root, [*members, ("y.jpg", b"x"), ("y.cls", b"0"), ("z.jpg", b"x"), ("z.cls", b"1")])
    path = root / "train-0.tar"
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1 << bit
    path.write_bytes(data)
    with suppress(GaeanetError):
        source = open_location(str(root))
        for k in range(len(source.catalog.train)):
            source.read("train", k)


INFINITE = float("inf")  # JSON's Infinity, which Python reads


@pytest.mark.parametrize(
    ("format_", "file", "keys", "value"),
    [
        *(("MDS", "train/index.json", ("shards", 0, "samples"), value) for value in (-1, 2**61, INFINITE, "7", 2.5)),
        *(("MDS", "train/index.json", ("shards", 0, "column_sizes", 2), value) for value in (-8, INFINITE)),
        *(("MDS", "train/index.json", ("shards", 0, "raw_data", "bytes"), value) for value in (INFINITE, None)),
        *(("TFDS", "dataset_info.json", ("splits", 0, "shardLengths", 0), value) for value in (INFINITE, "x", None)),
        *(("tars", "_info.json", ("splits", "train", "shard_lengths", 0), value) for value in (INFINITE, "x", None)),
    ],
)
def test_field_reports_91_and_92_numbers_of_an_index_that_are_none(
    format_: str, file: str, keys: tuple[str | int, ...], value: object, place: Callable[[str], Path], tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(place(format_), root)
    tree = block = json.loads((root / file).read_text())
    for key in keys[:-1]:
        block = block[key]
    block[keys[-1]] = value
    (root / file).write_text(json.dumps(tree))
    refusal(root, file)


@pytest.mark.parametrize("name", ["label.labels.txt", "dataset_info.json"])
def test_field_report_91_a_table_beside_tfrecords_that_is_a_device(
    name: str, place: Callable[[str], Path], tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(place("TFDS"), root)
    (root / name).unlink()
    (root / name).symlink_to("/dev/zero")
    refusal(root, name, "not a regular file")


def write_parquet(root: Path, name: str, **columns: object) -> None:
    root.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), root / name)


def test_parquet_with_something_wrong_is_refused_by_name(tmp_path: Path) -> None:
    def entries(*names: str | None) -> list[dict[str, object]]:
        return [{"bytes": b"x", "path": name} for name in names]

    good, root = entries("a.jpg", "b.jpg"), tmp_path / "p"
    write_parquet(root, "validation-0.parquet", image=good, label=[0, 1])
    for columns, message in (
        (dict(pic=["a", "b"], label=[0, 1]), "has no column of images"),
        (dict(image=good, species=[0, 1]), "has no column of labels (called label), its columns are image, species"),
        (dict(image=good, label=[0, None]), "row 1: label must be a class's number or name, is None"),
        (dict(image=good, label=[0, -1]), "b.jpg: its label is -1, must be 0 or more"),
        (dict(image=good, label=[0, 2]), "validation lacks 1 class (2) and has 1 class (1) that training lacks"),
        (dict(image=[b"x", b"y"], label=[0, 1]), "has other columns of images and labels than"),
        (dict(image=entries("a.jpg", "a.jpg", "b.jpg"), label=[0, 0, 1]), "have this name: rename one"),
        (dict(image=entries("/a.jpg", "../a.jpg", "b.jpg"), label=[1, 1, 0]), "leads out of it"),
    ):  # fmt: skip
        write_parquet(root, "train-0.parquet", **columns)
        refusal(root, message)
    (root / "train-0.parquet").write_bytes(b"PAR1 not parquet PAR1")
    refusal(root, "train-0.parquet: not a whole parquet file")
    (root / "train-0.parquet").unlink()
    refusal(root, "none of its 1 parquet files (validation-0.parquet) is of the train split")


def test_parquet_images_without_names_are_called_by_file_and_row(tmp_path: Path) -> None:
    png = b"\x89PNG.."
    write_parquet(tmp_path, "train-0.parquet", img=[png, b"2", b"3"], fine_label=["cat", "dog", "cat"])
    write_parquet(tmp_path, "test-0.parquet", img=[b"5", b"6"], fine_label=["cat", "dog"])
    source = open_location(str(tmp_path))
    names = [source.catalog.train.name(k) for k in range(3)]
    assert names == ["cat/train-0_000000.png", "cat/train-0_000002.png", "dog/train-0_000001.png"]
    assert [source.read("train", k) for k in (2, 0, 1)] == [b"2", png, b"3"]
    assert source.read("val", 1) == b"6"


def test_an_image_without_bytes_in_parquet_ends_prepare_in_one_line_and_leaves_it_unfinished(
    gaeanet: Run, tmp_path: Path
) -> None:
    images = [{"bytes": b"x", "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}]
    for name in ("train", "val"):
        write_parquet(tmp_path / "p", f"{name}-0.parquet", image=images, label=[0, 1])
    result = gaeanet("prepare", tmp_path / "p", tmp_path / "out")
    assert result.code == 1
    assert "train-0.parquet: row 1: has no bytes" in result.err
    assert result.err.count("\n") == 1
    with pytest.raises(RequestError, match="was stopped here before its end"):
        open_location(str(tmp_path / "out"))


def test_class_names_of_parquet_become_classes_and_imagenets_become_wordnet_ids(tmp_path: Path) -> None:
    import datasets

    from gaeanet.data.sources.catalog import imagenet_english, imagenet_wnids

    english = [name if k != 517 else "crane2" for k, name in enumerate(imagenet_english())]
    for names, chosen, expected in (
        (["zebra", "ape"], [0, 1], ("ape", "zebra")),
        (english, [3, 0], (imagenet_wnids()[0], imagenet_wnids()[3])),
    ):
        shutil.rmtree(tmp_path / "p", ignore_errors=True)
        (tmp_path / "p").mkdir()
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        rows = [{"image": {"bytes": b"x%d" % k, "path": f"{k}.jpg"}, "label": k} for k in chosen]
        for split in ("train", "validation"):
            datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "p" / f"{split}.parquet")
        source = open_location(str(tmp_path / "p"))
        assert source.catalog.classes == expected
        assert [source.read("val", k) for k in range(2)] == [
            b"x%d" % k for k in sorted(chosen, key=names.__getitem__)
        ] or names is english


@pytest.mark.parametrize("name", ["Google's TFRecords", "TFDS", "MDS", "Arrow", "parquet"])
@given(at=st.integers(0, 10**6), bit=st.integers(0, 7))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bit_changed_gives_the_images_or_one_line(
    name: str, at: int, bit: int, place: Callable[[str], Path], tmp_path: Path
) -> None:
    root = tmp_path / "bits"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(place(name), root)
    path = sorted(path for path in root.rglob("*0000*") if "train" in str(path))[0]
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1 << bit
    path.write_bytes(data)
    good = open_location(str(place(name)))
    changed = 0
    with suppress(GaeanetError):
        source = open_location(str(root))
        for k in range(len(source.catalog.train)):
            changed += source.read("train", k) != good.read("train", k)
        assert "TF" not in name or not changed  # checksums let no changed bit pass; the other formats have none
    # of a compressed page, in which images may refer to bytes of others, several change
    assert changed <= 1 or name == "parquet" or source.catalog.fingerprint != good.catalog.fingerprint


def test_tfrecords_with_something_wrong_are_refused_by_name(
    place: Callable[[str], Path], photos: Path, tmp_path: Path
) -> None:
    root = tmp_path / "t"

    def write(**features: object) -> None:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        for split in ("train", "validation"):
            writer = foreign.TFRecordWriter(str(root / f"{split}.tfrecord"))
            writer.write({key.replace("__", "/"): value for key, value in features.items()})
            writer.close()

    image, synset = (b"x", "byte"), (b"n00000001", "byte")
    write(label=(0, "int"))
    refusal(root, "train.tfrecord, record 0: has no image (image/encoded or image)")
    write(image=image)
    refusal(root, "record 0: has no label")
    write(image=image, label=(-3, "int"))
    refusal(root, "its label is -3, must be 0 or more")
    write(image__encoded=image, image__class__label=(2, "int"), image__class__synset=(b"cat", "byte"))
    refusal(root, "its synset must be a WordNet id, is 'cat'")
    write(image=image, image__class__synset=synset, file_name=(b"n00000002_7.JPEG", "byte"))
    refusal(root, "its WordNet id is n00000001, its name says n00000002: one is wrong")
    write(image=image, label=(5, "int"))
    (root / "label.labels.txt").write_text("cat\ndog\n")
    refusal(root, "its label is 5, must be 0 to 1, one for each class name")
    (root / "train.tfrecord").write_bytes(b"\x1f\x8b" + bytes(40))
    refusal(root, "not a TFRecord, or damaged (compressed: decompress it with gunzip)")
    shutil.rmtree(root)
    shutil.copytree(place("TFDS"), root)
    writer = foreign.TFRecordWriter(str(sorted(root.glob("*train*"))[0]))
    writer.write({"image": image, "label": (0, "int")})
    writer.close()
    refusal(root, "train examples, dataset_info.json says 18: download it again")
    (root / "dataset_info.json").write_text("[]")
    refusal(root, "dataset_info.json: not the table of TensorFlow Datasets")


def test_mds_with_something_wrong_is_refused_by_name(place: Callable[[str], Path], tmp_path: Path) -> None:
    root = tmp_path / "m"
    shutil.copytree(place("MDS"), root)
    path = root / "train" / "index.json"
    good = json.loads(path.read_text())

    def changed(message: str, **values: object) -> None:
        index = json.loads(json.dumps(good))
        index["shards"][0] |= values
        path.write_text(json.dumps(index))
        refusal(root, message)

    raw = good["shards"][0]["raw_data"]
    changed("its shards are csv, only mds is read", format="csv")
    changed("names something outside of", raw_data={**raw, "basename": "../x"})
    changed("index.json says 5: download it again", raw_data={**raw, "bytes": 5})
    changed("not an index of MDS shards", raw_data=3)
    changed("its table of samples is wrong", samples=5)
    changed("its columns do not fill it", column_sizes=[None, None, 4])
    changed("must have one column of images", column_encodings=["str", "pil", "int"])
    changed("has no column of labels (called label or y)", column_names=["filename", "image", "age"])
    shard = root / "train" / raw["basename"]
    shard.rename(shard.with_suffix(".mds.zstd"))
    changed("there compressed only", zip_data={**raw, "basename": f"{raw['basename']}.zstd"})


@given(st.lists(st.tuples(st.integers(0, 3), st.text(max_size=8)), min_size=1, max_size=30))
def test_samples_become_a_sorted_catalog_or_one_line(pairs: list[tuple[int, str]]) -> None:
    samples = Samples({"train": [Path("a.tar")], "val": [Path("b.tar")]})
    try:
        for number, (label, name) in enumerate(pairs):
            for split in ("train", "val"):
                samples.add(split, f"{name}.jpg", label, 0, number, 1)
        catalog, order = samples.catalog("here", [])
    except RequestError:
        return
    names = [catalog.train.name(k) for k in range(len(pairs))]
    assert names == sorted(names)
    assert sorted(order["train"].tolist()) == list(range(len(pairs)))
    assert catalog.train.labels.tolist() == [
        catalog.classes.index(f"{pairs[row][0]}") for row in order["train"].tolist()
    ]


def test_a_place_that_is_none_of_these_says_what_is_there(gaeanet: Run, tmp_path: Path) -> None:
    root = tmp_path / "odd"
    (root / "deep").mkdir(parents=True)
    refusal(root, "has no train/ folder in it; no files are in it; docs/data.md lists what is read")
    for name in ("a.zip", "b.zip", "c.h5", "deep/d.tar.gz", "deep/e.jpg", "deep/README"):
        (root / name).touch()
    refusal(root, "it holds 2 .zip files, 1 .h5 file, 1 .tar.gz file, 1 image file and 1 other")
    (root / "train_images_0.tar.gz").touch()
    refusal(
        root, "train_images_0.tar.gz is compressed, so that no image can be read alone: gunzip its 1 such files first"
    )
    for name in ("train.parquet", "train-0.tar"):
        (root / name).touch()
    refusal(root, "holds 1 parquet files and 1 tar files: name a directory with one kind")
