"""Names from data never lead out of a directory, and only documented formats are decoded."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ilsvrc import archives, tar_of
from PIL import EpsImagePlugin, Image
from services import Proxy
from tiny import Result, TinyRun

from gaeanet.artifacts.checkpoint import load
from gaeanet.data.formats import FORMATS
from gaeanet.data.images.decode import ImageError, to_pixels
from gaeanet.data.sources.catalog import Split, first_outside
from gaeanet.data.sources.index import read_index, write_index
from gaeanet.data.sources.layout import INDEX
from gaeanet.errors import RequestError
from gaeanet.runs.mirror import Mirror
from gaeanet.runtime.names import inside, shown, stays_inside

Run = Callable[..., Result]
Write = Callable[..., Path]

HOSTILE = ("../outside/x.jpg", "a/../../outside/x.jpg", "/outside/x.jpg", "..", "a/./x.jpg", "a//x.jpg", "a\0.jpg", "")


def all_files(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def one_line(result: Result, *parts: str) -> None:
    assert result.code == 2, result.err
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err
    for part in parts:
        assert part in result.err


@given(st.lists(st.text(alphabet="a./\0é", max_size=5) | st.sampled_from(["n1/x.jpg", *HOSTILE]), max_size=6))
def test_field_report_86_one_look_at_all_names_is_a_look_at_each(names: list[str]) -> None:
    split = Split.of((name, 0) for name in names)
    expected = next((number for number, name in enumerate(names) if not stays_inside(name)), None)
    assert first_outside(split.names, split.ends) == expected


@given(st.text(alphabet="ab./\0", max_size=8))
def test_field_report_86_a_joined_name_stays_in_its_directory(name: str) -> None:
    root = Path("/data/images")
    try:
        path = inside(root, name)
    except RequestError:
        return
    assert "\0" not in str(path)
    resolved = Path(*[part for part in path.parts if part != "."])
    assert ".." not in resolved.parts
    assert resolved.is_relative_to(root)
    assert resolved != root


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("what", ["sample", "shard", "class"])
def test_field_report_86_a_hostile_index_of_shards(
    gaeanet: Run, t3: Path, tmp_path: Path, name: str, what: str
) -> None:
    work = tmp_path / "work"
    assert gaeanet("prepare", t3, work / "shards", "--shards").code == 0
    arrays, facts = read_index(work / "shards" / INDEX)
    arrays = {key: np.array(value) for key, value in arrays.items()}
    if what == "sample":
        split = Split(*(arrays[f"train.{field}"] for field in ("names", "ends", "labels")))
        samples = [(split.name(k), int(split.labels[k])) for k in range(len(split))]
        changed = Split.of([(name, samples[0][1]), *samples[1:]])
        arrays |= {"train.names": changed.names, "train.ends": changed.ends}
    elif what == "shard":
        facts["shards"]["train"][0][0] = name
    else:
        facts["classes"][0] = name
    write_index(work / "shards" / INDEX, arrays, {key: value for key, value in facts.items() if key != "format"})
    before = all_files(tmp_path)
    one_line(gaeanet("prepare", work / "shards", work / "images"), "refused" if what != "shard" else "not followed")
    one_line(gaeanet("prepare", work / "shards", "--verify"))
    assert all_files(tmp_path) == before


@pytest.mark.parametrize("name", ["..tar", "...tar", ".tar"])
def test_field_report_86_a_hostile_archive(gaeanet: Run, tmp_path: Path, name: str) -> None:
    archives(tmp_path / "archives")
    train = tmp_path / "archives" / "ILSVRC2012_img_train.tar"
    with tarfile.open(train) as tar:
        inner = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    inner[name] = inner.pop("n00000000.tar")
    train.write_bytes(tar_of(inner))
    before = all_files(tmp_path)
    one_line(gaeanet("prepare", tmp_path / "archives", tmp_path / "images"))
    assert all_files(tmp_path) == before


@pytest.mark.parametrize("name", ["..", "../../x", "/elsewhere", "a/../../x"])
def test_field_report_86_an_experiment_is_kept_in_runs(
    gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path, name: str
) -> None:
    config = experiment_file("plain", epochs=1)
    config.write_text(config.read_text().replace("name: plain", f"name: {name}"))
    (tmp_path / "in").mkdir()
    before, around = all_files(tmp_path), set(tmp_path.parent.iterdir())
    one_line(gaeanet("train", config, "--data", t3), "name:", "--run-dir")
    one_line(gaeanet("bench", config, "--data", t3), "name:")
    assert (all_files(tmp_path), set(tmp_path.parent.iterdir())) == (before, around)
    assert gaeanet("train", config, "--data", t3, "--run-dir", "mine").code == 0


def test_field_report_86_a_hostile_manifest(gaeanet: Run, tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run.run, run, symlinks=True)
    manifest = (run / "checkpoints" / "latest").resolve() / "manifest.json"
    content: dict[str, Any] = json.loads(manifest.read_text())
    del content["digest"]  # an attacker would make another
    content["files"]["../../../secret.safetensors"] = "0" * 64
    manifest.write_text(json.dumps(content))
    with pytest.raises(RequestError, match="not followed"):
        load(manifest.parent)
    content["state"]["hyperparameters"]["genotype"] = str(tmp_path / "secret.txt")
    manifest.write_text(json.dumps(content))
    result = gaeanet("describe", manifest.parent)
    one_line(result, "is not followed")


def test_field_report_86_a_hostile_mirror(gcs: Proxy, tmp_path: Path) -> None:
    mirror = Mirror(f"gs://photos/{tmp_path.name}")
    for key in ("step-000000001/manifest.json", "evil/manifest.json", "step-000000001/deep/manifest.json"):
        mirror._client.put(f"checkpoints/{key}", b"{}")
    assert mirror.checkpoints() == {"step-000000001": ["manifest.json"]}


def test_names_are_shown_without_what_steers_a_terminal() -> None:
    assert shown("a\x1b[31mb\nc\udcfc é") == "a\\x1b[31mb\\nc\\udcfc é"


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 60 60\n%%EndComments\nshowpage\n%%EOF\n"


def other_formats() -> dict[str, bytes]:
    """Files of formats that Pillow reads and this program does not."""
    image, made = Image.new("RGB", (40, 30), (200, 40, 40)), {"EPS": EPS}
    for name in ("TGA", "PCX", "SGI", "ICO", "IM", "SPIDER", "JPEG2000", "AVIF", "DDS", "ICNS", "MSP", "XBM"):
        buffer = io.BytesIO()
        try:
            (image.convert("1") if name in ("MSP", "XBM") else image).save(buffer, name)
        except (OSError, KeyError, ValueError):  # not in this build
            continue
        made[name] = buffer.getvalue()
    return made


def test_field_report_87_only_the_documented_formats_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("a program was started on a photograph")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)
    monkeypatch.setattr("subprocess.Popen", started)
    tried = other_formats()
    assert len(tried) > 4
    for name, data in tried.items():
        assert name not in FORMATS
        with pytest.raises(ImageError, match="not an image"):
            to_pixels(data)


def test_field_report_87_eps_in_a_photographs_clothes(gaeanet: Run, t3: Path) -> None:
    bad = next((t3 / "train" / "n00000000").iterdir())
    bad.write_bytes(EPS)
    result = gaeanet("prepare", t3, "--verify")
    assert result.code == 1
    assert f"{bad}: not an image" in result.out


@pytest.mark.parametrize("name", FORMATS)
def test_field_report_87_the_documented_formats_are_read(name: str) -> None:
    image, buffer = Image.new("RGB", (40, 30), (200, 40, 40)), io.BytesIO()
    image.save(buffer, name)
    assert tuple(to_pixels(buffer.getvalue()).shape) == (3, 30, 40)
