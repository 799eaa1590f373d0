"""Further members of the kinds of the field reports, tried before anybody met them: each is one line, in seconds."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import Result, TinyRun, jpeg

from gaeanet.artifacts.metadata import read_metadata
from gaeanet.data.sources.entries import read_image
from gaeanet.data.storage.bucket_index import cache_directory
from gaeanet.data.storage.credentials import has_credentials
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


SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2",
    "SLURM_NODEID": "0",
    "SLURM_STEP_NODELIST": "gpu1",
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLURM_PROCID", "2"),
        ("SLURM_PROCID", "-1"),
        ("SLURM_PROCID", "x"),
        ("SLURM_LOCALID", "2"),
        ("SLURM_NTASKS", "0"),
        ("SLURM_NODEID", "-1"),
        ("SLURM_NODEID", "1"),
        ("SLURM_STEP_TASKS_PER_NODE", ""),
        ("SLURM_STEP_TASKS_PER_NODE", "2(x"),
        ("SLURM_STEP_TASKS_PER_NODE", "2(x-1)"),
        ("SLURM_STEP_TASKS_PER_NODE", "2(x99999999999999)"),
        ("SLURM_STEP_NODELIST", ""),
    ],
)
def test_field_reports_61_and_91_slurm_variables_that_make_no_sense(name: str, value: str) -> None:
    assert ranks(SLURM).world_size == 2
    with pytest.raises(RequestError, match="not the variables of a Slurm task: .*: start with srun"):
        ranks({**SLURM, name: value})


def test_field_report_91_an_image_that_is_a_device_has_no_end(
    gaeanet: Run, tiny_run: TinyRun, t3: Path, tmp_path: Path
) -> None:
    """Until the machine's memory was full, when a link among the images led there."""
    result = gaeanet("predict", tiny_run.run, "/dev/zero")
    assert result.code == 1
    assert "/dev/zero: cannot be read: a device, not a file" in result.err
    image = t3 / "train/n00000000/train_0.JPEG"
    image.unlink()
    image.symlink_to("/dev/zero")
    with pytest.raises(OSError, match="a device, not a file"):
        read_image(image)
    data = jpeg((1, 2, 3), (40, 40))
    reader, writer = os.pipe()  # as of <(curl ...)
    os.write(writer, data)
    os.close(writer)
    assert read_image(f"/dev/fd/{reader}") == data
    os.close(reader)


def test_field_report_91_a_line_without_an_end_on_standard_input(
    gaeanet: Run, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Endless(io.RawIOBase):
        given = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            buffer[:] = b"x" * len(buffer)
            self.given += len(buffer)
            assert self.given < 10_000_000
            return len(buffer)

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(Endless())))
    refused(gaeanet("predict", tiny_run.run, "-"), "a line of more than 65,536 bytes, which is no file's name", code=1)


@pytest.mark.parametrize("key", ["path", "label"])
def test_field_reports_65_and_92_half_a_character_in_a_table(gaeanet: Run, tmp_path: Path, key: str) -> None:
    lines = []
    for split, label in itertools.product(("train", "val"), ("cat", "dog")):
        (tmp_path / f"{split}{label}.jpg").write_bytes(jpeg((1, 2, 3), (40, 40)))
        lines.append({"path": f"{split}{label}.jpg", "label": label, "split": split})
    lines[0][key] += "\ud800"
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = gaeanet("prepare", tmp_path / "table.jsonl", "out")
    refused(result, "table.jsonl")
    assert "half a character" in result.err or "there is no traincat.jpg\\ud800" in result.err


@pytest.mark.parametrize("name", ["device", "pipe", "link"])
@pytest.mark.parametrize(
    "words",
    [
        ["plot", "RUN", "-o", "X.png"],
        ["report", "RUN", "--no-images", "-o", "X"],
        ["describe", "const", "--draw", "X.svg"],
    ],
    ids=lambda words: words[0],
)
def test_field_report_63_no_file_takes_the_place_of_a_device(
    gaeanet: Run, tiny_run: TinyRun, tmp_path: Path, words: list[str], name: str
) -> None:
    """With the rights of root, `-o /dev/stdout` replaced what all programs of the machine write to."""
    path = tmp_path / words[-1]
    if name == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/null" if name == "device" else "/proc/self/fd/1")
    before = path.lstat()
    result = gaeanet(*(str(tiny_run.run) if word == "RUN" else word for word in words))
    refused(result, "a device or pipe, not a file", code=1 if words[0] == "report" else 2)
    after = path.lstat()
    assert (after.st_mode, after.st_ino) == (before.st_mode, before.st_ino)


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        (["plot", "RUN", "-o", "x"], "x: curves are drawn as .png, .svg, .pdf: name the file so", 2),
        (["plot", "RUN", "-o", "x.pgf"], "x.pgf: curves are drawn as .png, .svg, .pdf: name the file so", 2),
        (["describe", "const", "--draw", "x.png"], "x.png: cells are drawn as SVG", 2),
        (["export", "RUN", "FILE/x"], "FILE/x: cannot be written: not a directory", 1),
        (["export", "RUN", "x" * 300], "cannot be written: file name too long", 1),
        (["evaluate", "RUN", "--data", "~nobody.is.called.so/x"], "there is no such home directory", 2),
        (["train", "const", "--data", "~nobody.is.called.so/x"], "there is no such home directory", 2),
        (["prepare", "~nobody.is.called.so/x", "out"], "there is no such home directory", 2),
        (["prepare", "x" * 300, "out"], "does not exist", 2),
        (["prepare", "DATA", "DATA/train/out"], "whose classes it would be one of: name another directory", 2),
        (["prepare", "DATA", "DATA/val"], "whose classes it would be one of: name another directory", 2),
        (["prepare", "hf://datasets/../..", "out"], "../.. is no data set's name", 2),
    ],
)
def test_field_reports_79_83_85_and_91_odd_destinations_and_places(
    gaeanet: Run, tiny_run: TinyRun, tmp_path: Path, words: list[str], message: str, code: int
) -> None:
    (tmp_path / "FILE").write_text("a file")
    (tmp_path / "RUN").symlink_to(tiny_run.run)
    (tmp_path / "DATA").symlink_to(tiny_run.data)
    refused(gaeanet(*words), message, code)


@pytest.mark.parametrize("value", ["abc", "9" * 30])
@pytest.mark.parametrize("suffix", ["svg", "pdf"])
def test_field_report_61_an_odd_date_for_reproducible_builds(
    gaeanet: Run, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, value: str, suffix: str
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", value)
    refused(gaeanet("plot", tiny_run.run, "-o", f"x.{suffix}"), f"x.{suffix}: cannot write the picture: ")


def test_field_report_93_a_working_directory_that_was_removed(
    gaeanet: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    refused(gaeanet("describe", "const"), "the working directory is not there any more: cd to another")


def test_field_report_84_without_any_home_a_cache_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under a number that has no entry in the table of users."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(RequestError, match=r"~/.cache: there is no such home directory"):
        cache_directory()
    assert not has_credentials("gs")
    assert not has_credentials("s3")


def zipped(text: str, *, encrypted: bool = False) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression=zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/extra/gaeanet", text)
    data = bytearray(buffer.getvalue())
    data[data.rfind(b"PK\x01\x02") + 8] |= encrypted
    return bytes(data)


@pytest.mark.parametrize(
    "content",
    [zipped("[" * 100_000), zipped(" " * 100_000_000), zipped("{}", encrypted=True), zipped("{}")[:-30], zipped("[3]")],
    ids=["nested", "a bomb", "encrypted", "cut short", "no block"],
)
def test_field_reports_91_and_92_an_exported_program_that_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pt2").write_bytes(content)
    with pytest.raises(RequestError, match=r"x\.pt2: not a torch\.export program, or damaged"):
        read_metadata(tmp_path / "x.pt2")
