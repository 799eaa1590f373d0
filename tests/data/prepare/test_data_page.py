"""The first table of docs/data.md: what it says to type is typed here, for each kind of place."""

from __future__ import annotations

import gzip
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import foreign
import pytest
from ilsvrc import archives
from services import Proxy, upload
from tiny import Result, make_folder

Run = Callable[..., Result]

PAGE = Path(__file__).parents[3] / "docs" / "data.md"


def rows() -> list[tuple[str, str]]:
    """What one has, and the first command of what one types."""
    lines = PAGE.read_text().split("\n\n")[1].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [(have, typed.split("`")[1]) for have, typed in cells]


def zipped(folder: Path, root: Path) -> Path:
    """Hugging Face's older archives as they are downloaded."""
    for path in foreign.gunzipped(folder, root).glob("*.tar"):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    return root


def table(folder: Path, root: Path) -> Path:
    shutil.copytree(folder, root)
    lines = [f"{p.relative_to(root)},{p.parent.name},{p.parts[-3]}" for p in sorted(root.glob("*/*/*"))]
    (root / "labels.csv").write_text("path,label,split\n" + "\n".join(lines))
    return root / "labels.csv"


def ilsvrc(folder: Path, root: Path) -> Path:
    archives(root)
    return root


def folders(folder: Path, root: Path) -> Path:
    return folder


PLACES: dict[str, Callable[[Path, Path], Path]] = {
    "`ILSVRC2012_img_train.tar`": ilsvrc,
    "class folders, Kaggle's": folders,
    "webdataset shards of others": foreign.tars,
    "parquet files": foreign.parquet,
    "what `datasets` wrote": foreign.arrow,
    "Hugging Face's `train_images_0": zipped,
    "TFRecords": lambda folder, root: foreign.tfrecords(folder, root, "google"),
    "MDS directories": foreign.mds,
    "a table": table,
    "class folders or our shards in a bucket": folders,
}
"""How each row's place is made. The Hub's row is typed in tests/data/storage/test_hub.py, where its double is."""


def test_every_row_of_the_page_is_typed() -> None:
    known = [have for have, _ in rows() if any(have.startswith(start) for start in PLACES)]
    assert [have for have, _ in rows() if have not in known] == [
        "a data set on the Hugging Face Hub, nothing here yet",
    ]
    assert len(known) == len(PLACES)


@pytest.mark.parametrize("start", PLACES)
def test_what_the_page_says_to_type_works(
    start: str,
    gcs: Proxy,
    gaeanet: Run,
    experiment_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command = shlex.split(next(typed for have, typed in rows() if have.startswith(start)))
    folder = make_folder(tmp_path / "photos")
    place = PLACES[start](folder, tmp_path / "place")
    upload(folder, "gs://photos/page")
    if command[0] == "gunzip":
        for path in place.glob(command[1]):
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
            path.unlink()
        command = ["gaeanet", "prepare", "DIRECTORY", "IMAGENET"]
    assert command[0] == "gaeanet"
    meant = {
        "DIRECTORY": place,
        "TABLE": place,
        "IMAGENET": tmp_path / "imagenet",
        "const": experiment_file(epochs=1),
        "gs://BUCKET/PREFIX": "gs://photos/page",
    }
    result = gaeanet(*(meant.get(word, word) for word in command[1:]))
    assert result.code == 0, result.err
    if command[1] == "prepare":
        assert len(list((tmp_path / "imagenet").glob("*/*/*"))) == (69 if start.startswith("`ILSVRC") else 27)
