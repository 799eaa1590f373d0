"""The real harness against the stand-in master: submitted files run as a trial, stop, and go on exactly."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lives
import pytest
import torch
from master import Master
from task import ROOT, TINY, Allocation, free_port, submit
from tiny import Result, read_log, same_but_for_speed

from gaeanet.artifacts.checkpoint import load
from gaeanet.cells.read import read_genotype
from gaeanet.runs.determined import metrics_of

pytest.importorskip("determined.core", reason="the extra gaeanet[determined] is not installed")
pytestmark = pytest.mark.slow

LAST = 20
LAUNCH = "python3 -m determined.launch.torch_distributed python3 model_def.py"
SETTINGS = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]


def equal(a: Path, b: Path) -> None:
    """Asserts that two checkpoint directories hold the same, bit for bit; their lineages tell where they were made."""
    (tensors, state), (others, other_state) = load(a), load(b)
    assert {**state, "lineage": None} == {**other_state, "lineage": None}
    assert tensors.keys() == others.keys()
    for group, values in tensors.items():
        for name, value in values.items():
            assert torch.equal(value, others[group][name]), (group, name)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def without_speed(metrics: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metrics.items() if key != "images_per_second"}


def told_everything(master: Master, log: list[dict[str, Any]]) -> None:
    """Asserts that the master knows each line of an undisturbed run's log, as numbers under the log's names."""
    for kind, group in (("train", "training"), ("validation", "validation")):
        told = {step: without_speed(metrics) for step, metrics in master.told(group).items()}
        assert told == {line["batches"]: without_speed(metrics_of(line)) for line in log if line["kind"] == kind}
    assert all(isinstance(value, (int, float)) for _, _, metrics in master.metrics for value in metrics.values())


def preempted_then_resumed(master: Master, storage: Path, slots: int) -> tuple[Path, Path, list[str]]:
    """Two lives of a trial; the checkpoints that ended them, and what they printed."""
    master.preempt_at = 3
    first = Allocation(master, storage, slots=slots).start()
    assert first.finish() == 0, first.output
    stopped = master.checkpoints[-1]
    step = stopped["metadata"]["steps_completed"]
    assert 3 <= step < LAST
    assert f"stopped by the cluster after step {step}, saved as checkpoint {stopped['uuid']}" in first.output
    assert "Traceback" not in first.output
    assert master.events.count("acknowledged") == 1
    assert master.events.index("acknowledged") > master.events.index(f"checkpoint {step}"), "first saved, then said so"

    master.preempt_at = None
    second = Allocation(master, storage, slots=slots, checkpoint=stopped["uuid"], run=2).start()
    assert second.finish() == 0, second.output
    assert f"resumed after step {step} " in second.output
    assert master.events.count("acknowledged") == 1
    assert master.steps()[-1] == LAST
    return storage / stopped["uuid"], storage / master.checkpoints[-1]["uuid"], [first.output, second.output]


def test_law_2_a_trial_on_one_slot_stops_and_goes_on_exactly(
    gaeanet: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, events = tmp_path / "storage", "runs/trial-1/tensorboard"
    with Master() as master:
        entrypoint = f"mkdir -p {events} && echo curves > {events}/events.out && {LAUNCH}"
        submit(master, tmp_path, **TINY, entrypoint=entrypoint)
        middle, end, _ = preempted_then_resumed(master, storage, slots=1)

    assert gaeanet("train", ROOT / "const.yaml", *SETTINGS, "--run-dir", "undisturbed").code == 0
    local = tmp_path / "undisturbed"
    equal(end, local / "checkpoints" / "latest")
    log = read_log(local)
    told_everything(master, log)
    assert same_but_for_speed(lines_of(end), log), "its log reads as if it had never stopped"
    assert {step: m["epochs"] for step, m in master.told("validation").items()} == {10: 1.0, 20: 2.0}
    assert master.progress == sorted(master.progress)
    assert master.progress[-1] == 1.0
    assert {0, 10, 20} <= set(master.steps())
    assert all(c["resources"].keys() > {"manifest.json", "model.safetensors"} for c in master.checkpoints)
    synced = storage / "cluster" / "tensorboard" / "experiment" / "1" / "trial" / "1" / "events.out"
    assert synced.read_text() == "curves\n"

    # What a person downloads from a cluster is a checkpoint like any other.
    assert "8 channels" in gaeanet("describe", end).out
    facts = json.loads(gaeanet("evaluate", end, "--weights", "both", "--json").out)
    last = next(line for line in reversed(log) if line["kind"] == "validation")
    logged = {key for key in last if key.endswith(("loss", "accuracy")) or key == "count"}
    assert {key: facts[key] for key in logged} == {key: last[key] for key in logged}
    assert gaeanet("plot", end).code == 0
    assert (end / "curve.png").stat().st_size > 5000
    result = gaeanet("train", ROOT / "const.yaml", *SETTINGS, "--continue-from", middle, "--run-dir", "elsewhere")
    assert result.code == 0, result.err
    equal(tmp_path / "elsewhere" / "checkpoints" / "latest", end)
    assert same_but_for_speed(read_log(tmp_path / "elsewhere"), log)


def test_law_2_a_trial_on_two_slots_stops_and_goes_on_exactly(tmp_path: Path) -> None:
    with Master() as master:
        submit(master, tmp_path, **TINY)
        _, end, outputs = preempted_then_resumed(master, tmp_path / "storage", slots=2)
    assert all("2 processes x 2 x 1" in output for output in outputs)

    command = ["train", str(ROOT / "const.yaml"), *SETTINGS, "--run-dir", str(tmp_path / "undisturbed")]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [{"RANK": rank, "LOCAL_RANK": rank, **shared} for rank in ("0", "1")]
    processes = [lives.start(command, tmp_path / f"output-{rank['RANK']}", rank) for rank in ranks]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0, (tmp_path / "output-0").read_text()
    equal(end, tmp_path / "undisturbed" / "checkpoints" / "latest")
    told_everything(master, read_log(tmp_path / "undisturbed"))


def test_metrics_that_the_master_does_not_take_end_the_trial_clearly_and_are_told_again(
    gaeanet: Callable[..., Result], tmp_path: Path
) -> None:
    """And a run begun on this machine goes on on a cluster: here from its second epoch, without a launcher."""
    assert gaeanet("train", ROOT / "const.yaml", *SETTINGS, "--run-dir", "local").code == 0
    start = tmp_path / "local" / "checkpoints" / "step-000000010"
    with Master() as master:
        submit(master, tmp_path, **TINY, entrypoint=f"python3 model_def.py --continue-from {start}")
        master.refuse, master.refusals = (500, 15), 1
        first = Allocation(master, tmp_path / "storage", slots=0).start()
        assert first.finish() == 1, first.output
        told = [line for line in first.output.splitlines() if line.startswith("gaeanet: ")]
        assert len(told) == 1
        assert re.match(
            r"gaeanet: the master did not accept (metrics reported before step \d+|the last metrics): APIException: "
            r".*the database is away.*; a restarted trial reports them again",
            told[0],
        )
        assert "Traceback" not in first.output

        last = master.checkpoints[-1]["uuid"] if master.checkpoints else None
        second = Allocation(master, tmp_path / "storage", slots=0, checkpoint=last, run=2).start()
        assert second.finish() == 0, second.output
    told_everything(master, read_log(tmp_path / "local"))
    equal(tmp_path / "storage" / master.checkpoints[-1]["uuid"], tmp_path / "local" / "checkpoints" / "latest")


@pytest.mark.parametrize("slots", [1, 2])
def test_a_trial_that_the_search_has_ended_saves_and_is_complete(tmp_path: Path, slots: int) -> None:
    """The master changes the trial's state and sends no signal, and its slots are to be free for the next trial."""
    with Master() as master:
        submit(master, tmp_path, **{**TINY, "hyperparameters.epochs": 400})
        master.end_at = 3
        trial = Allocation(master, tmp_path / "storage", slots=slots).start()
        assert trial.finish() == 0, trial.output
        newest = master.checkpoints[-1]
    step = newest["metadata"]["steps_completed"]
    assert 3 <= step < 4000
    assert f"ended by the search after step {step}, saved as checkpoint {newest['uuid']}" in trial.output
    assert "Traceback" not in trial.output
    assert "acknowledged" not in master.events


def test_trials_on_one_machine_share_its_cores(tmp_path: Path) -> None:
    with Master() as master:
        submit(master, tmp_path, **{**TINY, "hyperparameters.epochs": 1})
        master.agent_slots = 1000
        trial = Allocation(master, tmp_path / "storage")
        del trial.environment["OMP_NUM_THREADS"]
        assert trial.start().finish() == 0, trial.output
    assert "CPU, 1 thread," in trial.output


def test_a_master_that_does_not_answer_questions_changes_nothing(tmp_path: Path) -> None:
    with Master() as master:
        submit(master, tmp_path, **{**TINY, "hyperparameters.epochs": 1})
        master.silent = True
        trial = Allocation(master, tmp_path / "storage")
        del trial.environment["OMP_NUM_THREADS"]
        assert trial.start().finish() == 0, trial.output
    assert "does not report how many slots this machine has" in trial.output
    assert master.steps()[-1] == 10


def test_a_search_runs_as_a_trial_and_brings_its_genotype(tmp_path: Path) -> None:
    values = {
        **TINY,
        "data.bucket_name": "null",
        "hyperparameters.epochs": 1,
        "hyperparameters.layers": 3,
        "hyperparameters.search.weights_share": 0.5,
        "hyperparameters.search.architecture_share": 0.5,
        "resources.slots_per_trial": 1,
    }
    with Master() as master:
        submit(master, tmp_path, "search.yaml", **values)
        trial = Allocation(master, tmp_path / "storage", slots=1).start()
        assert trial.finish() == 0, trial.output
        uuid = master.checkpoints[-1]["uuid"]
        assert f"train it: det checkpoint download {uuid} -o found, then gaeanet train CONFIG" in trial.output
        end = tmp_path / "storage" / uuid
        last = max(master.told("training"))
        assert master.told("training")[last]["entropy"] > 1
        assert "discrete_top1_accuracy" in master.told("validation")[last]
    assert read_genotype(str(end / "genotype.json")).to_dict() == lines_of(end)[-2]["genotype"]
