"""report.html: what it says, and how it looks in a real browser."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from logs import write_run
from tiny import Result, TinyRun, read_log

from gaeanet.config.experiment import Experiment, Hyperparameters, load_experiment
from gaeanet.report.charts import Trace, line_chart
from gaeanet.report.curves import COLOURS
from gaeanet.report.page import TEMPLATES, RunFacts, page
from gaeanet.report.recipes import LEAVES, PUBLISHED, against_original, nearest_recipe, original_top5
from gaeanet.report.series import PUBLISHED_EPOCHS, PUBLISHED_TOP5, series_of

Run = Callable[..., Result]
ROOT = Path(__file__).parents[2]


class Outline(HTMLParser):
    """Elements of a page that is well-formed as far as its non-void elements go, and every address in it."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def outline(text: str) -> Outline:
    found = Outline()
    found.feed(text)
    assert found.open == []
    return found


def dots(text: str, identity: str, style: str) -> int:
    chart = re.search(rf'<svg id="{identity}".*?</figure>', text, re.DOTALL)
    assert chart
    return len(re.findall(rf'<circle class="dot [^"]*\b{style}\b', chart[0]))


def test_training_leaves_a_page_that_needs_nothing_else(
    gaeanet: Run, experiment_file: Callable[..., Path], t3: Path, tmp_path: Path
) -> None:
    result = gaeanet("train", experiment_file(cutout=True, cutout_length=8), "--data", t3)
    assert result.code == 0, result.err
    assert "report.html is not written" not in result.out
    text = (tmp_path / "runs" / "tiny" / "report.html").read_text()
    found = outline(text)
    assert all(address.startswith("data:") for address in found.addresses)
    assert "<script" not in text
    for name in ("top1", "top5", "loss"):
        assert dots(text, name, "raw") == dots(text, name, "ema") == 2
    assert sum(tag == "img" for tag, _ in found.tags) == 6 * (1 + 2)  # six images, two epochs
    for words in ("Normal cell", "Reduction cell", "global_batch_size", "from random weights", "gaeanet report"):
        assert words in text


def test_report_adds_worst_classes_and_confusions(gaeanet: Run, tiny_run: TinyRun, tmp_path: Path) -> None:
    result = gaeanet("report", tiny_run.run, "-o", "page.html")
    assert result.out == "wrote page.html\n"
    text = (tmp_path / "page.html").read_text()
    outline(text)
    assert "Worst classes" in text
    assert "what differs from" in text.lower()
    found = json.loads(gaeanet("evaluate", tiny_run.run, "--per-class", "--json").out)
    prefix = "ema_" if "Top-1 with EMA weights" in text else ""
    wrong = found["count"] - found[f"{prefix}top1_correct"]
    assert ("Confused most often" in text) == (wrong > 0)
    assert sum(int(number) for number in re.findall(r"</b>: (\d+) images?<", text)) == wrong
    plain = gaeanet("report", tiny_run.run, "-o", "plain.html", "--no-images")
    assert plain.code == 0
    assert "<img" not in (tmp_path / "plain.html").read_text()


def test_what_cannot_be_had_is_said_in_the_page(gaeanet: Run, tiny_run: TinyRun, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run.run, tmp_path / "run", symlinks=True)
    manifest = run / "checkpoints" / "best" / "manifest.json"
    content = json.loads(manifest.read_text().replace(str(tiny_run.data), str(tmp_path / "gone")))
    manifest.write_text(json.dumps({key: value for key, value in content.items() if key != "digest"}))
    assert gaeanet("report", "run").code == 0
    assert "Its images cannot be shown: data.location: " in (run / "report.html").read_text()
    shutil.rmtree(run / "checkpoints")
    assert gaeanet("report", "run").code == 0
    assert "this run has no checkpoint yet" in (run / "report.html").read_text()
    (run / "config.yaml").unlink()
    assert "no config.yaml there" in gaeanet("report", "run").err
    assert gaeanet("report", "nowhere").code == 2
    assert gaeanet("report", tiny_run.run, "-o", tiny_run.run / "config.yaml" / "x.html").code == 1


def facts(name: str, lines: list[dict[str, Any]], **values: Any) -> RunFacts:
    return RunFacts(name, lines, Experiment(hyperparameters=Hyperparameters(**values)))


def test_several_runs_side_by_side(tmp_path: Path) -> None:
    runs = [
        facts(name, read_log(write_run(tmp_path / name, rows=rows)), **values)
        for name, rows, values in (("a", 3, {}), ("b<i>", 5, {"learning_rate": 0.1, "seed": 7}))
    ]
    text = page(runs)
    outline(text)
    assert dots(text, "top1", "raw") == dots(text, "top1", "ema") == 8
    assert "b&lt;i&gt;</b> against a: learning_rate 0.1 (not 0.5); seed 7 (not 0)" in text


def test_png_and_page_draw_the_same_series(tmp_path: Path) -> None:
    lines = read_log(write_run(tmp_path / "x", rows=3, data="imagenet"))
    alone = {series.role: len(series.points) for series in series_of({"x": lines}, "top5_accuracy")}
    assert alone == {"published": 3, "training": 3, "raw": 3, "ema": 3}  # published as far as the run has come
    assert [series.role for series in series_of({"x": lines}, "loss")] == ["training", "raw", "ema"]
    both = series_of({"x": lines, "y": lines[:2]}, "top1_accuracy")
    assert [(series.name, series.role, series.run) for series in both] == [
        ("x, raw", "raw", 0), ("x, EMA", "ema", 0), ("y, raw", "raw", 1), ("y, EMA", "ema", 1)
    ]  # fmt: skip
    text = page([facts("x", lines)])
    assert dots(text, "top5", "raw") == dots(text, "top5", "ema") == 3
    assert "original run, published (raw)" in text
    sheet = (TEMPLATES / "report.css").read_text()
    assert re.findall(r"--s\d: (#\w+);", sheet)[: len(COLOURS)] == list(COLOURS)


def test_names_are_text_in_page_and_png(gaeanet: Run, tmp_path: Path) -> None:
    name = "_$lr_<b>&\x1b[31m\udcff"
    run = write_run(tmp_path / name)
    lines = read_log(run)
    text = page([facts(name, lines), facts("other", lines)])
    outline(text)
    text.encode("utf-8")
    assert "_$lr_&lt;b&gt;&amp;\\x1b[31m\\udcff" in text
    assert gaeanet("plot", run, "-o", "curve.svg").code == 0
    assert "$lr_" in (tmp_path / "curve.svg").read_text()
    assert gaeanet("plot", run, run, "-o", "curves.png").code == 0


@pytest.mark.parametrize("values", [{"loss": None}, {"loss": float("nan")}, {"top5_accuracy": float("inf")}])
def test_numbers_that_are_not_finite_leave_gaps(tmp_path: Path, values: dict[str, Any]) -> None:
    outline(page([facts("x", read_log(write_run(tmp_path / "x", **values)))]))
    outline(page([facts("x", [])]))


def test_a_chart_has_its_points_in_their_places() -> None:
    text = line_chart(
        "c", "values", "%", [Trace("s", [(1, 0.0), (2, 50.0), (3, float("nan")), (4, 100.0)], "s0", True)]
    )
    assert len(re.findall("<circle", text)) == 3
    assert len(re.findall("<polyline", text)) == 2  # the line breaks where there is no value
    places = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', text)]
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert places[0][1] - places[1][1] == pytest.approx(places[1][1] - places[2][1], abs=0.2)
    assert "s: 50 % at epoch 2" in text


def imagenet_lines(gap: Callable[[float], float]) -> list[dict[str, Any]]:
    return [
        {"kind": "validation", "data": "imagenet", "epoch": epoch, "top5_accuracy": top5 - gap(epoch)}
        for epoch, top5 in zip(PUBLISHED_EPOCHS, PUBLISHED_TOP5)
    ]


def test_the_original_run_and_where_a_run_leaves_it() -> None:
    assert original_top5(0.8) == 12.5
    assert original_top5(1.2) == pytest.approx((12.5 + 34.0) / 2)
    assert original_top5(24.0) == pytest.approx(79.5)
    assert original_top5(0.5) is original_top5(25) is None
    follows = against_original(imagenet_lines(lambda epoch: 1.0))
    assert follows
    assert follows.startswith("The run follows the original one up to epoch 24")
    leaves = against_original(imagenet_lines(lambda epoch: 0 if epoch < 5.5 else LEAVES + 2))
    assert leaves
    assert leaves.startswith(
        "The run leaves the original one at epoch 5.6: its top-5 is 62.9 % there, the original's 67.9"
    )
    back = against_original(imagenet_lines(lambda epoch: 10 if epoch < 2 else 0))
    assert back
    assert "It is back within 3 points since" in back
    assert against_original([{"kind": "validation", "data": "photographs", "epoch": 1.0, "top5_accuracy": 1.0}]) is None


def test_the_recipes_are_the_shipped_files() -> None:
    for name, title in PUBLISHED.items():
        assert f"({name}.yaml)" in title
        shipped = load_experiment(ROOT / f"{name}.yaml", data="somewhere").hyperparameters
        assert nearest_recipe(shipped) == (title, [])
    changed = Hyperparameters(autoaugment=True, cutout=True, epochs=24, genotype="darts-v2")
    name, rows = nearest_recipe(changed)
    assert "distributed.yaml" in name
    assert [row[0] for row in rows] == ["genotype", "epochs"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, or a skip that says why there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    binary = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no browser: chromium and chromedriver are not installed (apt-get install chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "hide-scrollbars"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    found = webdriver.Chrome(options=options, service=service)
    yield found
    found.quit()


def show(browser: Any, path: Path, width: int, dark: bool) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    media = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    browser.get(path.as_uri())


@pytest.mark.slow
def test_a_browser_shows_as_many_points_as_the_log_has_validations(
    gaeanet: Run, browser: Any, tiny_run: TinyRun, tmp_path: Path
) -> None:
    assert gaeanet("report", tiny_run.run, "-o", "page.html").code == 0
    pictures = Path(os.environ.get("GAEANET_SCREENSHOTS") or tmp_path)
    validations = len(read_log(tiny_run.run, "validation"))
    papers = {}
    for width in (390, 1280):
        for dark in (False, True):
            show(browser, tmp_path / "page.html", width, dark)
            assert browser.get_log("browser") == []
            for chart in ("top1", "top5", "loss"):
                for style in ("raw", "ema"):
                    points = browser.find_elements("css selector", f"#{chart} circle.{style}")
                    assert len(points) == validations
                    assert all(point.size["width"] > 0 for point in points)
            # Nothing is wider than the window but what scrolls in its own box.
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            assert browser.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
            text = browser.execute_script("return getComputedStyle(document.querySelector('#top1 .tick')).fill")
            papers[dark] = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
            assert text != papers[dark]
            height = browser.execute_script("return document.documentElement.scrollHeight")
            picture = pictures / f"report-{width}-{'dark' if dark else 'light'}.png"
            browser.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
            )
            assert browser.save_screenshot(str(picture))
            assert picture.stat().st_size > 20_000
    assert papers[False] != papers[True]
