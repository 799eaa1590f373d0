"""Class folders: what counts as a class, and what is refused before any training."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import make_folder

from gaeanet.config.experiment import experiment_from
from gaeanet.data.sources.catalog import Split
from gaeanet.data.sources.folder import FolderSource
from gaeanet.data.sources.open import open_location, open_source
from gaeanet.errors import RequestError


def test_classes_are_sorted_as_plain_strings_and_validation_uses_trains_table(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        for name in ("0", "1", "10", "2", "B", "a"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / f"{split}.jpg").touch()
    source = FolderSource(str(tmp_path))
    assert source.catalog.classes == ("0", "1", "10", "2", "B", "a")
    assert [source.catalog.val.name(k) for k in range(6)] == [f"{n}/validation.jpg" for n in source.catalog.classes]
    assert source.catalog.val.labels.tolist() == list(range(6))


def test_field_report_24_hidden_and_stray_entries_are_skipped_with_a_note(t3: Path) -> None:
    (t3 / "train" / ".ipynb_checkpoints").mkdir()
    (t3 / "train" / ".ipynb_checkpoints" / "x.jpg").touch()
    (t3 / "train" / "README.txt").touch()
    (t3 / "train" / "empty").mkdir()
    (t3 / "train" / "n00000000" / ".hidden.jpg").touch()
    (t3 / "train" / "n00000000" / "notes.txt").touch()
    source = FolderSource(str(t3))
    assert source.catalog.classes == ("n00000000", "n00000001", "n00000002")
    assert len(source.catalog.train) == 18
    assert ".ipynb_checkpoints, README.txt, empty" in source.notes[0]
    assert "3 entries" in source.notes[0]
    assert "skipped 1 file that is no image by name (n00000000/notes.txt)" in source.notes[1]


def test_field_report_24_a_class_count_unlike_the_networks_is_refused(t3: Path) -> None:
    tree = {"data": {"location": str(t3)}, "hyperparameters": {"num_classes": 2, "global_batch_size": 4}}
    with pytest.raises(
        RequestError, match=r"num_classes is 2 but .* has 3 classes: --set hyperparameters.num_classes=3"
    ):
        open_source(experiment_from(tree))


def test_what_cannot_be_read_is_refused_with_path_and_remedy(tmp_path: Path) -> None:
    def refusal(location: Path) -> str:
        with pytest.raises(RequestError) as error:
            FolderSource(str(location))
        return str(error.value)

    assert "does not exist: it must hold train/ and val/" in refusal(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    assert "is a file, not a directory" in refusal(tmp_path / "file")
    (tmp_path / "bare").mkdir()
    assert "has no train/ folder" in refusal(tmp_path / "bare")
    (tmp_path / "bare" / "train").mkdir()
    assert "has no val/ or validation/ folder" in refusal(tmp_path / "bare")
    (tmp_path / "bare" / "val").mkdir()
    assert "no class folders in it" in refusal(tmp_path / "bare")

    make_folder(tmp_path / "differs")
    for image in (tmp_path / "differs" / "val" / "n00000002").iterdir():
        image.unlink()
    assert "validation lacks 1 class (n00000002)" in refusal(tmp_path / "differs")

    make_folder(tmp_path / "flat")
    for image in list((tmp_path / "flat" / "val").glob("*/*")):
        image.rename(tmp_path / "flat" / "val" / f"{image.parent.name}_{image.name}")
    assert "one flat folder of images?" in refusal(tmp_path / "flat")


def test_a_folder_too_high_or_too_low_is_told_the_right_one(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data" / "sets" / "imagenet")
    for wrong in ("data", "data/sets", "data/sets/imagenet/train", "data/sets/imagenet/train/n00000001"):
        with pytest.raises(RequestError) as error:
            open_location(str(tmp_path / wrong))
        assert f"{tmp_path / wrong}: has no train/ folder in it; did you mean {root}?" in str(error.value)
    with pytest.raises(RequestError) as error:
        open_location(str(root / "train" / "n00000001" / ".."))
    assert f"did you mean {root}?" in str(error.value)
    (tmp_path / "other").mkdir()
    with pytest.raises(RequestError) as error:
        open_location(str(tmp_path / "other"))
    assert "did you mean" not in str(error.value)


def test_shards_archives_and_kaggles_layout_are_found_below_too(tmp_path: Path) -> None:
    for name, file in (("shards", "index.safetensors"), ("archives", "ILSVRC2012_img_train.tar")):
        (tmp_path / name / "here").mkdir(parents=True)
        (tmp_path / name / "here" / file).touch()
        with pytest.raises(RequestError, match=f"did you mean {tmp_path / name / 'here'}"):
            open_location(str(tmp_path / name))
    make_folder(tmp_path / "kaggle" / "download" / "ILSVRC" / "Data" / "CLS-LOC")
    with pytest.raises(RequestError, match=f"did you mean {tmp_path / 'kaggle' / 'download'}"):
        open_location(str(tmp_path / "kaggle"))


def test_half_unpacked_archives_and_two_validation_folders_are_refused(t3: Path, tmp_path: Path) -> None:
    (tmp_path / "half" / "train").mkdir(parents=True)
    (tmp_path / "half" / "val").mkdir()
    (tmp_path / "half" / "train" / "n00000000.tar").touch()
    with pytest.raises(RequestError, match=r"the .tar files in it are the classes' archives: extract each"):
        open_location(str(tmp_path / "half"))
    (t3 / "validation").mkdir()
    with pytest.raises(RequestError, match=r"has both val/ and validation/: remove or rename one"):
        open_location(str(t3))


def test_field_report_22_the_order_of_a_directorys_entries_does_not_matter(
    t3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = FolderSource(str(t3))
    scandir = os.scandir

    class Backwards:
        def __init__(self, path: object) -> None:
            with scandir(path) as entries:  # type: ignore[call-overload]
                self._entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> Iterator[os.DirEntry[str]]:
            return iter(self._entries)

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Backwards)
    backwards = FolderSource(str(t3))
    assert backwards.catalog.classes == plain.catalog.classes
    assert backwards.catalog.fingerprint == plain.catalog.fingerprint


def test_a_batch_larger_than_the_data_is_refused(t3: Path) -> None:
    tree = {"data": {"location": str(t3)}, "hyperparameters": {"num_classes": 3, "global_batch_size": 19}}
    with pytest.raises(RequestError, match="global_batch_size is 19, more than the 18 training images"):
        open_source(experiment_from(tree))


def test_names_are_kept_compactly_and_exactly() -> None:
    names = ["a/ä.jpg", "b/" + "x" * 300, "c/\udcff.jpg"]
    split = Split.of([(name, k) for k, name in enumerate(names)])
    assert [split.name(k) for k in range(3)] == names
    assert split.counts(4).tolist() == [1, 1, 1, 0]
