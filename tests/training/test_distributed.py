"""Many processes, and death at any moment: laws 1, 2, 3 and 6 under torchrun on CPUs."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lives
import pytest
import torch
import yaml
from launch import alone, free_port, joined, logged, together, wait_for
from lives import Life
from sessions import assert_nothing_left, assert_shared_memory_left, mark, members, shared_memory
from tiny import NET, make_folder, read_log, same_but_for_speed, same_checkpoints

from gaeanet.artifacts.checkpoint import checkpoints, load

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
Write = Callable[..., Path]
Start = Callable[..., subprocess.Popen[str]]
Agent = Callable[..., Life]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
MODEL_DEF = str(ROOT / "model_def.py")
HELD = str(ROOT / "tests" / "support" / "held.py")


@pytest.fixture
def marked() -> Iterator[dict[str, str]]:
    """A mark for the environment of commands, of which nothing is left behind."""
    mine = mark()
    yield mine
    for pid in members(mine):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def start(tmp_path: Path, marked: dict[str, str]) -> Start:
    """Starts commands with that mark."""

    def run(*command: Any, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(word) for word in command],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **marked, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return run


@pytest.fixture
def agent(tmp_path: Path, marked: dict[str, str]) -> Iterator[Agent]:
    """Starts torchrun's agent, itself a life, with that mark for the processes that it starts; its output is named."""
    agents: list[Life] = []

    def run(output: str, *arguments: Any) -> Life:
        words = ["torchrun", *map(str, arguments)]
        agents.append(lives.start(words, tmp_path / output, {"PYTHONPATH": str(ROOT), **marked}, tmp_path))
        return agents[-1]

    yield run
    for life in agents:
        life.kill()


def finish(process: subprocess.Popen[str], code: int | None = 0, timeout: float = 150) -> str:
    out, _ = process.communicate(timeout=timeout)
    if code is not None:
        assert process.returncode == code, out[-3000:]
    return out


def torchrun(processes: int, config: Path, data: Path, run_dir: str, options: tuple[str, ...] = ()) -> list[Any]:
    arguments = [MODEL_DEF, config, "--data", data, "--run-dir", run_dir]
    return ["--standalone", "--nproc_per_node", processes, *options, *arguments]


def train_arguments(config: Path, data: Path, run_dir: Path, *more: str) -> list[Any]:
    return ["train", config, "--data", data, "--run-dir", run_dir, *more]


STEADY = {
    "epochs": 20,
    "checkpoint_every": 3,
    "drop_path_prob": 0.1,
    "validate_every": 2,
    "mixup_alpha": 0.2,
    "cutmix_alpha": 1.0,
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A run of two processes that nothing happened to: its experiment file, its images, its directory."""
    root = tmp_path_factory.mktemp("undisturbed")
    data = make_folder(root / "t3")
    tree = {"data": {"num_workers_train": 1, "num_workers_val": 0}, "hyperparameters": {**NET, **STEADY}}
    (root / "steady.yaml").write_text(yaml.safe_dump(tree))
    arguments = train_arguments(root / "steady.yaml", data, root / "run")
    joined(together(2, arguments, root / "out"), root / "out")
    return root / "steady.yaml", data, root / "run"


def test_laws_3_and_6_any_number_of_processes_has_the_same_gradients_and_counts(
    experiment_file: Write, tmp_path: Path
) -> None:
    """Field reports 40 and 43 too: nothing is padded, and statistics agree before they are used."""
    data = make_folder(tmp_path / "ten", classes=3, train=8, val=0)
    for k in range(10):  # ten validation images: no world size but 1, 2 divides them
        source = next((data / "train" / f"n{k % 3:08d}").iterdir())
        (data / "val" / f"n{k % 3:08d}").mkdir(parents=True, exist_ok=True)
        (data / "val" / f"n{k % 3:08d}" / f"{k}.jpg").write_bytes(source.read_bytes())
    config = experiment_file(global_batch_size=10, activation="relu")
    for world in (1, 2, 3, 4):
        joined(together(world, ["share", config, data, tmp_path], tmp_path / "out"), tmp_path / "out")
    expected = torch.load(tmp_path / "1.pt")
    for world in (2, 3, 4):
        found = torch.load(tmp_path / f"{world}.pt")
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-5)
        results = [json.loads((tmp_path / f"{world}-{rank}.json").read_text()) for rank in range(world)]
        totals = json.loads((tmp_path / "1-0.json").read_text())["totals"]
        for result in results:
            assert result["totals"][0] == 10
            assert result["totals"][2:] == totals[2:]
            assert result["totals"][1] == pytest.approx(totals[1], abs=1e-5)
            assert result["statistics"] == results[0]["statistics"]


def test_field_report_11_the_plan_states_the_arithmetic(experiment_file: Write, t3: Path, tmp_path: Path) -> None:
    config = experiment_file(epochs=1, max_batch_per_slot=3, global_batch_size=9)
    output = tmp_path / "out"
    out = joined(together(2, train_arguments(config, t3, tmp_path / "run"), output), output)
    assert "plan: global 9 = 2 processes x 3 or 2 x 2, 2 steps an epoch, 1 epoch, lr 0.05" in out
    assert out.count("plan:") == 1
    assert "plan:" not in (tmp_path / "out-1").read_text()
    out = joined(together(1, train_arguments(config, t3, tmp_path / "alone"), output), output)
    assert "plan: global 9 = 1 process x 3 x 3, 2 steps an epoch" in out
    rates = [[line["learning_rate"] for line in read_log(tmp_path / run, "train")] for run in ("run", "alone")]
    assert rates[0] == rates[1]
    small = train_arguments(experiment_file(global_batch_size=3), t3, tmp_path / "small")
    refused = joined(together(2, small, output), output, code=2)
    assert "which need at least two images each for batch norm: make it 4 or more" in refused


def test_law_2_twenty_deaths_in_one_run(experiment_file: Write, t3: Path, tmp_path: Path) -> None:
    """Field reports 12, 39, 48 and 53: killed at twenty moments, saving included, a run ends as if never stopped."""
    config = experiment_file(
        data={"num_workers_train": 1},
        epochs=12,
        checkpoint_every=1,
        drop_path_prob=0.2,
        cutout=True,
        cutout_length=8,
        validate_every=3,
    )

    def live(run_dir: str) -> Life:
        return alone(train_arguments(config, t3, tmp_path / run_dir, "--resume"), tmp_path / "out")

    straight = live("straight")
    straight.join(120)
    assert straight.exitcode == 0, (tmp_path / "out").read_text()[-2000:]
    moments = random.Random(20)
    process = live("broken")
    for target in sorted(moments.sample(range(1, 48), 20)):
        wait_for(lambda target=target: logged(tmp_path / "broken") >= target, process)
        time.sleep(moments.uniform(0, 0.03))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        process = live("broken")
    process.join(120)
    assert process.exitcode == 0, (tmp_path / "out").read_text()[-2000:]
    assert same_but_for_speed(read_log(tmp_path / "straight"), read_log(tmp_path / "broken"))
    same_checkpoints(tmp_path / "straight", tmp_path / "broken")
    finished = {p: p.stat().st_mtime_ns for p in (tmp_path / "broken" / "checkpoints").rglob("*.safetensors")}
    again = live("broken")
    again.join(120)
    assert "nothing to do" in (tmp_path / "out").read_text()
    assert finished == {p: p.stat().st_mtime_ns for p in (tmp_path / "broken" / "checkpoints").rglob("*.safetensors")}


def test_torchrun_restarts_a_killed_process_and_the_weights_are_the_same(
    start: Start, marked: dict[str, str], undisturbed: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    config, data, straight = undisturbed
    segments = shared_memory()
    process = start(*TORCHRUN, *torchrun(2, config, data, "broken", options=("--max-restarts", "3")))
    wait_for(lambda: logged(tmp_path / "broken") >= 14, process)
    os.kill(min(members(marked, "RANK=1")), signal.SIGKILL)
    out = finish(process)
    assert "resumed after step" in out
    same_checkpoints(straight, tmp_path / "broken")
    assert same_but_for_speed(read_log(straight), read_log(tmp_path / "broken"))
    assert_nothing_left(marked, segments)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_field_report_52_a_stop_signal_saves_and_ends(
    experiment_file: Write, t3: Path, tmp_path: Path, number: signal.Signals
) -> None:
    config = experiment_file(data={"num_workers_train": 2}, epochs=400, validate_every=400)
    segments, output, run = shared_memory(), tmp_path / "out", tmp_path / "run"
    process = alone(train_arguments(config, t3, run), output)
    wait_for(lambda: logged(run) >= 3, process)
    sent = time.time()
    os.killpg(process.pid, number)  # to the whole group, as a terminal and a scheduler do: the workers get it too
    process.join(20)
    assert process.exitcode == 75
    _is_saved_after(run, sent)
    assert f"stopped by {number.name} after step" in output.read_text()
    assert "run again with --resume" in output.read_text()
    assert_shared_memory_left(segments)


def test_field_report_52_torchrun_passes_a_stop_on_to_all(
    agent: Agent, marked: dict[str, str], experiment_file: Write, t3: Path, tmp_path: Path
) -> None:
    config = experiment_file(data={"num_workers_train": 2}, epochs=400, validate_every=400)
    segments = shared_memory()
    process = agent("out", *torchrun(2, config, t3, "run"))
    wait_for(lambda: logged(tmp_path / "run") >= 3, process)
    sent = time.time()
    process.send_signal(signal.SIGTERM)
    process.join(30)
    assert not process.is_alive()
    out = (tmp_path / "out").read_text()
    _is_saved_after(tmp_path / "run", sent)
    assert "stopped by SIGTERM after step" in out
    assert_nothing_left(marked, segments)


def _is_saved_after(run_dir: Path, sent: float) -> None:
    newest = checkpoints(run_dir / "checkpoints")[-1]
    assert (newest / "manifest.json").stat().st_mtime > sent
    assert load(newest)[1]["batches"] >= 3


def test_a_stopped_run_goes_on_with_another_number_of_processes(
    experiment_file: Write, t3: Path, tmp_path: Path
) -> None:
    config = experiment_file(epochs=12, ema_decay=0.5, validate_every=4)
    run, output = tmp_path / "run", tmp_path / "out"
    process = alone(train_arguments(config, t3, run), output)
    wait_for(lambda: logged(run) >= 10, process)
    process.send_signal(signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 75, output.read_text()
    out = joined(together(2, train_arguments(config, t3, run, "--resume"), output), output)
    assert "this run resumes with 2 processes after 1" in out
    straight = alone(train_arguments(config, t3, tmp_path / "straight"), output)
    straight.join(120)
    rates, expected = ([line["learning_rate"] for line in read_log(r, "train")] for r in (run, tmp_path / "straight"))
    assert rates == expected


def test_two_nodes_train_and_resume(agent: Agent, undisturbed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Two launchers that meet on loopback, as on two machines with a common file system."""
    config, data, straight = undisturbed
    port = free_port()

    def launch(node: int, *more: str) -> Life:
        rendezvous = ["--nnodes", 2, "--node_rank", node, "--master_addr", "127.0.0.1", "--master_port", port]
        arguments = [MODEL_DEF, config, "--data", data, "--run-dir", "run", *more]
        return agent(f"out-{node}", *rendezvous, "--nproc_per_node", 1, *arguments)

    nodes = [launch(0), launch(1)]
    wait_for(lambda: logged(tmp_path / "run") >= 8, nodes[0])
    for node in nodes:
        node.send_signal(signal.SIGTERM)
    for node in nodes:
        node.join(30)
        assert not node.is_alive()
    done = load(checkpoints(tmp_path / "run" / "checkpoints")[-1])[1]["batches"]
    assert 8 <= done < 80
    out = joined([launch(0, "--resume"), launch(1, "--resume")], tmp_path / "out")
    assert f"resumed after step {done}" in out
    same_checkpoints(straight, tmp_path / "run")


def test_an_error_on_one_process_ends_all_with_its_message(
    agent: Agent, marked: dict[str, str], experiment_file: Write, t3: Path, tmp_path: Path
) -> None:
    for image in list((t3 / "train").glob("*/*"))[:1]:
        image.write_bytes(b"\xff\xd8\xff not a whole image")
    config = experiment_file(data={"max_bad": 0}, epochs=400)
    process = agent("out", *torchrun(2, config, t3, "run"))
    process.join(60)
    out = (tmp_path / "out").read_text()
    assert process.exitcode == 1, out
    assert str(image) in out
    assert "gaeanet, process" in out
    assert not members(marked)


def test_a_process_that_ends_while_the_others_meet_is_one_line(
    experiment_file: Write, t3: Path, tmp_path: Path
) -> None:
    """The first process has the store by which they meet, and it ends with it."""
    store: Any = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    arguments = ["train", str(experiment_file()), "--data", str(t3), "--run-dir", str(tmp_path / "run")]
    other = lives.start(arguments, tmp_path / "out", {**place, **meeting})
    wait_for(lambda: store.check(["gaeanet/token/1"]), other)
    store = None
    other.join(60)
    said = (tmp_path / "out").read_text()
    assert other.exitcode == 1, said
    assert "gaeanet, process 1: lost the other processes of this run" in said
    assert "Traceback" not in said


def test_field_report_47_few_file_handles_end_in_a_hint(start: Start, experiment_file: Write, t3: Path) -> None:
    config = experiment_file(data={"num_workers_train": 2}, epochs=50)
    command = f"{sys.executable} {MODEL_DEF} {config} --data {t3} --run-dir run"
    out = finish(start("bash", "-c", f"ulimit -n 64 && exec {command}"), code=2)
    assert "Traceback" not in out
    assert "ulimit -n" in out


@pytest.mark.timeout(600)
def test_law_6_nodes_come_and_go(
    agent: Agent,
    experiment_file: Write,
    t3: Path,
    marked: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torchrun with 1 to 2 nodes: a second one joins within an epoch, is lost within another, and a third one joins."""
    config = experiment_file(epochs=40, checkpoint_every=3, validate_every=20)
    # Otherwise an agent that has been there before does not publish where the processes meet (seen in PyTorch 2.14).
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    (tmp_path / "held").touch()
    port, run = free_port(), tmp_path / "run"

    def join(name: str) -> Life:
        rendezvous = ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{port}", "--rdzv_id", "run"]
        patience = ["--rdzv_conf", "last_call_timeout=1,is_host=" + str(int(name == "first"))]
        elastic = ["--nnodes", "1:2", "--nproc_per_node", 1, "--max_restarts", 100]
        return agent(
            name, *rendezvous, *patience, *elastic, HELD, "train", config, "--data", t3, "--run-dir", run, "--resume"
        )

    def trained(batches: int) -> None:
        goal = logged(run) + batches
        wait_for(lambda: logged(run) >= goal, nodes[0], timeout=200)

    def said() -> str:
        """By all nodes: any of them may have the first process."""
        return "".join(path.read_text() for name in names if (path := tmp_path / name).exists())

    names = ("first", "second", "third")
    nodes = [join("first")]
    trained(3)
    for name in names[1:]:
        nodes.append(join(name))
        wait_for(lambda: said().count("2 processes x 2 x 1") == len(nodes) - 1, nodes[0], timeout=200)
        trained(3)
        if name == "second":
            lost = [pid for pid in members(marked) if _parent(pid) == nodes[1].pid]
            for pid in [nodes[1].pid, *lost]:
                os.kill(pid, signal.SIGKILL)
            trained(3)
    (tmp_path / "held").unlink()
    for node in (nodes[0], nodes[2]):
        node.join(200)
    out = said()
    assert nodes[0].exitcode == 0, out[-3000:]

    straight = alone(train_arguments(config, t3, tmp_path / "straight"), tmp_path / "alone")
    straight.join(200)
    columns = ("epoch", "batches", "images", "learning_rate")
    logs = [
        [[line[name] for name in columns] for line in read_log(path, "train")] for path in (run, tmp_path / "straight")
    ]
    assert logs[0] == logs[1]
    assert out.count("global 4 = 1 process x 4 x 1") == 2
    assert out.count("resumed after step") == 3


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has ended
        return 0
