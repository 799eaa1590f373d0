"""`gaeanet search` as a whole: what it leaves, that it goes on exactly, and that its cell trains."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from launch import alone, joined, logged, together, wait_for
from steps import interrupted_at
from tiny import Result, make_folder, read_log, same_but_for_speed, same_checkpoints

from gaeanet.artifacts.checkpoint import load
from gaeanet.cells.read import read_genotype
from gaeanet.config.experiment import load_experiment
from gaeanet.data.images.transforms import TrainingTransform
from gaeanet.data.loading.loader import training_batches
from gaeanet.data.sources.open import open_source
from gaeanet.data.sources.order import stream_seed
from gaeanet.data.sources.splits import search_splits
from gaeanet.optim.rates import Rates, Row
from gaeanet.runtime.processes import Processes
from gaeanet.search.discretize import discretize
from gaeanet.search.job import Searching
from gaeanet.search.objective import SearchObjective
from gaeanet.training.step import step

Run = Callable[..., Result]
Write = Callable[..., Path]

NET = {**{key: value for key, value in tiny.NET.items() if key != "ema_decay"}, "epochs": 3}
SEARCH: dict[str, Any] = {"channel_divisor": 2, "architecture_learning_rate": 1.0}


@pytest.fixture
def search_file(experiment_file: Write) -> Write:
    """Writes a tiny search; keywords go into hyperparameters, `search` into its block, `data` into the data block."""

    def write(
        name: str = "tiny", search: dict[str, Any] | None = None, data: dict[str, Any] | None = None, **values: Any
    ) -> Path:
        return experiment_file(
            name, data, **{"epochs": 3, "ema_decay": 0.0, **values}, search={**SEARCH, **(search or {})}
        )

    return write


def epochs_of(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_log(run, "train") if "genotype" in line]


ROOT = Path(__file__).parents[2]

TINY = {
    "search": [f"hyperparameters.search.{key}={value}" for key, value in SEARCH.items()],
    "train": ["hyperparameters.train_image_size=null"],
}
"""What makes the documented commands tiny, beside the values of `NET`."""


def documented() -> list[list[str]]:
    """The commands of the first block of docs/search.md."""
    block = re.search(r"```sh\n(.*?)```", (ROOT / "docs" / "search.md").read_text(), re.DOTALL)
    assert block
    return [shlex.split(line)[1:] for line in block[1].splitlines()]


def test_the_documented_sequence(gaeanet: Run, t3: Path, tmp_path: Path) -> None:
    """Search, train, evaluate, export, as docs/search.md has them."""
    commands = documented()
    assert [command[0] for command in commands] == ["search", "train", "evaluate", "export"]
    for words in commands:
        words = [str(t3) if word.startswith("/path/to/") else word for word in words]
        words = [str(ROOT / word) if word.startswith("benchmarks/") else word for word in words]
        if words[0] in TINY:
            values = [f"hyperparameters.{key}={value}".lower() for key, value in NET.items()]
            values += ["data.num_workers_train=0", "data.num_workers_val=0", *TINY[words[0]]]
            words += [word for value in values for word in ("--set", value)]
        result = gaeanet(*words)
        assert result.code == 0, result.err
    found = read_genotype("runs/found/genotype.json")
    _, state = load(tmp_path / "runs" / "trained" / "checkpoints" / "latest")
    assert state["hyperparameters"]["genotype"] == found.to_dict()
    assert (tmp_path / "runs" / "exported" / "model.safetensors").exists()


def test_what_a_search_leaves_and_says(gaeanet: Run, search_file: Write, t3: Path, tmp_path: Path) -> None:
    result = gaeanet("search", search_file(), "--data", t3, "--run-dir", "found")
    assert result.code == 0, result.err
    run = tmp_path / "found"
    names = {"config.yaml", "metrics.jsonl", "checkpoints", "curve.png", "report.html", "genotype.json"}
    assert {path.name for path in run.iterdir() if not path.name.startswith(".")} == names
    assert "search: gaea, bilevel level, architecture lr 1; 8 candidates on each of 14 edges" in result.out
    assert "search data: 9 training images for the weights and 9 others for the architecture" in result.out
    assert re.search(r"warning: the architecture takes \d+ steps at a learning rate of 1, a path of \d", result.out)
    said = r"^epoch \d: entropy .* genotype \w{12}, .* multiply-adds, .* parameters"
    assert len(re.findall(said, result.out, re.MULTILINE)) == 3
    assert "train it: gaeanet train CONFIG --set hyperparameters.genotype=found/genotype.json" in result.out

    lines, validations = epochs_of(run), read_log(run, "validation")
    assert [line["epoch"] for line in lines] == [line["epoch"] for line in validations] == [1.0, 2.0, 3.0]
    assert lines[0]["genotype_changes"] == 16
    assert all(0 < line["entropy"] < 2.0795 and 0 < line["edge_entropy"] < 1.2 for line in lines)
    assert lines[-1]["entropy"] < lines[0]["entropy"]
    for line in validations:
        assert line["count"] == 9
        assert {"loss", "top1_accuracy", "discrete_loss", "discrete_top1_accuracy"} <= line.keys()

    found = json.loads((run / "genotype.json").read_text())
    genotype = read_genotype(str(run / "genotype.json"))
    assert genotype.to_dict() == lines[-1]["genotype"]
    lineage = found["lineage"]
    assert lineage["data"]["fingerprint"] == open_source(load_experiment(run / "config.yaml")).catalog.fingerprint
    assert (lineage["seed"], lineage["epochs"], lineage["of_epochs"]) == (0, 3, 3)
    assert lineage["search"]["method"] == "gaea"
    assert found["cost"]["multiply_adds"] == lines[-1]["genotype_multiply_adds"] > 300e6

    page = (run / "report.html").read_text()
    assert page.count('class="simplex"') == 2 * (14 + 4)
    assert genotype.fingerprint in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert gaeanet("report", run).code == 0
    refused = gaeanet("evaluate", run)
    assert refused.code == 2
    assert "a supernet of a search, which is no network to use: train the cell that it found" in refused.err


def test_a_scaled_rate_makes_the_path_of_the_paper(t3: Path, search_file: Write) -> None:
    """Rate times steps is what it is on CIFAR-10, however many steps there are, and nothing is warned of."""
    for epochs in (1, 3):
        file = search_file(search={"architecture_learning_rate": "scaled"}, epochs=epochs)
        experiment = load_experiment(file, data=str(t3))
        block = experiment.hyperparameters.search
        assert block is not None
        searching = Searching(experiment, open_source(experiment), Processes())
        assert block.rate(searching.architecture_steps) * searching.architecture_steps == pytest.approx(2000)
        assert searching.architecture_steps == epochs * searching.steps


@pytest.mark.parametrize(
    ("search", "values"),
    [
        ({"method": "pc-darts", "level": "single"}, {"max_batch_per_slot": 2}),
        ({"method": "darts", "channel_divisor": 1, "architecture_learning_rate": 0.1}, {"validate_every": 2}),
    ],
    ids=["pc-darts, single", "darts"],
)
def test_law_2_a_resumed_search_equals_one_that_never_stopped(
    gaeanet: Run,
    search_file: Write,
    t3: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    search: dict[str, Any],
    values: dict[str, Any],
) -> None:
    config = search_file(search=search, **{"cutout": True, "cutout_length": 8, **values})
    assert gaeanet("search", config, "--data", t3, "--run-dir", "straight").code == 0
    steps = read_log(tmp_path / "straight", "validation")[0]["batches"]  # of an epoch, or of two

    with monkeypatch.context() as patch:
        patch.setattr("gaeanet.training.recorded.step", interrupted_at(steps + 1))
        assert gaeanet("search", config, "--data", t3, "--run-dir", "broken").code == 130
    assert gaeanet("search", config, "--data", t3, "--run-dir", "broken", "--resume").code == 0
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert same_but_for_speed(read_log(straight), read_log(broken))
    same_checkpoints(straight, broken)
    assert (straight / "genotype.json").read_bytes() == (broken / "genotype.json").read_bytes()
    again = gaeanet("search", config, "--data", t3, "--run-dir", "broken", "--resume")
    assert "finished after 3 epochs, nothing to do" in again.out


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_law_2_a_killed_search_equals_one_that_was_never_killed(
    search_file: Write, tmp_path: Path, processes: int
) -> None:
    """GAEA's search, its architecture's images fewer than its weights' and begun anew on the way."""
    data = make_folder(tmp_path / "data", train=8)
    search = {"weights_share": 0.7, "architecture_share": 0.25, "architecture_warmup_epochs": 1}
    more = {"cutout": True, "cutout_length": 8, "checkpoint_every": 1, "validate_every": 2}
    config = search_file(search=search, data={"num_workers_train": 2}, **more)

    def lives(run: str) -> list[Any]:
        arguments = ["search", config, "--data", data, "--run-dir", tmp_path / run, "--resume"]
        if processes == 1:
            return [alone(arguments, tmp_path / "out-0")]
        return together(processes, arguments, tmp_path / "out")

    joined(lives("straight"), tmp_path / "out")
    running = lives("broken")
    for target in (2, 7):
        wait_for(lambda target=target: logged(tmp_path / "broken") >= target, running[0])
        for process in running:
            process.kill()
            process.join()
        assert running[0].exitcode == -signal.SIGKILL
        running = lives("broken")
    joined(running, tmp_path / "out")
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert same_but_for_speed(read_log(straight), read_log(broken))
    same_checkpoints(straight, broken)
    assert (straight / "genotype.json").read_bytes() == (broken / "genotype.json").read_bytes()


def test_law_1_both_streams_are_functions_of_seed_and_position(search_file: Write, t3: Path) -> None:
    """Whatever the number of processes, and wherever a run goes on, a step learns from the same two batches."""
    experiment = load_experiment(search_file(global_batch_size=4), data=str(t3))
    hp = experiment.hyperparameters
    weights, others = search_splits(open_source(experiment), hp)
    assert others is not None
    for source, seed in ((weights, hp.seed), (others, stream_seed(hp.seed, 1))):

        def batches(source: Any = source, seed: int = seed, **more: Any) -> list[Any]:
            transform = TrainingTransform(hp)
            return list(training_batches(source, transform, global_batch=4, epochs=2, seed=seed, **more))

        whole = batches()
        halves = [batches(rank=rank, world_size=2) for rank in range(2)]
        for k, batch in enumerate(whole):
            assert torch.equal(batch.images, torch.cat([half[k].images for half in halves]))
        assert torch.equal(batches(start=(1, 1))[0].images, whole[3].images)
    names = [{source.catalog.train.name(k) for k in range(9)} for source in (weights, others)]
    assert not names[0] & names[1]


def test_a_gradient_that_is_not_finite_moves_nothing(
    search_file: Write, t3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for search in ({}, {"level": "single"}):
        experiment = load_experiment(search_file(search=search), data=str(t3))
        job = Searching(experiment, open_source(experiment), Processes())
        examples = torch.randint(255, (4, 3, 32, 32), dtype=torch.uint8), torch.tensor([0, 1, 2, 0])
        objective, learner = job._objective, job.state.learner
        objective.others = None if search else examples
        rates = Rates.constant(Row(0.1), torch.device("cpu")).at(learner.updates)
        step(learner, objective.prepare(learner, *examples), objective, rates)
        before, _ = job.state.saved()
        before = {group: {k: v.clone() for k, v in tensors.items()} for group, tensors in before.items()}
        for broken in ("weights", "architecture"):
            with monkeypatch.context() as patch:
                if broken == "weights":
                    patch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(torch.nan))
                else:
                    patch.setattr(SearchObjective, "_mean", lambda self, _, found: [g * torch.nan for g in found])
                step(learner, objective.prepare(learner, *examples), objective, rates)
            after, _ = job.state.saved()
            for group in ("architecture", "optimizer", "supernet"):
                for name, value in before[group].items():
                    assert "num_batches" in name or torch.equal(value, after[group][name]), (group, name)
        assert (learner.counts.tolist(), learner.batches) == ([1, 2, 2], 3)


def test_a_settled_genotype_ends_the_search(gaeanet: Run, search_file: Write, t3: Path, tmp_path: Path) -> None:
    config = search_file(search={"settled_epochs": 2, "architecture_learning_rate": 1e-9}, epochs=9, validate_every=9)
    result = gaeanet("search", config, "--data", t3, "--run-dir", "run")
    assert result.code == 0, result.err
    assert [line["settled_epochs"] for line in epochs_of(tmp_path / "run")][-2:] == [1, 2]
    assert len(epochs_of(tmp_path / "run")) < 9
    assert read_log(tmp_path / "run")[-1]["kind"] == "validation"
    assert "nothing to do" in gaeanet("search", config, "--data", t3, "--run-dir", "run", "--resume").out


def test_the_architecture_waits_for_its_turn_and_keeps_to_the_limit(
    gaeanet: Run, search_file: Write, t3: Path, tmp_path: Path
) -> None:
    config = search_file(search={"architecture_warmup_epochs": 1, "multiply_adds_limit": 400}, epochs=2)
    assert gaeanet("search", config, "--data", t3, "--run-dir", "run").code == 0
    first, last = epochs_of(tmp_path / "run")
    assert first["entropy"] == pytest.approx(2.0794, abs=1e-4)
    assert last["entropy"] < first["entropy"]
    assert last["genotype_multiply_adds"] <= 400e6
    rows = {cell: [tuple(row) for row in last["operation_weights"][cell]] for cell in ("normal", "reduce")}
    assert all(len(row) == 8 and sum(row) == pytest.approx(1, abs=1e-4) for row in rows["normal"])


def test_the_genotype_of_the_log_is_that_of_the_checkpoint(
    gaeanet: Run, search_file: Write, t3: Path, tmp_path: Path
) -> None:
    config = search_file(epochs=1)
    assert gaeanet("search", config, "--data", t3, "--run-dir", "run").code == 0
    experiment = load_experiment(config, data=str(t3))
    job = Searching(experiment, open_source(experiment), Processes())
    path = tmp_path / "run" / "checkpoints" / "latest"
    job.state.load(path.resolve(), *load(path))
    assert discretize(job.architecture.weights()) == read_genotype(str(tmp_path / "run" / "genotype.json"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search"], "search: name the experiment file, for example gaeanet search search"),
        (["search", "plain.yaml"], "plain.yaml: no hyperparameters.search, which a search needs: add it"),
        (["train", "tiny.yaml"], "tiny.yaml: hyperparameters.search makes this a search: gaeanet search tiny.yaml"),
        (["search", "tiny.yaml", "--init", "x"], "unrecognized arguments: --init x"),
        (
            ["search", "tiny.yaml", "--set", "hyperparameters.search.weights_share=0.01"],
            "hyperparameters.search.weights_share 0.01 leaves no image of class n00000000",
        ),
        (
            ["search", "tiny.yaml", "--set", "hyperparameters.global_batch_size=10"],
            "search.weights_share 0.5 of data are 9 images, fewer than global_batch_size 10: lower that or raise",
        ),
        (
            ["search", "tiny.yaml", "--set", "hyperparameters.search.lvel=gaea"],
            "hyperparameters.search.lvel: unknown key; did you mean level?",
        ),
    ],
)
def test_a_search_that_cannot_be_is_refused_in_one_line(
    gaeanet: Run, search_file: Write, experiment_file: Write, tmp_path: Path, arguments: list[str], message: str
) -> None:
    make_folder(tmp_path / "data")
    search_file(data={"location": "data"})
    experiment_file(name="plain")
    result = gaeanet(*arguments)
    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1
    assert result.out == ""


def test_help_and_refusals_of_a_search_come_without_torch(search_file: Write, t3: Path) -> None:
    config = str(search_file(global_batch_size=10))
    for arguments in (["search", "--help"], ["search", config, "--data", str(t3)]):
        code = (
            f"import sys, gaeanet.cli.main\ntry: gaeanet.cli.main.main({arguments!r})\nexcept SystemExit: pass\n"
            "assert 'torch' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_another_recipe_is_not_resumed(gaeanet: Run, search_file: Write, t3: Path) -> None:
    assert gaeanet("search", search_file(epochs=1), "--data", t3).code == 0
    other = search_file(epochs=1, search={"method": "pc-darts"})
    result = gaeanet("search", other, "--data", t3, "--resume")
    assert result.code == 2
    assert "hyperparameters.search is {'method': 'pc-darts'" in result.err
