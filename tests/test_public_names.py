"""The public face: exactly these names, PyTorch only where it is needed, and docs/python.md runs as written."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny import make_folder

import gaeanet
from gaeanet.config.recipes import read_recipe

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")

NAMES = [
    "CellNetwork",
    "Experiment",
    "GaeanetError",
    "Genotype",
    "RequestError",
    "RunError",
    "Stopped",
    "Trained",
    "__version__",
    "evaluate",
    "export",
    "find",
    "load_experiment",
    "predict",
    "read_genotype",
    "register_networks",
    "search_cell",
    "train",
]

TORCH_FREE = [name for name in NAMES if name not in ("CellNetwork", "register_networks")]


def test_these_names_are_exported_sorted_and_each_is_there() -> None:
    assert gaeanet.__all__ == NAMES == sorted(NAMES)
    assert set(NAMES) <= set(dir(gaeanet))
    for name in NAMES:
        value = getattr(gaeanet, name)
        assert getattr(value, "__name__", name) == name
        assert value.__doc__
    with pytest.raises(AttributeError, match="module 'gaeanet' has no attribute 'nothing'"):
        _ = gaeanet.nothing  # type: ignore[attr-defined]


def test_editors_see_the_names_that_are_there_at_run_time() -> None:
    source = Path(gaeanet.__file__).read_text(encoding="utf-8")
    typed = dict(reversed(pair) for pair in re.findall(r"from gaeanet\.([\w.]+) import (\w+) as \2", source))
    assert typed == gaeanet._HOMES


def test_no_name_brings_torch_before_it_is_needed() -> None:
    code = "import sys, gaeanet\nassert 'numpy' not in sys.modules\n"
    code += "".join(f"gaeanet.{name}\n" for name in TORCH_FREE) + "assert 'torch' not in sys.modules\n"
    code += "try: gaeanet.train('none.yaml')\nexcept gaeanet.RequestError: pass\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_name_is_on_the_page() -> None:
    table = PAGE.split("|---|---|")[1].split("\n\n")[0]
    first = [line.removeprefix("|").split("|")[0] for line in table.splitlines()]
    assert set(re.findall(r"`(\w+)`", " ".join(first))) == set(NAMES) - {"__version__"}


@pytest.mark.slow
def test_the_page_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At tiny size: files of the recipes' names in the current directory take their place."""
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "photographs")
    make_folder(tmp_path / "imagenet", classes=2, train=20, val=5)
    for name, changes in (("const", {}), ("search", {"init_channels": 8})):
        tree = yaml.safe_load(read_recipe(name))
        tree["data"] |= {"generated_per_class": 20, "num_workers_train": 0, "num_workers_val": 0}
        tree["hyperparameters"] |= {"init_channels": 4, "layers": 3, "num_classes": 2, "global_batch_size": 10}
        tree["hyperparameters"] |= {"image_size": 32, "epochs": 1, **changes}
        if name == "search":
            tree["hyperparameters"]["search"] |= {"weights_share": 0.5, "architecture_share": 0.5}
        (tmp_path / name).write_text(yaml.safe_dump(tree), encoding="utf-8")
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "docs/python.md", "exec"), names)
    assert (tmp_path / "runs" / "second" / "checkpoints" / "best").exists()
    assert (tmp_path / "exported" / "model.safetensors").exists()
    assert names["logits"].shape == (1, 2)  # type: ignore[attr-defined]


def test_the_functions_refuse_what_the_commands_refuse(experiment_file, t3: Path, tmp_path: Path) -> None:
    config = experiment_file()
    for match, call in (
        ("tiny.yaml: no hyperparameters.search", lambda: gaeanet.search_cell(config)),
        ("wrong.yaml: cannot read", lambda: gaeanet.train(tmp_path / "wrong.yaml")),
        ("data.location: nowhere does not exist", lambda: gaeanet.train(config, data="nowhere")),
        ("hand them to load_experiment", lambda: gaeanet.train(gaeanet.load_experiment(config), data="x")),
        ("none: no such file", lambda: gaeanet.evaluate("none")),
        ("none: no such file", lambda: gaeanet.predict("none", [])),
        ("none: no such file", lambda: gaeanet.export("none", tmp_path / "x")),
    ):
        with pytest.raises(gaeanet.RequestError, match=match):
            call()
