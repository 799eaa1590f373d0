"""Further members of the kinds of the field reports, tried before anybody met them: each is one line, in seconds."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import Result, TinyRun

from gaeanet.errors import RequestError
from gaeanet.runtime.processes import Processes
from gaeanet.runtime.ranks import ranks

Run = Callable[..., Result]
Change = Callable[[Path], object]


def refused(result: Result, message: str, code: int = 2) -> None:
    assert result.code == code, result.out + result.err
    assert result.err.count("\n") == 1, result.err
    assert message in result.err


def pipe(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def endless(name: str) -> Change:
    def change(folder: Path) -> None:
        with open(folder / name, "wb") as file:
            file.truncate(30 << 30)

    return change


def folder_called(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


def newest(change: Change) -> Change:
    return lambda run: change(sorted((run / "checkpoints").glob("step-*"))[-1])


@pytest.mark.parametrize(
    ("change", "message", "command"),
    [
        (folder_called("metrics.jsonl"), "metrics.jsonl: cannot be read: is a directory", "train"),
        (folder_called("config.yaml"), "config.yaml: is a directory; a run continues with --resume", "train"),
        (pipe("metrics.jsonl"), "metrics.jsonl: cannot be read: not a regular file", "train"),
        (endless("metrics.jsonl"), "metrics.jsonl: cannot be read: too large: more than 1,000,000,000", "train"),
        (pipe("metrics.jsonl"), "no run there (metrics.jsonl is missing)", "plot"),
        (endless("metrics.jsonl"), "metrics.jsonl: cannot be read: too large", "plot"),
        (endless("config.yaml"), "config.yaml: cannot read the experiment file: too large", "report"),
    ],
)
def test_field_reports_68_70_91_odd_files_in_a_run_directory(
    gaeanet: Run, tiny_run: TinyRun, tmp_path: Path, change: Change, message: str, command: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run.run, run, symlinks=True)
    config = tmp_path / "again.yaml"
    shutil.copy(run / "config.yaml", config)
    change(run)
    words = {
        "train": ["train", config, "--data", tiny_run.data, "--run-dir", run, "--resume"],
        "plot": ["plot", run],
        "report": ["report", run, "--no-images"],
    }
    result = gaeanet(*words[command])
    refused(result, message, code=1 if "config.yaml: is a directory" in message else 2)


@pytest.mark.parametrize("change", [newest(pipe("manifest.json")), newest(endless("manifest.json"))])
def test_field_reports_68_and_91_a_checkpoint_with_an_odd_manifest_is_skipped(
    gaeanet: Run, tiny_run: TinyRun, tmp_path: Path, change: Change
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run.run, run, symlinks=True)
    config = tmp_path / "again.yaml"
    shutil.copy(run / "config.yaml", config)
    change(run)
    result = gaeanet("train", config, "--data", tiny_run.data, "--run-dir", run, "--resume")
    assert result.code == 0, result.err
    assert "skipped a damaged checkpoint" in result.out


def changed(**values: Any) -> Change:
    """Changes values of an export's config.json; two underscores are a level."""

    def change(folder: Path) -> None:
        tree = json.loads((folder / "config.json").read_text())
        for path, value in values.items():
            *blocks, key = path.split("__")
            block = tree["gaeanet"]
            for name in blocks:
                block = block[name]
            block[key] = value
        (folder / "config.json").write_text(json.dumps(tree))

    return change


@pytest.fixture(scope="module")
def exported(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from gaeanet.cli.main import main

    path = tmp_path_factory.mktemp("exported") / "network"
    assert main(["export", str(tiny_run.run), str(path)]) == 0
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(state__classes=7), "config.json is damaged: classes must be a list of names, is 7"),
        (changed(state__class_names=[1, 2, 3]), "class_names must be a list of names, is [1, 2, 3]"),
        (changed(state__crop_share="wide"), "crop_share must be a number above 0, at most 1, is 'wide'"),
        (changed(state__data=[1]), "data must be what the run learned from, is [1]"),
        (changed(state__hyperparameters=[1]), "hyperparameters must be a block, is [1]"),
        (changed(state__lineage="x"), "lineage must be a chain of parents, is 'x'"),
        (changed(state="x"), "its gaeanet block is damaged: export again"),
        (changed(weights=["ema"]), "its gaeanet block is damaged: export again"),
        (endless("config.json"), "config.json: not the configuration of an exported network"),
        (lambda path: (path / "config.json").write_text("[" * 100_000), "not the configuration of an exported network"),
    ],
)
def test_field_reports_91_and_92_an_export_with_an_odd_configuration(
    gaeanet: Run, tiny_run: TinyRun, exported: Path, tmp_path: Path, change: Change, message: str
) -> None:
    shutil.copytree(exported, tmp_path / "network")
    change(tmp_path / "network")
    refused(gaeanet("evaluate", tmp_path / "network", "--data", tiny_run.data), message)


TABLE = {
    "classes": {f"n{k:08d}": "x" for k in range(3)},
    "counts": {split: {f"n{k:08d}": 6 for k in range(3)} for split in ("train", "val")},
    "fingerprint": "x",
}


@pytest.mark.parametrize(
    "change",
    [
        {**TABLE, "counts": {"train": [1], "val": [1]}},
        {**TABLE, "counts": {"train": {"9": 1}, "val": {}}},
        {**TABLE, "classes": 7},
        {**TABLE, "fingerprint": None},
        [TABLE],
        "[" * 100_000,
        pipe("dataset.json"),
        endless("dataset.json"),
    ],
)
def test_field_reports_68_91_and_92_a_data_set_with_an_odd_table(
    gaeanet: Run, experiment_file: Callable[..., Path], t3: Path, change: Any
) -> None:
    if callable(change):
        change(t3)
    else:
        (t3 / "dataset.json").write_text(change if isinstance(change, str) else json.dumps(change))
    refused(gaeanet("train", experiment_file(), "--data", t3), "dataset.json: not a table that gaeanet prepare wrote")


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "CONFIG", "--run-dir", ""],
        ["train", "CONFIG", "--init", ""],
        ["train", "CONFIG", "--continue-from", " "],
        ["train", ""],
        ["evaluate", ""],
        ["evaluate", "run", "--compare", ""],
        ["predict", "", "x.jpg"],
        ["plot", ""],
        ["plot", "run", "-o", ""],
        ["report", "run", ""],
        ["export", "run", ""],
        ["import", "", "new"],
        ["prepare", "", "new"],
        ["prepare", "data", ""],
        ["bench", ""],
    ],
)
def test_field_report_79_an_empty_name_is_not_the_working_directory(
    gaeanet: Run, experiment_file: Callable[..., Path], tmp_path: Path, arguments: list[str]
) -> None:
    config = experiment_file()
    refused(
        gaeanet(*(str(config) if word == "CONFIG" else word for word in arguments)), "is empty: is a variable unset?"
    )
    assert [path.name for path in tmp_path.iterdir()] == [config.name]


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT"])
@pytest.mark.parametrize("value", ["", "abc", "-2", "1.5", "\u0663", "9" * 5000], ids=ascii)
def test_field_report_61_a_launcher_that_says_no_number(
    gaeanet: Run, experiment_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv(name, value)
    refused(gaeanet("train", experiment_file()), f"{name} is ")


@pytest.mark.parametrize(("one", "all_"), [("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")])
def test_field_report_61_a_process_beyond_their_number(one: str, all_: str) -> None:
    environment = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    assert ranks({**environment, one: "1"}).world_size == 2
    with pytest.raises(RequestError, match=f"{one} (is )?2 of {all_} 2.*: processes count from 0"):
        ranks({**environment, one: "2"})
    with pytest.raises(RequestError, match=f"{all_} is '0', where torchrun sets a whole number from 1"):
        ranks({**environment, all_: "0"})


def test_field_report_61_processes_that_cannot_find_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
        with pytest.raises(RequestError, match=r"WORLD_SIZE=2, but no MASTER_(ADDR|PORT) that this process could find"):
            Processes()
        monkeypatch.setenv(name, "127.0.0.1")
