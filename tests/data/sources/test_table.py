"""Tables of image files and labels: each gives the data set of the class folders, or one line with a line number."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import Result, make_folder

from gaeanet.data.prepare.prepare import prepare
from gaeanet.data.sources.folder import FolderSource
from gaeanet.data.sources.open import open_location
from gaeanet.errors import RequestError

Run = Callable[..., Result]
Rows = list[dict[str, str]]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "photos")


@pytest.fixture
def pool(photos: Path, tmp_path: Path) -> tuple[Path, Rows]:
    """The same images in one flat folder, and the rows of a table over them."""
    root = tmp_path / "pool"
    (root / "images").mkdir(parents=True)
    rows = []
    for file in sorted(photos.glob("*/*/*")):
        split, wnid = file.parts[-3], file.parts[-2]
        name = f"{split}-{wnid}-{file.name}"
        shutil.copy(file, root / "images" / name)
        rows.append({"path": f"images/{name}", "label": wnid, "split": split})
    return root, rows[::-1]


def write(path: Path, rows: Rows, delimiter: str = ",") -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with open(path, "w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    return path


def contents(location: Path) -> Iterator[tuple[str, str, bytes]]:
    source = open_location(str(location))
    for split in ("train", "val"):
        for k in range(len(source.catalog.split(split))):
            label = source.catalog.split(split).labels[k]
            yield split, source.catalog.classes[label], source.read(split, k)


def refusal(location: Path, *parts: str, columns: list[str] | None = None) -> None:
    destination = location.parent.parent / "refused"
    with pytest.raises(RequestError) as error:
        prepare(str(location), destination, shards=False, columns=columns)
    assert not destination.exists()
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value), error.value


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.parquet", "semicolons.csv"])
def test_law_4_a_table_of_any_kind_is_the_data_set_of_the_folders(
    name: str, pool: tuple[Path, Rows], photos: Path, tmp_path: Path
) -> None:
    root, rows = pool
    table = write(root / name, rows, {"t.tsv": "\t", "semicolons.csv": ";"}.get(name, ","))
    expected = sorted(contents(photos))
    assert sorted(contents(table)) == expected
    assert sorted(contents(root)) == expected  # the only table in a directory need not be named
    prepare(str(root), tmp_path / "out", shards=False)
    assert sorted(contents(tmp_path / "out")) == expected


def test_a_table_beside_class_folders_has_their_catalog(photos: Path, tmp_path: Path) -> None:
    rows = [
        {"file": file.relative_to(photos).as_posix(), "class": file.parent.name, "set": file.parts[-3]}
        for file in photos.glob("*/*/*")
    ]
    table = write(photos / "mine.csv", rows)
    ours, theirs = open_location(str(table)), FolderSource(str(photos))
    assert ours.catalog.fingerprint == theirs.catalog.fingerprint
    assert [ours.read("val", k) for k in range(9)] == [theirs.read("val", k) for k in range(9)]


def test_kaggles_id_and_label_and_a_table_for_each_split(pool: tuple[Path, Rows], photos: Path) -> None:
    root, rows = pool
    (root / "images").rename(root / "train")
    for split in ("train", "val"):
        kept = [row for row in rows if row["split"] == split]
        names = [Path(row["path"]).stem for row in kept]
        write(root / f"{split}.csv", [{"id": name, "breed": row["label"]} for name, row in zip(names, kept)])
    write(root / "test.csv", [{"id": "not-there", "breed": ""}])
    (root / "val").mkdir()
    for file in (root / "train").glob("val-*"):
        file.rename(root / "val" / file.name)
    assert sorted(contents(root)) == sorted(contents(photos))


def test_columns_of_other_names_are_named(gaeanet: Run, pool: tuple[Path, Rows], photos: Path, tmp_path: Path) -> None:
    root, rows = pool
    table = write(root / "t.csv", [{"a": r["path"], "b": r["label"], "c": r["split"], "class": "no"} for r in rows])
    refusal(table, "add a column split with train and val in it", "its columns are a, b, c, class")
    refusal(table, "has no column d: ", columns=["a", "d", "c"])
    refusal(table, "--columns must name the column of splits as a third", columns=["a", "b"])
    result = gaeanet("prepare", table, tmp_path / "out", "--columns", "a,b,c")
    assert result.code == 0, result.err
    assert sorted(contents(tmp_path / "out")) == sorted(contents(photos))
    for words in ("a", "a,,c", "a,b,c,d"):
        result = gaeanet("prepare", table, tmp_path / "out2", "--columns", words)
        assert result.code == 2
        assert "must be IMAGE,LABEL or IMAGE,LABEL,SPLIT" in result.err
    result = gaeanet("prepare", photos, tmp_path / "out2", "--columns", "a,b")
    assert result.code == 2
    assert "holds no table: --columns names a table's columns" in result.err


def test_images_are_linked_with_link(gaeanet: Run, pool: tuple[Path, Rows], photos: Path, tmp_path: Path) -> None:
    root, rows = pool
    table = write(root / "t.csv", rows)
    for _ in range(2):
        result = gaeanet("prepare", table, tmp_path / "out", "--link")
        assert result.code == 0, result.err
    files = list((tmp_path / "out").glob("*/*/*"))
    assert len(files) == 27
    assert all(path.is_symlink() and path.resolve().parent == root / "images" for path in files)
    assert sorted(contents(tmp_path / "out")) == sorted(contents(photos))
    refused = gaeanet("prepare", table, tmp_path / "shards", "--link", "--shards")
    assert "--link: shards hold copies: leave it out" in refused.err
    assert "--link needs a DESTINATION" in gaeanet("prepare", table, "--link", "--verify").err


def test_law_4_training_from_a_table_reads_the_files_where_they_are(
    gaeanet: Run, experiment_file: Callable[..., Path], photos: Path, tmp_path: Path
) -> None:
    from gaeanet.artifacts.checkpoint import load

    rows = [
        {"file": file.relative_to(photos).as_posix(), "label": file.parent.name, "split": file.parts[-3]}
        for file in photos.glob("*/*/*")
    ]
    places = {"folder": photos, "table": write(photos / "t.jsonl", rows)}
    weights = {}
    for name, location in places.items():
        result = gaeanet("train", experiment_file(epochs=1), "--data", location, "--run-dir", tmp_path / name)
        assert result.code == 0, result.err
        model = load(tmp_path / name / "checkpoints" / "latest")[0]["model"]
        weights[name] = {key: value.tolist() for key, value in model.items()}
    assert weights["table"] == weights["folder"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "", "line 1: must name the columns, is empty"),
        ("t.csv", "path,label,split\n", "holds no rows"),
        ("t.csv", "path,label,split\na.jpg,0\n", "line 2: has 2 cells, the first line has 3"),
        ("t.csv", 'path,label,split\n"a.jpg,0,train\n', "not CSV"),
        ("t.csv", "path,path,split\na.jpg,0,train\n", "line 1: two columns have one name"),
        ("t.csv", "path,label,split\na.jpg,,train\n", "line 2: label must be a class's number or name, is ''"),
        ("t.csv", "path,label,split\n,0,train\n", "line 2: path is empty"),
        ("t.csv", "path,label,split\na.jpg,0,blue\n", "line 2: split must be train, val or test, is 'blue'"),
        ("t.csv", "path,label,split\nb.jpg,0,train\nc.jpg,0,val\n", "line 2: there is no b.jpg in"),
        ("t.csv", "path,label,split\nb.jpg,0,train\nc.jpg,0,val\n", "(2 such lines)"),
        ("t.csv", "path,label,split\n../t.csv,0,train\n", "line 2: '../t.csv': names something outside of"),
        ("t.csv", "path,label,split\n/etc/passwd,0,train\n", "names something outside of"),
        ("t.csv", "path,label,split\na.jpg,-1,train\n", "a.jpg: its label is -1, must be 0 or more"),
        ("t.csv", "path,label,split\na.jpg,0,train\n", "has no val images"),
        ("t.csv", "path,label,split\na.jpg,0,train\na.jpg,0,train\na.jpg,0,val\n", "two samples of class 0"),
        ("t.csv", "colour,shape,split\nred,round,train\n", "has no column of images (called path, file or id)"),
        ("t.csv", "path,size,age,split\na.jpg,1,2,train\n", "has no column of labels (called label or class)"),
        ("t.csv", "path,label,split\n\xe9.jpg,0,train\n", "line 2: not UTF-8"),
        ("t.jsonl", '{"path": "a.jpg"\n', "line 1: not JSON"),
        ("t.jsonl", "[" * 9000, "line 1: not JSON"),
        ("t.jsonl", "[1]\n", "line 1: must be an object"),
        (
            "t.jsonl",
            '{"path": "a.jpg", "label": 1.5, "split": "train"}\n',
            "class's number or name, is '1.5'",
        ),
        ("t.parquet", "PAR1PAR1", "not a whole parquet file"),
    ],
)
def test_field_report_76_what_is_wrong_in_a_table_is_one_line_with_its_number(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.jpg").write_bytes(b"x")
    (root / name).write_bytes(text.encode("latin-1"))
    refusal(root / name, str(root / name), message)


@given(st.text(max_size=60))
def test_any_text_as_a_table_is_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    root = tmp_path_factory.mktemp("any")
    for name in ("t.csv", "t.tsv", "t.jsonl"):
        (root / name).write_text(f"path,label,split\n{text}" if name == "t.csv" else text)
        with pytest.raises(RequestError) as error:
            open_location(str(root / name))
        assert "\n" not in str(error.value)
