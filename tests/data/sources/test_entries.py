"""What is an image, a class and a data set: one definition, wherever images come from."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from ilsvrc import archives, tar_of
from tiny import Result, TinyRun, jpeg, make_folder, read_log

from gaeanet.data.prepare.prepare import open_material
from gaeanet.data.sources import entries
from gaeanet.data.sources.archives import ArchiveSource
from gaeanet.data.sources.entries import images_under, is_image
from gaeanet.data.sources.evaluation import EvaluationFolder
from gaeanet.data.sources.folder import FolderSource

Run = Callable[..., Result]
Write = Callable[..., Path]

MAC = {"._x.JPEG": b"\0\5\x16\7", ".DS_Store": b"\0", "__MACOSX/x.JPEG": b"\0", "./.hidden/y.jpg": b"\0"}


def quiet(result: Result, code: int) -> None:
    assert result.code == code, result.err
    assert "Traceback" not in result.err + result.out
    assert result.err.count("\n") <= 1


def packed_again(root: Path, more: dict[str, bytes], inner: dict[str, bytes]) -> None:
    """The archives of ILSVRC2012 with further members, in the outer tars and in those of the classes."""
    for name in ("train", "val"):
        path = root / f"ILSVRC2012_img_{name}.tar"
        with tarfile.open(path) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        if name == "train":
            for key, data in files.items():
                with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                    images = {f"./{m.name}": tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
                files[key] = tar_of({**inner, **images})
        path.write_bytes(tar_of({**more, **files}))


def test_field_report_71_archives_packed_again_on_a_mac_are_the_same_data(tmp_path: Path) -> None:
    archives(tmp_path / "a", train=4)
    archives(tmp_path / "b", train=4)
    outer = {**MAC, "._n00000000.tar": b"\0\5\x16\7", "__MACOSX/n00000001.tar": b"\0"}
    packed_again(tmp_path / "b", outer, MAC)
    plain, mac = ArchiveSource(str(tmp_path / "a")), ArchiveSource(str(tmp_path / "b"))
    assert mac.catalog.fingerprint == plain.catalog.fingerprint
    assert mac.read("train", 3) == plain.read("train", 3)
    assert mac.notes == []


def test_field_report_95_something_extra_is_skipped_and_counted(gaeanet: Run, tmp_path: Path) -> None:
    archives(tmp_path / "a", train=4)
    plain = ArchiveSource(str(tmp_path / "a")).catalog.fingerprint
    extra = {"script.sh": b"rm", "notes/README.txt": b"x"}
    packed_again(tmp_path / "a", extra, extra)
    source = ArchiveSource(str(tmp_path / "a"))
    assert source.catalog.fingerprint == plain
    assert len(source.notes) == 5
    assert all("skipped 2 files that do not" in note and "script.sh" in note for note in source.notes)
    result = gaeanet("prepare", tmp_path / "a", tmp_path / "images")
    quiet(result, 0)
    assert "script.sh" in result.out
    assert not list((tmp_path / "images").rglob("*.sh"))
    assert FolderSource(str(tmp_path / "images")).catalog.fingerprint == plain


@pytest.mark.parametrize("where", ["train", "val", "classes"])
def test_field_report_95_two_files_of_one_name_are_refused_at_once(gaeanet: Run, tmp_path: Path, where: str) -> None:
    archives(tmp_path / "a", train=4)
    if where == "classes":
        packed_again(tmp_path / "a", {}, {"n00000000_1.JPEG": jpeg((9, 9, 9), (8, 8))})
    else:
        path = tmp_path / "a" / f"ILSVRC2012_img_{where}.tar"
        with tarfile.open(path) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        files[f"again/{next(iter(files))}"] = b"other"
        path.write_bytes(tar_of(files))
    result = gaeanet("prepare", tmp_path / "a", tmp_path / "images")
    quiet(result, 2)
    assert "holds two files called " in result.err
    assert not (tmp_path / "images").exists()


KAGGLE = (
    "ImageId,PredictionString\nILSVRC2012_val_00000001,n00000001 1 2 3 4\nILSVRC2012_val_00000002,n00000000 5 6 7 8\n"
)
SPREADSHEETS: dict[str, bytes] = {
    "byte order and line ends": ("\ufeff" + KAGGLE.replace("\n", "\r\n")).encode(),
    "old line ends": KAGGLE.replace("\n", "\r").encode(),
    "quotes": KAGGLE.replace("n00000001 1 2 3 4", '"n00000001 1 2 3 4"').encode(),
    "semicolons": KAGGLE.replace(",", ";").encode(),
    "tabs": KAGGLE.replace(",", "\t").encode(),
    "spaces": KAGGLE.replace(",", " , ").encode(),
    "further columns and empty lines": KAGGLE.replace("\n", ",,\n").replace("4,", "4,,\n\n,,").encode(),
}
WRONG = {
    "": "line 1",
    "ImageId,PredictionString\n": "line 1: holds no images",
    "Image,Class\na,b\n": "line 1: must be ImageId,PredictionString",
    KAGGLE + "x\n": "line 4: needs an image and its class",
    KAGGLE + "x,\n": "line 4: needs an image and its class",
    KAGGLE + ",n00000001\n": "line 4: needs an image and its class",
    KAGGLE + "ILSVRC2012_val_00000001,n00000002 1\n": "line 4: ILSVRC2012_val_00000001 has another class before",
    KAGGLE + '"x,n00000001\n': "line 4: not CSV",
    KAGGLE + "gar\udce7on,n00000001\n": "line 4: not UTF-8",
}


def kaggle(root: Path, content: bytes) -> Path:
    make_folder(root, classes=2, val=0)
    (root / "val").mkdir(exist_ok=True)
    for k in (1, 2):
        (root / "val" / f"ILSVRC2012_val_{k:08d}.JPEG").write_bytes(jpeg((k, k, k), (9, 9)))
    (root / "LOC_val_solution.csv").write_bytes(content)
    return root


@pytest.mark.parametrize("name", SPREADSHEETS)
def test_field_report_76_a_list_that_a_spreadsheet_has_saved(tmp_path: Path, name: str) -> None:
    source = open_material(str(kaggle(tmp_path / "k", SPREADSHEETS[name])))
    assert [source.catalog.val.name(k)[:9] for k in range(2)] == ["n00000000", "n00000001"]


@pytest.mark.parametrize("text", WRONG)
def test_field_report_76_what_is_wrong_in_a_list_has_its_line(gaeanet: Run, tmp_path: Path, text: str) -> None:
    root = kaggle(tmp_path / "k", text.encode(errors="surrogateescape"))
    result = gaeanet("prepare", root, "--verify")
    quiet(result, 2)
    assert WRONG[text] in result.err


@pytest.mark.parametrize(
    ("file", "text"), [("map_clsloc.txt", "n00000001\n"), ("truth", "1\nx\n"), ("truth", "1\n\n2\n")]
)
def test_field_report_76_a_devkits_tables_too(gaeanet: Run, tmp_path: Path, file: str, text: str) -> None:
    root = kaggle(tmp_path / "k", b"")
    (root / "LOC_val_solution.csv").unlink()
    (root / "map_clsloc.txt").write_text("\ufeffn00000000 1 a\r\nn00000001 2 b\r\n")
    truth = "ILSVRC2012_validation_ground_truth.txt"
    (root / truth).write_text("\ufeff1\r\n2\r\n")
    assert len(open_material(str(root)).catalog.val) == 2
    (root / (truth if file == "truth" else file)).write_text(text)
    result = gaeanet("prepare", root, "--verify")
    quiet(result, 2)
    assert f"line {2 if file == 'truth' else 1}: must be " in result.err


def odd_folder(root: Path) -> set[str]:
    """Fills a directory with all kinds of entries; returns those that are images."""
    photo = jpeg((9, 99, 199), (20, 20))
    for name in (
        "a.jpg",
        "deep/er/b.PNG",
        ".hidden.jpg",
        ".ipynb_checkpoints/c.jpg",
        "__MACOSX/d.jpg",
        "._a.jpg",
        "e.txt",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(photo)
    (root / "x.jpg").mkdir()
    (root / "x.jpg" / "f.jpeg").write_bytes(photo)
    outside = root.parents[2] / "outside"
    outside.mkdir()
    (outside / "g.jpg").write_bytes(photo)
    (root / "linked").symlink_to(outside)
    (root / "linked.jpg").symlink_to(outside / "g.jpg")
    (root / "again").symlink_to(root / "deep")
    (root / "self").symlink_to(".")
    (root / "deep" / "up").symlink_to("..")
    (root / "one").symlink_to("two")
    (root / "two").symlink_to("one")
    (outside / "back").symlink_to(root)
    return {"a.jpg", "deep/er/b.PNG", "x.jpg/f.jpeg", "linked/g.jpg", "linked.jpg"}


def test_field_report_78_and_93_one_rule_for_every_reader(gaeanet: Run, tiny_run: TinyRun, tmp_path: Path) -> None:
    data = make_folder(tmp_path / "data", train=2, val=1)
    expected = odd_folder(data / "train" / "n00000000")
    (data / "train" / "self").symlink_to(".")
    (data / "train" / ".hidden").mkdir()
    folder = data / "train" / "n00000000"
    made = {"train_0.JPEG", "train_1.JPEG"}
    assert sorted(images_under(folder)) == sorted(expected | made)
    source = FolderSource(str(data))
    names = {source.catalog.train.name(k) for k in range(len(source.catalog.train))}
    assert source.catalog.classes == ("n00000000", "n00000001", "n00000002")
    assert {n for n in names if n.startswith("n00000000/")} == {f"n00000000/{n}" for n in expected | made}
    assert len(names) == len(source.catalog.train)
    result = gaeanet("predict", tiny_run.run, folder, "--json")
    quiet(result, 0)
    assert {json.loads(line)["image"] for line in result.out.splitlines()} == {str(folder / n) for n in expected | made}
    result = gaeanet("prepare", data, "--verify")
    quiet(result, 0)
    assert f"{len(names) + 3} of {len(names) + 3} images decode" in result.out
    quiet(gaeanet("prepare", data, tmp_path / "copy"), 0)
    assert FolderSource(str(tmp_path / "copy")).catalog.fingerprint == source.catalog.fingerprint
    held = EvaluationFolder(str(data), data / "train", source.catalog.classes)
    assert len(held.catalog.val) == len(names)
    assert all(is_image(name) for name in names)


def test_field_report_77_links_whose_target_is_gone(
    gaeanet: Run, experiment_file: Write, tiny_run: TinyRun, tmp_path: Path
) -> None:
    data = make_folder(tmp_path / "data", train=6, val=2)
    gone = [data / "train" / "n00000000" / f"gone{k}.jpg" for k in range(3)]
    for path in gone:
        path.symlink_to("nowhere")
    result = gaeanet("prepare", data, "--verify")
    quiet(result, 1)
    assert "24 of 27 images decode" in result.out
    for path in gone:
        assert f"{path}: cannot be read: no such file or directory" in result.out
    config = experiment_file(epochs=1)
    result = gaeanet("train", config, "--data", data, "--run-dir", "run", "--set", "data.max_bad=3")
    quiet(result, 0)
    for path in gone:
        assert f"skipped {path}: cannot be read" in result.out
    assert sum(line["skipped_images"] for line in read_log(tmp_path / "run", "train")) >= 3
    result = gaeanet("train", config, "--data", data, "--run-dir", "two", "--set", "data.max_bad=2")
    quiet(result, 1)
    assert "data.max_bad" in result.err
    result = gaeanet("predict", tiny_run.run, data / "train" / "n00000000", "--json")
    assert result.code == 1
    assert "3 of 9 images could not be read" in result.err
    quiet(gaeanet("prepare", data, tmp_path / "copy"), 1)
    (data / "val" / "n00000000" / "gone.jpg").symlink_to("nowhere")
    result = gaeanet("train", config, "--data", data, "--run-dir", "three", "--set", "data.max_bad=3")
    quiet(result, 1)
    assert "validation needs every image" in result.err


def test_field_report_93_a_folder_that_may_not_be_entered_is_counted(
    gaeanet: Run, tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_folder(tmp_path / "data", train=2, val=2)
    scandir = os.scandir

    def closed(path: str) -> object:  # root may enter everything
        if str(path).endswith("n00000001"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(entries.os, "scandir", closed)
    result = gaeanet("predict", tiny_run.run, data / "train", "--json")
    assert result.code == 1
    assert len([line for line in result.out.splitlines() if "top" in json.loads(line)]) == 4
    assert f"{data}/train/n00000001: cannot be listed: permission denied" in result.err
    assert "Traceback" not in result.err
    for command in (("prepare", data, "--verify"), ("prepare", data, tmp_path / "copy")):
        result = gaeanet(*command)
        quiet(result, 2)
        assert "n00000001: cannot be listed: permission denied" in result.err


def test_field_report_91_a_file_is_looked_at_before_it_is_read(gaeanet: Run, tiny_run: TinyRun, tmp_path: Path) -> None:
    data = make_folder(tmp_path / "data", train=2, val=1)
    huge = data / "train" / "n00000000" / "huge.jpg"
    with open(huge, "wb") as file:
        file.truncate(20 << 30)
    result = gaeanet("prepare", data, "--verify")
    quiet(result, 1)
    assert f"{huge}: cannot be read: too large: 21,474,836,480 bytes" in result.out
    result = gaeanet("predict", tiny_run.run, huge)
    assert result.code == 1
    assert "too large" in result.err


def test_field_report_65_and_88_names_of_any_bytes(gaeanet: Run, experiment_file: Write, tmp_path: Path) -> None:
    data = make_folder(tmp_path / "data", train=4, val=2)
    strange = os.fsdecode(b"gar\xe7on \x1b[31m\n$x$")
    for split in ("train", "val"):
        (data / split / "n00000000").rename(data / split / strange)
        (data / split / strange / os.fsdecode(b"M\xfcller\x07.jpg")).write_bytes(jpeg((1, 2, 3), (20, 20)))
    (data / "train" / strange / os.fsdecode(b"bad\xff.jpg")).write_bytes(b"junk")
    (data / "train" / os.fsdecode(b"empty\xff")).mkdir()
    run = tmp_path / "run"
    commands = [
        ("train", experiment_file(epochs=1), "--data", data, "--run-dir", run),
        ("predict", run, data / "val"),
        ("predict", run, data / "val", "--json"),
        ("evaluate", run, "--json"),
        ("evaluate", run, "--per-class"),
        ("export", run, tmp_path / "export", "--format", "timm"),
        ("describe", run / "checkpoints" / "best"),
        ("report", run),
        ("prepare", data, tmp_path / "copy"),
        ("prepare", data, tmp_path / "shards", "--shards"),
        ("train", experiment_file(epochs=2), "--data", data, "--run-dir", run, "--resume"),
    ]
    for command in commands:
        result = gaeanet(*command)
        quiet(result, 2 if "--per-class" in command and result.code else 0)
        (result.out + result.err).encode()
        assert "\x1b" not in result.out + result.err, command
        assert "\x07" not in result.out + result.err
        assert "\udce7" not in result.out
    result = gaeanet("prepare", data, "--verify")
    quiet(result, 1)
    assert "bad\\udcff.jpg: not an image" in result.out
