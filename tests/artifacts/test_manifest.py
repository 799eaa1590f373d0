"""The state of a checkpoint is covered by a digest, and by types and ranges where there is none."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Result, TinyRun

from gaeanet.artifacts import checkpoint
from gaeanet.errors import RequestError

Run = Callable[..., Result]

STATE = {
    "batches": 28,
    "updates": 28,
    "skipped": 0,
    "rate_scale": 0.5,
    "best": [{"top1_accuracy": 25.0, "epoch": 1.0, "batches": 6, "weights": "raw"}],
    "hyperparameters": {"layers": 3, "learning_rate": 0.1},
    "classes": ["a", "b"],
    "world_size": 1,
}


def saved(tmp_path: Path) -> Path:
    return checkpoint.save(tmp_path, 28, {"model": {"a": torch.ones(2)}}, STATE)


def changed(path: Path, key: str, value: Any, keep_digest: bool = False) -> Path:
    content = json.loads((path / "manifest.json").read_text())
    (content if key in ("step", "files", "state", "format") else content["state"])[key] = value
    if not keep_digest:
        content.pop("digest", None)
    (path / "manifest.json").write_text(json.dumps(content))
    return path


def test_field_report_89_every_bit_of_the_state_is_covered(tmp_path: Path) -> None:
    path = saved(tmp_path)
    whole = bytearray((path / "manifest.json").read_bytes())
    for at in range(0, len(whole)):
        for bit in (0, 3):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << bit
            (path / "manifest.json").write_bytes(damaged)
            try:
                _, state = checkpoint.load(path)
            except RequestError as error:
                assert "\n" not in str(error)  # noqa: PT017
            else:
                assert state == STATE  # white space
    for key, value in (("updates", 60), ("rate_scale", 0.25), ("best", None)):
        (path / "manifest.json").write_bytes(whole)
        with pytest.raises(RequestError, match="wrong checksum"):
            checkpoint.load(changed(path, key, value, keep_digest=True))


def test_field_report_89_spaces_and_order_do_not_matter(tmp_path: Path) -> None:
    path = saved(tmp_path)
    content = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(dict(reversed(content.items())), indent=7))
    assert checkpoint.load(path)[1] == STATE


def test_checkpoints_from_before_the_digest_are_read(tmp_path: Path) -> None:
    path = changed(saved(tmp_path), "skipped", 1)
    assert checkpoint.load(path)[1] == {**STATE, "skipped": 1}


WRONG = {
    "batches": (-8, 1.5, "28", None, [], True, 10**30),
    "updates": (-1, {}, 1e3),
    "skipped": (-1, "x"),
    "bad_steps": (None, False),
    "validated_at": (-2, "now"),
    "settled": ([], 0.5),
    "world_size": (0, -1, "2", None),
    "rate_scale": (9, 0, -0.5, float("nan"), float("inf"), "1", None, True),
    "crop_share": (0, 2, "x"),
    "best": (5, {}, [5], [{}], [{"batches": 6}], [{**STATE["best"][0], "weights": "x"}]),  # type: ignore[index,dict-item]
    "scaler": (None, [], {"scale": "x"}, {"scale": float("nan")}, {"scale": -1}),
    "hyperparameters": (None, [], 5, "x"),
    "classes": ("ab", [1], [None], {}, []),
    "class_names": (5, [[]]),
    "data": ([], "x", {"location": 5}, {"settings": 5}, {"generated": "yes"}),
    "lineage": (5, [], {"parent": 5}, {"parent": {}}, {"parent": {"path": 5, "weights": "raw"}}),
    "gaeanet": (None, 5),
    "torch": ([],),
    "imported_from": (5,),
    "step": (-1, "x", None),
    "files": ([], {"model.safetensors": 5}, {"model.safetensors": "x"}),
    "state": ([], None, 5),
}


@pytest.mark.parametrize("key", WRONG)
def test_field_report_89_wrong_types_and_ranges_are_one_line(tmp_path: Path, key: str) -> None:
    path = saved(tmp_path)
    for value in WRONG[key]:
        with pytest.raises(RequestError, match=f"manifest.json is damaged: {key} must be") as error:
            checkpoint.load(changed(path, key, value))
        assert str(error.value).isprintable()


@pytest.mark.parametrize("key", ["rate_scale", "best", "hyperparameters", "classes"])
def test_field_report_89_every_command_says_so(gaeanet: Run, tiny_run: TinyRun, tmp_path: Path, key: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run.run, run, symlinks=True)
    latest = (run / "checkpoints" / "latest").resolve()
    changed(latest, key, 5)
    for command in ("describe", "evaluate", "export"):
        result = gaeanet(command, latest, *(["x.onnx"] if command == "export" else []))
        assert result.code == 2
        assert result.err.count("\n") == 1
        assert f"{key} must be" in result.err


def test_field_report_64_what_is_written_follows_umask(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        path = saved(tmp_path)
    finally:
        os.umask(old)
    for file in path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors"])
def test_field_report_83_a_file_that_cannot_be_read_is_one_line(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, opened = saved(tmp_path), open

    def refuse(file: Any, *rest: Any, **options: Any) -> Any:  # root may read everything
        if str(file).endswith(name):
            raise PermissionError(13, "Permission denied", str(file))
        return opened(file, *rest, **options)

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr("io.open", refuse)
    with pytest.raises(RequestError, match=f"{name}: cannot be read: permission denied"):
        checkpoint.load(path)


def test_field_report_91_a_manifest_is_looked_at_before_it_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with open(path / "manifest.json", "r+b") as file:
        file.truncate(20 << 30)
    with pytest.raises(RequestError, match="not a gaeanet checkpoint"):
        checkpoint.load(path)
