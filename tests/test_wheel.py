"""The wheel, built and installed outside of the project: what is not in it is missed here."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

TINY = [
    "hyperparameters.epochs=1",
    "hyperparameters.init_channels=4",
    "hyperparameters.layers=2",
    "hyperparameters.num_classes=2",
    "hyperparameters.image_size=32",
    "hyperparameters.global_batch_size=10",
    "data.generated_per_class=10",
    "data.num_workers_train=0",
    "data.num_workers_val=0",
]


def build(kind: str, folder: Path) -> Path:
    """The `wheel` or `sdist` of this checkout, made by the project's own build backend."""
    pytest.importorskip("hatchling", reason="hatchling, which builds the wheel, is not installed")
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    [archive] = folder.iterdir()
    return archive


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with gaeanet from its wheel, and nothing else."""
    target, wheel = tmp_path_factory.mktemp("target"), build("wheel", tmp_path_factory.mktemp("wheel"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    command += ["--disable-pip-version-check", str(wheel)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return target


def run(installed: Path, folder: Path, *command: str) -> str:
    """The output of a command that finds gaeanet in `installed`, started in a folder with nothing of the project."""
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("DET_", "PYTHON"))}
    result = subprocess.run(
        command,
        cwd=folder,
        env={**keep, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_the_installed_wheel_works_outside_of_the_project(installed: Path, tmp_path: Path) -> None:
    where = run(installed, tmp_path, sys.executable, "-c", "import gaeanet; print(gaeanet.__file__)")
    assert Path(where.strip()) == installed / "gaeanet" / "__init__.py"
    gaeanet = str(installed / "bin" / "gaeanet")
    assert run(installed, tmp_path, gaeanet, "--version").startswith("gaeanet 0.")
    assert "gaea-imagenet" in run(installed, tmp_path, gaeanet, "describe", "const")
    said = run(installed, tmp_path, gaeanet, "train", "const", *(word for value in TINY for word in ("--set", value)))
    assert "2 steps an epoch" in said
    assert (tmp_path / "runs" / "const" / "checkpoints" / "best" / "manifest.json").is_file()
    assert (tmp_path / "runs" / "const" / "curve.png").is_file()
    assert (tmp_path / "runs" / "const" / "report.html").is_file()  # its templates and style sheet are in the wheel


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    names = set(zipfile.ZipFile(build("wheel", tmp_path)).namelist())
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "gaeanet").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {name for name in names if ".dist-info/" not in name} == package
    assert "gaeanet/recipes/const.yaml" in names


def test_the_source_distribution_has_the_recipes_once(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path)) as archive:
        members = {member.name.partition("/")[2]: member for member in archive.getmembers()}
    assert members["gaeanet/recipes/const.yaml"].isfile()
    link = members["const.yaml"]
    assert not link.issym() or link.linkname == "gaeanet/recipes/const.yaml"
