"""The benchmarks of sources run; what they say is another matter."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import lives
import pytest
import yaml
from tiny import NET, make_folder

from gaeanet.config.data import Data
from gaeanet.data.sources.open import open_location

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., str]:
    def benchmark(file: str, *arguments: object) -> str:
        code, said = lives.run(["python", str(BENCHMARKS / file), *map(str, arguments)], tmp_path / "said")
        assert code == 0, said
        return said

    return benchmark


def test_requests_in_flight(run: Callable[..., str]) -> None:
    out = run("requests_in_flight.py", "--objects", 600, "--latency", 0.005, "--seconds", 0.3)
    speeds = [float(match) for match in re.findall(r": +(\d+) images/s", out)]
    assert len(speeds) == 8
    assert max(speeds) > 2 * speeds[0]
    assert out.count(" 0 retries") == 8


@pytest.mark.parametrize("kind", ["folder", "shards", "bucket"])
def test_what_scale_measures_is_a_whole_data_set(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.setenv(name, "replaced, and restored after the test")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import scale

    with scale.made(kind, tmp_path, 1500, 1000) as location:
        source = open_location(location, Data(data_download_dir=str(tmp_path / "cache")))
        assert (len(source.catalog.classes), len(source.catalog.train), len(source.catalog.val)) == (1000, 1500, 1000)
        assert source.read("train", 1234) == scale.photograph_once()
        assert source.catalog.train.name(1234) == "n00000823/n00000823_train_0001234.JPEG"


@pytest.mark.slow
def test_scale(run: Callable[..., str], tmp_path: Path) -> None:
    sizes = ["--train", 1500, "--val", 1000, "--small", 0, "--workers", 1]
    out = run("scale.py", "shards", "folder", *sizes, "--dir", tmp_path)
    assert len(re.findall(r": start-up .*first batch of 64 .*memory PSS / USS: main \d+ / \d+ MB", out)) == 2
    assert re.search(r"^shards +first step of gaeanet train after \d+\.\d s$", out, re.MULTILINE)
    assert re.search(r"^folder .*train after \d+\.\d s, of the plain way after \d+\.\d s$", out, re.MULTILINE)


def test_a_row_is_of_the_time_that_work_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the work returns: a training step's loss, a float as seconds are, once passed for its time."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import speed

    def work(seconds: float) -> Callable[[], object]:
        return lambda: time.sleep(seconds) or 1e6

    speed.compare("sleep", 1, "times/s", {"slow": speed.timed(work(0.2)), "fast": speed.timed(work(0.05))}, 3)
    slow, fast, ratio = map(float, re.findall(r"\d+\.\d+", capsys.readouterr().out)[:3])
    assert 3 < slow <= 5
    assert 8 < fast <= 20
    assert 2 < ratio <= 5


@pytest.mark.slow
def test_speed_beside_the_plain_way(run: Callable[..., str]) -> None:
    """The gate that both ways agree is passed, and every part prints its rows."""
    tiny = ["--channels", 8, "--layers", 3, "--size", 32, "--batch", 4, "--rounds", 1, "--steps", 1]
    rows = re.findall(r"^\| ([a-zA-Z ]+).*\d \(\d", run("speed.py", *tiny), re.MULTILINE)
    parts = {"training step", "memory of a step", "training input", "validation input", "end to end"}
    assert set(rows) == parts | {"inference in PyTorch", "inference in ONNX Runtime"}


def test_training_the_plain_way(run: Callable[..., str], tmp_path: Path) -> None:
    """A network that knows three colours after some epochs."""
    tree = {"hyperparameters": {**NET, "crop_min_area": 0.5}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
    options = ["--config", tmp_path / "tiny.yaml", "--epochs", 20, "--workers", 0]
    said = run("plain_training.py", make_folder(tmp_path / "data"), *options)
    curve = [float(top1) for top1 in re.findall(r"^epoch \d+: top-1 (\d+\.\d\d) % after \d", said, re.MULTILINE)]
    assert len(curve) == 10
    assert curve[-1] == 100


@pytest.mark.slow
def test_search_beside_the_plain_way(run: Callable[..., str]) -> None:
    tiny = ["--channels", 8, "--layers", 3, "--size", 16, "--batch", 4, "--rounds", 1]
    assert len(re.findall(r"\d \(\d", run("search.py", *tiny))) == 2
