"""The command line: help and refusals at once, in one line, before any training."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import Result

Run = Callable[..., Result]
Write = Callable[..., Path]


def test_help_and_version(gaeanet: Run) -> None:
    assert "train" in gaeanet("--help").out
    assert "--resume" in gaeanet("train", "--help").out
    assert gaeanet("--version").out.startswith("gaeanet 0.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND; see gaeanet --help"),
        (["trian"], "invalid choice: 'trian'"),
        (["train"], "train: name the experiment file, for example gaeanet train const"),
        (["train", "none.yaml"], "none.yaml: cannot read the experiment file: no such file or directory"),
        (["train", "tiny.yaml", "--dta", "x"], "unrecognized arguments: --dta x"),
        (["train", "tiny.yaml", "--resum"], "unrecognized arguments: --resum"),
        (["evaluate", "run", "--weight", "ema"], "unrecognized arguments: --weight ema"),
        (["train", "tiny.yaml", "--data", "nowhere"], "data.location: nowhere does not exist"),
        (["train", "tiny.yaml", "--data", ""], "--data is empty"),
        (["train", "tiny.yaml", "--data", "ftp://x/y"], "data.location: ftp://x/y"),
        (
            ["train", "tiny.yaml", "--run-dir", "tiny.yaml/x"],
            "tiny.yaml/x: cannot write the run there: not a directory",
        ),
        (["train", "tiny.yaml", "--set", "hyperparameters.epochs=x"], "hyperparameters.epochs: must be a whole number"),
        (["train", "tiny.yaml", "--set", "hyperparameters.genotype=darts"], "did you mean darts-v"),
    ],
)
def test_every_refusal_is_one_line_and_exit_code_2(
    gaeanet: Run, experiment_file: Write, arguments: list[str], message: str
) -> None:
    experiment_file()
    result = gaeanet(*arguments)
    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1
    assert result.err.startswith("gaeanet: ")
    assert result.out == ""


WINDOWS = """
import signal, sys
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None  # importing it fails, as on Windows
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2"):
    delattr(signal, name)
sys.platform = "win32"
from gaeanet.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("arguments", [["--version"], ["train", "const.yaml"], ["predict", "runs/x", "photographs/"]])
def test_windows_is_refused_in_one_line(arguments: list[str]) -> None:
    result = subprocess.run([sys.executable, "-c", WINDOWS, *arguments], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == "gaeanet: gaeanet runs on Linux and macOS; on Windows use WSL (https://aka.ms/wsl)\n"
    assert result.stdout == ""


def test_help_and_refusals_come_without_torch(experiment_file: Write, t3: Path) -> None:
    config = experiment_file()
    wrong_classes = experiment_file(name="wrong", num_classes=4)
    for arguments in (["--help"], ["train", "none.yaml"], ["train", str(wrong_classes), "--data", str(t3)]):
        code = f"from gaeanet.cli.main import main\nimport sys\ntry: main({arguments!r})\nexcept SystemExit: pass\n"
        code += "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=config.parent)


def test_a_refused_run_leaves_nothing_behind(gaeanet: Run, experiment_file: Write, t3: Path, tmp_path: Path) -> None:
    assert gaeanet("train", experiment_file(num_classes=4), "--data", t3).code == 2
    assert not (tmp_path / "runs").exists()


def test_field_report_38_a_missing_place_trains_on_nothing(
    gaeanet: Run, experiment_file: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_VARIABLE", raising=False)
    for arguments in (["--data", ""], ["--data", "/no/such/place"], ["--set", "data.bucket_name="]):
        result = gaeanet("train", experiment_file(data={"location": "gone"}), *arguments)
        assert result.code == 2, arguments
    assert not (tmp_path / "runs").exists()
