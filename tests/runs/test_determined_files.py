"""The files that a cluster gets: experiment files by Determined's rules, what the task image is given, and its lack."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rules import DEPRECATED, broken
from task import TINY
from tiny import Result, read_log

from gaeanet.runs.determined import TIME_METRIC, metrics_of

ROOT = Path(__file__).parents[2]
FILES = ["distributed.yaml", "paper.yaml", "const.yaml", "adaptive.yaml", "search.yaml"]


@pytest.fixture(scope="module")
def trees() -> dict[str, dict[str, Any]]:
    return {name: yaml.safe_load((ROOT / name).read_text()) for name in FILES}


WITHOUT_DETERMINED = """
import sys
class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "determined":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, NotInstalled())
from gaeanet.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def without_determined(folder: Path, *arguments: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line where the extra is not installed."""
    keep = {key: value for key, value in os.environ.items() if not key.startswith("DET_")}
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_DETERMINED, *map(str, arguments)],
        cwd=folder,
        env={**keep, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """const.yaml, tiny, trained where the extra is not installed: the run directory, and how it went."""
    folder = tmp_path_factory.mktemp("local")
    values = {**TINY, "hyperparameters.epochs": 1, "hyperparameters.layers": 1}
    settings = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    return folder / "runs" / "const", without_determined(folder, "train", ROOT / "const.yaml", *settings)


@pytest.fixture(scope="module")
def validation_metrics(local: tuple[Path, Any]) -> set[str]:
    """What a validation line of a real run turns into for the master."""
    return set(metrics_of(read_log(local[0], "validation")[-1]))


@pytest.mark.parametrize("name", FILES)
def test_a_shipped_file_keeps_the_rules(
    name: str, trees: dict[str, dict[str, Any]], validation_metrics: set[str]
) -> None:
    assert list(broken(trees[name], validation_metrics)) == []


BREAKAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "name is missing": lambda tree: tree.pop("name"),
    "entrypoint is missing": lambda tree: tree.pop("entrypoint"),
    "searcher is missing": lambda tree: tree.pop("searcher"),
    "resources is missing": lambda tree: tree.pop("resources"),
    "hyperparameters is missing": lambda tree: tree.pop("hyperparameters"),
    "searcher.max_length is deprecated": lambda tree: tree["searcher"].update(max_length={"epochs": 1}),
    "entrypoint: trial classes are deprecated": lambda tree: tree.update(entrypoint="model_def:Trial"),
    "entrypoint: the torch launcher fails": lambda tree: tree["resources"].update(slots_per_trial=0),
    "searcher.metric accuracy is not among": lambda tree: tree["searcher"].update(metric="accuracy"),
    "searcher.smaller_is_better": lambda tree: tree["searcher"].pop("smaller_is_better"),
    "searcher.time_metric epoch_number is not": lambda tree: tree["searcher"].update(time_metric="epoch_number"),
    "searcher.time_metric None is not": lambda tree: tree["searcher"].pop("time_metric"),
    "searcher.max_time": lambda tree: tree["searcher"].pop("max_time"),
    "resources.shm_size": lambda tree: tree["resources"].pop("shm_size"),
    "searcher.name adaptive is none of": lambda tree: tree["searcher"].update(name="adaptive"),
    "hyperparameters.learning_rate lacks base": lambda tree: tree["hyperparameters"]["learning_rate"].pop("base"),
    "hyperparameters.weight_decay: minval": lambda tree: tree["hyperparameters"]["weight_decay"].update(minval=0),
    "bind_mounts need an absolute": lambda tree: tree.update(bind_mounts=[{"host_path": "data"}]),
    **{f"{key} is deprecated": lambda tree, key=key: tree.update({key: 1}) for key in sorted(DEPRECATED)},
}


@pytest.mark.parametrize("expected", BREAKAGES)
def test_a_broken_rule_is_found(expected: str, trees: dict[str, dict[str, Any]], validation_metrics: set[str]) -> None:
    tree = copy.deepcopy(trees["adaptive.yaml"])
    BREAKAGES[expected](tree)
    assert any(problem.startswith(expected) for problem in broken(tree, validation_metrics))


def test_the_search_ends_where_its_schedule_does(trees: dict[str, dict[str, Any]]) -> None:
    tree = trees["adaptive.yaml"]
    assert tree["searcher"]["time_metric"] == TIME_METRIC
    assert tree["searcher"]["max_time"] == tree["hyperparameters"]["epochs"]
    searched = {key for key, value in tree["hyperparameters"].items() if isinstance(value, dict)}
    assert searched == {"learning_rate", "drop_path_prob", "weight_decay"}
    assert trees["distributed.yaml"]["resources"]["slots_per_trial"] == 8
    assert trees["const.yaml"]["resources"]["slots_per_trial"] == 1


def test_a_search_space_is_the_clusters(gaeanet: Callable[..., Result]) -> None:
    result = gaeanet("train", ROOT / "adaptive.yaml", "--set", "data.bucket_name=null")
    assert result.code == 2
    assert "is a search space, which a cluster resolves; for a local run give a value" in result.err


IN_THE_IMAGE = {"torch", "torchvision", "numpy", "matplotlib", "pillow", "pyyaml", "jinja2"}
"""What Determined's task image has, or torch or the harness brings; timm does without huggingface_hub."""


def _pins() -> dict[str, str]:
    command = re.sub(r"#.*", "", (ROOT / "startup-hook.sh").read_text()).replace("\\\n", " ")
    words = command.split()
    assert words[:5] == ["python3", "-m", "pip", "install", "--quiet"]
    assert "--no-deps" in words, "or pip would replace the image's torch"
    packages = [word for word in words[5:] if not word.startswith("-")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", package) for package in packages), "every version is exact"
    return {canonicalize_name(name): version for name, version in (package.split("==") for package in packages)}


def test_the_startup_hook_brings_all_that_the_image_lacks_and_no_torch() -> None:
    pins = _pins()
    assert not {"torch", "torchvision", "numpy", "determined"} & pins.keys()
    project = re.search(r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)
    assert project
    wanted = [Requirement(text) for text in re.findall(r'"([^"]+)"', project[1])]
    for name, version in pins.items():  # the whole closure: pip is told to follow no dependencies
        if metadata.version(name) == version:  # another version needs others
            wanted += [Requirement(text) for text in metadata.requires(name) or []]
    for requirement in wanted:
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"python_version": "3.10", "extra": ""}):
            continue
        if name not in IN_THE_IMAGE | {"huggingface-hub"}:
            assert requirement.specifier.contains(pins[name]), requirement


def test_the_task_image_is_determineds_own_with_its_torch() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert re.findall(r"^FROM (\S+)$", text, re.MULTILINE) == ["determinedai/pytorch-ngc-dev:0736b6d"]
    assert "startup-hook.sh" in text
    assert "diff /opt/gaeanet/before -" in text, "the build fails if torch, torchvision or numpy were replaced"
    assert not re.search(r"install[^&]*\btorch", text)


def test_without_the_extra_everything_local_works(local: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    run, result = local
    assert result.returncode == 0, result.stderr
    assert (run / "checkpoints" / "best" / "manifest.json").exists()
    assert (run / "curve.png").exists()


def test_without_the_extra_a_trial_names_it(gaeanet: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "determined", None)
    monkeypatch.setenv("DET_TASK_TYPE", "TRIAL")
    result = gaeanet("train")
    assert result.code == 2
    assert re.fullmatch(r"gaeanet: refused: .*\binstall gaeanet\[determined\] there, .*\n", result.err)


def test_nothing_but_one_file_imports_determined() -> None:
    """And that one only inside a function; nothing local pays for the platform."""
    for path in (ROOT / "gaeanet").rglob("*.py"):
        imports = re.findall(r"^(\s*)(?:import|from) determined\b", path.read_text(), re.MULTILINE)
        assert all(imports) if path == ROOT / "gaeanet/runs/determined.py" else not imports, path


def test_a_local_run_needs_a_file_and_a_trial_none(
    gaeanet: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "train: name the experiment file" in gaeanet("train").err
    monkeypatch.setenv("DET_TASK_TYPE", "TRIAL")
    result = gaeanet("train", "const.yaml")
    assert result.code == 2
    assert "on a cluster the submitted file has all settings" in result.err
