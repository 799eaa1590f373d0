"""`gaeanet prepare`: every known layout, killed anywhere, and honest about what is odd."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ilsvrc import archives, devkit, tar_of
from PIL import Image
from services import Proxy, upload
from tiny import COLOURS, Result, broken_exif, jpeg, make_folder

from gaeanet.data.prepare import pipeline
from gaeanet.data.prepare import prepare as module
from gaeanet.data.prepare.prepare import prepare
from gaeanet.data.sources import folder as folders
from gaeanet.data.sources.catalog import imagenet_wnids
from gaeanet.data.sources.folder import FolderSource, read_or_not
from gaeanet.data.sources.index import read_index, write_index
from gaeanet.data.sources.labels import validation_classes
from gaeanet.data.sources.open import open_location
from gaeanet.data.sources.shards import ShardSource
from gaeanet.errors import RequestError, RunError

Run = Callable[..., Result]

# The devkit numbers its classes in an order of its own.


def tree_hash(root: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@pytest.mark.parametrize("mat", [True, False])
def test_field_report_21_devkit_numbers_are_never_labels(tmp_path: Path, mat: bool) -> None:
    expected = archives(tmp_path / "archives", mat=mat)
    prepare(str(tmp_path / "archives"), tmp_path / "images", shards=False)
    for k, wnid in enumerate(expected):
        assert (tmp_path / "images" / "val" / wnid / f"ILSVRC2012_val_{k + 1:08d}.JPEG").exists()
    source = FolderSource(str(tmp_path / "images"))
    assert source.catalog.classes == ("n00000000", "n00000001", "n00000002")
    assert source.catalog.val.counts(3).tolist() == [3, 3, 3]
    assert float(np.mean(source.catalog.val.labels == 0)) == pytest.approx(1 / 3)


def test_archives_folders_and_shards_are_one_data_set(gaeanet: Run, tmp_path: Path) -> None:
    archives(tmp_path / "archives")
    result = gaeanet("prepare", tmp_path / "archives", tmp_path / "images")
    assert result.code == 0, result.err
    assert "3 classes, 60 training and 9 validation images" in result.out
    assert gaeanet("prepare", tmp_path / "images", tmp_path / "from-folders", "--shards").code == 0
    assert gaeanet("prepare", tmp_path / "archives", tmp_path / "from-archives", "--shards").code == 0
    assert gaeanet("prepare", tmp_path / "from-archives", tmp_path / "and-back").code == 0
    assert tree_hash(tmp_path / "from-folders") == tree_hash(tmp_path / "from-archives")
    assert tree_hash(tmp_path / "and-back") == tree_hash(tmp_path / "images")
    fingerprints = {
        open_location(str(tmp_path / name)).catalog.fingerprint for name in ("archives", "images", "from-archives")
    }
    assert len(fingerprints) == 1
    again = gaeanet("prepare", tmp_path / "archives", tmp_path / "images")
    assert again.code == 0
    assert "already holds all of" in again.out


def test_field_report_20_a_flat_validation_folder_is_sorted_or_refused(
    gaeanet: Run, experiment_file: Callable[..., Path], tmp_path: Path
) -> None:
    for name, below in (("flat", ""), ("deeper", "ILSVRC2012_img_val")):
        root = make_folder(tmp_path / name)
        flat = tmp_path / f"{name}-val"
        (flat / below).mkdir(parents=True)
        truth = []
        for number, path in enumerate(sorted((root / "val").glob("*/*")), 1):
            truth.append(path.parent.name)
            path.rename(flat / below / f"ILSVRC2012_val_{number:08d}.JPEG")
        for folder in (root / "val").iterdir():
            folder.rmdir()
        (root / "val").rmdir()
        flat.rename(root / "val")
        refused = gaeanet("train", experiment_file(), "--data", root)
        assert refused.code == 2
        assert "validation lacks 3 classes" in refused.err
        assert "is it one flat folder of images? gaeanet prepare sorts it into class folders" in refused.err
        unknown = gaeanet("prepare", root, tmp_path / f"{name}-out")
        assert unknown.code == 2
        assert "the classes of its 9 validation images are not known" in unknown.err or "of class" in unknown.err
        for file, data in devkit(truth, mat=False).items():
            (root / Path(file).name).write_bytes(data)
        assert gaeanet("prepare", root, tmp_path / f"{name}-out").code == 0
        source = FolderSource(str(tmp_path / f"{name}-out"))
        assert source.catalog.val.counts(3).tolist() == [3, 3, 3]
        assert (
            gaeanet("train", experiment_file(epochs=1), "--data", tmp_path / f"{name}-out", "--run-dir", name).code == 0
        )


def test_field_report_30_kaggles_layout_is_read(gaeanet: Run, tmp_path: Path) -> None:
    root = tmp_path / "kaggle" / "ILSVRC" / "Data" / "CLS-LOC"
    made = make_folder(tmp_path / "made")
    root.mkdir(parents=True)
    (made / "train").rename(root / "train")
    (root / "val").mkdir()
    lines = ["ImageId,PredictionString"]
    for number, path in enumerate(sorted((made / "val").glob("*/*")), 1):
        lines.append(f"ILSVRC2012_val_{number:08d},{path.parent.name} 1 2 3 4 {path.parent.name} 5 6 7 8")
        path.rename(root / "val" / f"ILSVRC2012_val_{number:08d}.JPEG")
    (tmp_path / "kaggle" / "LOC_val_solution.csv").write_text("\n".join(lines))
    result = gaeanet("prepare", tmp_path / "kaggle", tmp_path / "out")
    assert result.code == 0, result.err
    assert FolderSource(str(tmp_path / "out")).catalog.val.counts(3).tolist() == [3, 3, 3]


def test_field_report_30_a_ready_tree_needs_no_archive(gaeanet: Run, t3: Path, tmp_path: Path) -> None:
    assert gaeanet("prepare", t3, "--verify").code == 0
    assert gaeanet("prepare", t3, tmp_path / "copy").code == 0
    assert FolderSource(str(t3)).catalog.fingerprint == FolderSource(str(tmp_path / "copy")).catalog.fingerprint


SLOW = """
import multiprocessing, sys, time
from pathlib import Path
import gaeanet.data.prepare.prepare as p
from gaeanet.data.prepare import shard_writer
shard_writer._AT_ONCE = 0
from gaeanet.data.sources.archives import ArchiveSource
read, table_of, count, limit = ArchiveSource.read, p.table_of, multiprocessing.Value("i", 0), int(sys.argv[3])
def wait():
    Path(sys.argv[2] + ".here").touch()
    time.sleep(60)
def slow(self, split, index):
    with count.get_lock():
        count.value += 1
        last = count.value > limit
    if last:
        wait()
    return read(self, split, index)
ArchiveSource.read = slow
p.table_of = lambda catalog: wait() if limit == 99 else table_of(catalog)
p.prepare(sys.argv[1], Path(sys.argv[2]), shards=sys.argv[4] == "shards", shard_bytes=8000)
"""


@pytest.mark.parametrize("form", ["folders", "shards"])
def test_field_report_30_killed_anywhere_and_run_again_it_ends_identical(tmp_path: Path, form: str) -> None:
    archives(tmp_path / "archives")
    prepare(str(tmp_path / "archives"), tmp_path / "straight", shards=form == "shards", shard_bytes=8000)
    killed = tmp_path / "killed"
    # images, of 69, that each attempt reads before it is killed; the last when all are written, but not the table
    for limit in (1, 5, 11, 17, 23, 99):
        process = subprocess.Popen([sys.executable, "-c", SLOW, tmp_path / "archives", killed, str(limit), form])
        here = Path(f"{killed}.here")
        deadline = time.monotonic() + 60
        while not here.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None, "ended before it could be killed"
        with pytest.raises(RequestError, match="was stopped here before its end: run it again"):
            open_location(str(killed))
        process.send_signal(signal.SIGKILL)
        process.wait()
        here.unlink()
    prepare(str(tmp_path / "archives"), killed, shards=form == "shards", shard_bytes=8000)
    assert tree_hash(killed) == tree_hash(tmp_path / "straight")


class Stopped(BaseException):
    """As a signal ends it."""


@pytest.mark.parametrize("shards", [False, True])
def test_what_a_stop_or_a_lost_disk_leaves_half_written_is_written_again(
    shards: bool, t3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(str(t3), tmp_path / "straight", shards=shards)
    out, table_of = tmp_path / "out", module.table_of
    monkeypatch.setattr(module, "table_of", lambda catalog: (_ for _ in ()).throw(Stopped))
    with pytest.raises(Stopped):
        prepare(str(t3), out, shards=shards)
    monkeypatch.setattr(module, "table_of", table_of)
    before = tree_hash(t3)
    if shards:
        victim = out / "train-000000.tar"
        whole = victim.read_bytes()
        victim.write_bytes(whole[:3000] + bytes(len(whole) - 3000))  # blocks that never reached the disk
        (out / "val-000000.tar").unlink()
    else:
        images = sorted((out / "train").glob("*/*"))
        images[0].write_bytes(images[0].read_bytes()[:100])
        images[1].write_bytes(b"")
        images[2].unlink()
        images[3].unlink()
        images[3].symlink_to(next((t3 / "val").glob("*/*")))  # would be written through
        journal = out / ".partial" / "train.sizes"
        journal.write_bytes(bytes(8 * 10) + journal.read_bytes()[80:])
        images[4].write_bytes(b"half")  # without a record
    prepare(str(t3), out, shards=shards)
    assert tree_hash(out) == tree_hash(tmp_path / "straight")
    assert tree_hash(t3) == before
    assert not any(path.is_symlink() for path in out.rglob("*"))


@pytest.mark.parametrize("shards", [False, True])
def test_what_is_whole_is_not_written_again(
    shards: bool, t3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(module, "table_of", lambda catalog: (_ for _ in ()).throw(Stopped))
    monkeypatch.setattr(pipeline, "usable_cores", lambda: 1)  # what is read is counted in this process
    for images in (27, 0):
        read = list[int]()
        monkeypatch.setattr(folders, "read_or_not", lambda path, read=read: read.append(1) or read_or_not(path))
        with pytest.raises(Stopped):
            prepare(str(t3), out, shards=shards)
        assert len(read) == images


def test_a_thousand_tiny_images_are_gathered(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / "folders" / split / label).mkdir(parents=True)
            for k in range(400 if split == "train" else 1):
                (tmp_path / "folders" / split / label / f"{k}.jpg").write_bytes(b"%d" % k * (k % 3))
    prepare(str(tmp_path / "folders"), tmp_path / "shards", shards=True)
    ours, theirs = ShardSource(str(tmp_path / "shards")), FolderSource(str(tmp_path / "folders"))
    assert [ours.read("train", k) for k in range(800)] == [theirs.read("train", k) for k in range(800)]


def test_shards_of_the_first_format_are_read(t3: Path, tmp_path: Path) -> None:
    prepare(str(t3), tmp_path / "shards", shards=True)
    expected = FolderSource(str(t3))
    arrays, facts = read_index(tmp_path / "shards" / "index.safetensors")
    assert facts.pop("format") == 2
    for split, count in (("train", 18), ("val", 9)):
        digests = [hashlib.md5(expected.read(split, k)).digest() for k in range(count)]
        arrays[f"{split}.digest"] = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16)
        facts["shards"][split] = [(name, size, "0" * 32) for name, size in facts["shards"][split]]
    write_index(tmp_path / "shards" / "index.safetensors", arrays, facts)
    source = ShardSource(str(tmp_path / "shards"))
    assert [source.read("train", k) for k in range(18)] == [expected.read("train", k) for k in range(18)]


@pytest.mark.parametrize("cores", [1, 2])
def test_what_goes_wrong_in_a_process_that_writes_is_the_error(
    cores: int, t3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "usable_cores", lambda: cores)
    source, here = FolderSource(str(t3)), os.getpid()
    assert list(pipeline.worked_on(source, range(40), lambda part: part * part)) == [k * k for k in range(40)]

    def full(part: int) -> None:
        raise OSError(28, "No space left on device", "file")

    with pytest.raises(OSError, match="No space left on device: 'file'"):
        list(pipeline.worked_on(source, range(40), full))

    def killed(part: int) -> int:
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return part

    if cores > 1:
        with pytest.raises(RunError, match="was killed .* run again, it continues"):
            list(pipeline.worked_on(source, range(40), killed))


def test_field_report_30_an_archive_cut_short_is_named(gaeanet: Run, tmp_path: Path) -> None:
    archives(tmp_path / "a")
    outer = tmp_path / "a" / "ILSVRC2012_img_train.tar"
    whole = outer.read_bytes()
    for cut in (len(whole) // 2, len(whole) // 2 // 512 * 512, 100):
        outer.write_bytes(whole[:cut])
        result = gaeanet("prepare", tmp_path / "a", tmp_path / "out")
        assert result.code == 2
        assert ".tar" in result.err
        assert "download it again" in result.err
    inner = tar_of({f"n00000001_{k}.JPEG": jpeg(COLOURS[1], (40, 48), k) for k in range(20)})
    for cut in (len(inner) // 2, len(inner) // 2 // 512 * 512):
        outer.write_bytes(tar_of({"n00000000.tar": tar_of({"n00000000_1.JPEG": b"x"}), "n00000001.tar": inner[:cut]}))
        result = gaeanet("prepare", tmp_path / "a", tmp_path / "out")
        assert result.code == 2
        assert "n00000001.tar in " in result.err
    assert not (tmp_path / "out").exists()


def test_field_report_30_a_tree_that_lost_images_after_prepare_is_refused(
    gaeanet: Run, t3: Path, tmp_path: Path
) -> None:
    assert gaeanet("prepare", t3, tmp_path / "out").code == 0
    (tmp_path / "out" / "train" / "n00000001" / "train_3.JPEG").unlink()
    with pytest.raises(RequestError, match=r"5 train images in n00000001, dataset.json says 6: was a copy interrupted"):
        FolderSource(str(tmp_path / "out"))


def test_validation_labels_come_from_the_package_where_there_is_no_devkit(tmp_path: Path) -> None:
    files = [f"ILSVRC2012_val_{k:08d}.JPEG" for k in range(1, 50_001)]
    classes = validation_classes(tmp_path, files, imagenet_wnids())
    # the first five of the official list, ILSVRC2012_validation_ground_truth.txt: 490 361 171 822 297
    assert [classes[name] for name in files[:5]] == ["n01751748", "n09193705", "n02105855", "n04263257", "n03125729"]
    assert set(np.unique(list(classes.values()), return_counts=True)[1]) == {50}


def test_what_prepare_refuses(gaeanet: Run, t3: Path, tmp_path: Path) -> None:
    def refusal(*arguments: object) -> str:
        result = gaeanet("prepare", *arguments)
        assert result.code == 2
        assert result.err.count("\n") == 1
        return result.err

    assert "give a DESTINATION" in refusal(t3)
    assert "--shards needs a DESTINATION" in refusal(t3, "--shards", "--verify")
    assert "does not exist" in refusal(tmp_path / "none", tmp_path / "out")
    assert "is not empty" in refusal(t3, t3)
    assert "is not empty" in refusal(t3, tmp_path)
    assert gaeanet("prepare", t3, tmp_path / "out").code == 0
    assert "already holds these images in the other form" in refusal(t3, tmp_path / "out", "--shards")
    other = make_folder(tmp_path / "other", train=2)
    assert "already holds other images" in refusal(other, tmp_path / "out")
    archives(tmp_path / "lonely")
    (tmp_path / "lonely" / "ILSVRC2012_img_val.tar").unlink()
    assert "ILSVRC2012_img_val.tar: missing" in refusal(tmp_path / "lonely", tmp_path / "out2")
    if os.geteuid() != 0:
        assert "cannot be written" in refusal(t3, "/proc/nowhere")


def test_prepare_and_its_refusals_come_up_without_torch(t3: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from gaeanet.cli.main import main
assert main(["prepare", {str(t3)!r}, {str(tmp_path / "out")!r}, "--shards"]) == 0
assert main(["prepare", {str(t3)!r}, "gs://photos/out"]) == 2
assert main(["prepare", "gs://", "out"]) == 2
assert "torch" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "gs:/photos/out: prepare writes to a directory; upload that with" in result.stderr


def test_a_full_disk_ends_in_one_line_and_prepare_goes_on_later(gaeanet: Run, t3: Path, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        result = gaeanet("prepare", t3, tmp_path / "out", "--shards")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.code == 1
    assert "cannot be written: file too large; run again, it continues" in result.err
    assert result.err.count("\n") == 1
    assert gaeanet("prepare", t3, tmp_path / "out", "--shards").code == 0
    assert len(open_location(str(tmp_path / "out")).catalog.train) == 18


def test_field_report_26_and_27_verify_counts_what_is_odd(gaeanet: Run, t3: Path) -> None:
    folder = t3 / "train" / "n00000001"
    rotated = Image.Exif()
    rotated[0x0112] = 6
    grey = Image.new("L", (40, 30), 99)
    for number in range(2):
        grey.save(folder / f"grey_{number}.JPEG", "JPEG")
    grey.convert("CMYK").save(folder / "cmyk.JPEG", "JPEG")
    grey.convert("RGB").save(folder / "png.JPEG", "PNG")
    grey.convert("RGB").save(folder / "turned.JPEG", "JPEG", exif=rotated)
    grey.convert("RGB").resize((900, 30)).save(folder / "thin.JPEG", "JPEG")
    Image.new("RGBA", (40, 30), (1, 2, 3, 4)).save(folder / "clear.png", "PNG")
    Image.fromarray(np.full((8, 8), 9000, np.uint16)).save(folder / "deep.png", "PNG")
    (folder / "exif.JPEG").write_bytes(broken_exif())
    result = gaeanet("prepare", t3, "--verify")
    assert result.code == 0, result.err
    assert "36 of 36 images decode" in result.out
    for line in (
        "2 grey",
        "1 CMYK",
        "3 PNG, not JPEG",
        "1 16-bit",
        "1 transparent",
        "2 EXIF rotation (ignored)",
        "1 damaged EXIF",
        "1 longer than 16:1 (centre kept)",
    ):
        assert f"\n  {line}\n" in result.out, line
    assert "EXIF data" not in result.err


def test_a_bucket_is_prepared_into_shards(gcs: Proxy, gaeanet: Run, t3: Path, tmp_path: Path) -> None:
    upload(t3, "gs://photos/to-prepare")
    result = gaeanet("prepare", "gs://photos/to-prepare", tmp_path / "shards", "--shards")
    assert result.code == 0, result.err
    ours, theirs = ShardSource(str(tmp_path / "shards")), FolderSource(str(t3))
    assert [ours.read("train", k) for k in range(18)] == [theirs.read("train", k) for k in range(18)]


def test_field_report_28_verify_names_what_does_not_decode(gaeanet: Run, t3: Path) -> None:
    bad = [t3 / "train" / "n00000001" / name for name in ("train_1.JPEG", "train_2.JPEG", "train_3.JPEG")]
    bad[0].write_bytes(bad[0].read_bytes()[:600])
    bad[1].write_bytes(b"")
    bad[2].write_text("<html>not found</html>")
    result = gaeanet("prepare", t3, "--verify")
    assert result.code == 1
    assert "24 of 27 images decode" in result.out
    for path, reason in zip(bad, ("damaged image", "empty file", "not an image")):
        assert f"{path}: {reason}" in result.out
    assert "3 images cannot be decoded" in result.err
