"""Many processes, and death at any moment: laws 1, 2, 3 and 6 under torchrun on CPUs."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lives
import pytest
import torch
from conftest import make_folder, read_log, same_but_for_speed, same_checkpoints
from sessions import assert_nothing_left, members

from gaeanet.checkpoint import checkpoints, load

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
Write = Callable[..., Path]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
MODEL_DEF = str(ROOT / "model_def.py")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts commands in a session of their own, and leaves none of them behind."""
    started = []

    def run(*command: Any, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def finish(process: subprocess.Popen[str], code: int | None = 0, timeout: float = 150) -> str:
    out, _ = process.communicate(timeout=timeout)
    if code is not None:
        assert process.returncode == code, out
    return out


def train_command(config: Path, data: Path, run_dir: str, *more: str) -> list[Any]:
    return [sys.executable, MODEL_DEF, config, "--data", data, "--run-dir", run_dir, *more]


def torchrun(
    processes: int, config: Path, data: Path, run_dir: str, *more: str, options: tuple[str, ...] = ()
) -> list[Any]:
    arguments = [MODEL_DEF, config, "--data", data, "--run-dir", run_dir, *more]
    return [*TORCHRUN, "--standalone", "--nproc_per_node", processes, *options, *arguments]


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str], timeout: float = 90) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, f"ended too early: {process.communicate()[0]}"
        assert time.monotonic() < end
        time.sleep(0.01)


def logged(run_dir: Path) -> int:
    """Batches that the log speaks of."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    complete = [line for line in lines if line.endswith("}")]
    return json.loads(complete[-1])["batches"] if complete else 0


def test_laws_3_and_6_any_number_of_processes_has_the_same_gradients_and_counts(
    start: Callable[..., Any], experiment_file: Write, tmp_path: Path
) -> None:
    """Field reports 40 and 43 too: nothing is padded, and statistics agree before they are used."""
    data = make_folder(tmp_path / "ten", classes=3, train=8, val=0)
    for k in range(10):  # ten validation images: no world size but 1, 2 divides them
        source = next((data / "train" / f"n{k % 3:08d}").iterdir())
        (data / "val" / f"n{k % 3:08d}").mkdir(parents=True, exist_ok=True)
        (data / "val" / f"n{k % 3:08d}" / f"{k}.jpg").write_bytes(source.read_bytes())
    config = experiment_file(global_batch_size=10, activation="relu")
    for world in (1, 2, 3, 4):
        script = ROOT / "tests" / "sharing.py"
        finish(start(*TORCHRUN, "--standalone", "--nproc_per_node", world, script, config, data, tmp_path))
    alone = torch.load(tmp_path / "1.pt")
    for world in (2, 3, 4):
        together = torch.load(tmp_path / f"{world}.pt")
        for name, gradient in alone.items():
            torch.testing.assert_close(together[name], gradient, atol=1e-5, rtol=1e-5)
        results = [json.loads((tmp_path / f"{world}-{rank}.json").read_text()) for rank in range(world)]
        expected = json.loads((tmp_path / "1-0.json").read_text())["totals"]
        for result in results:
            assert result["totals"][0] == 10
            assert result["totals"][2:] == expected[2:]
            assert result["totals"][1] == pytest.approx(expected[1], abs=1e-5)
            assert result["statistics"] == results[0]["statistics"]


def test_field_report_11_the_plan_states_the_arithmetic(
    start: Callable[..., Any], experiment_file: Write, t3: Path, tmp_path: Path
) -> None:
    config = experiment_file(epochs=1, max_batch_per_slot=3, global_batch_size=9)
    out = finish(start(*torchrun(2, config, t3, "run")))
    assert "plan: global 9 = 2 processes x 3 or 2 x 2, 2 steps an epoch, 1 epochs, lr 0.05" in out
    alone = finish(start(*train_command(config, t3, "alone")))
    assert "plan: global 9 = 1 process x 3 x 3, 2 steps an epoch" in alone
    rates = [[line["learning_rate"] for line in read_log(tmp_path / run, "train")] for run in ("run", "alone")]
    assert rates[0] == rates[1]
    assert out.count("plan:") == 1
    refused = finish(start(*torchrun(2, experiment_file(global_batch_size=3), t3, "small")), code=1)
    assert "which need at least two images each for batch norm: make it 4 or more" in refused


def test_law_2_twenty_deaths_in_one_run(experiment_file: Write, t3: Path, tmp_path: Path) -> None:
    """Field reports 12, 39, 48 and 53: killed at twenty moments, saving included, a run ends as if never stopped."""
    data = {"num_workers_train": 1}
    config = experiment_file(data=data, epochs=25, checkpoint_every=1, drop_path_prob=0.2, cutout=True, cutout_length=8)
    # A server that has torch imported forks each life, since twenty imports would take minutes.
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["lives"])

    def live(run_dir: str) -> multiprocessing.process.BaseProcess:
        arguments = ["train", str(config), "--data", str(t3), "--run-dir", str(tmp_path / run_dir), "--resume"]
        process = forks.Process(target=lives.live, args=(arguments, str(tmp_path / "out")))
        process.start()
        return process

    def wait(process: multiprocessing.process.BaseProcess, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 120
        while not condition():
            assert process.is_alive(), (tmp_path / "out").read_text()[-2000:]
            assert time.monotonic() < end
            time.sleep(0.002)

    straight = live("straight")
    straight.join(240)
    assert straight.exitcode == 0
    random.seed(20)
    process = live("broken")
    for target in sorted(random.sample(range(1, 99), 20)):
        wait(process, lambda target=target: logged(tmp_path / "broken") >= target)
        time.sleep(random.uniform(0, 0.03))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        process = live("broken")
    process.join(240)
    assert process.exitcode == 0, (tmp_path / "out").read_text()[-2000:]
    assert same_but_for_speed(read_log(tmp_path / "straight"), read_log(tmp_path / "broken"))
    same_checkpoints(tmp_path / "straight", tmp_path / "broken")
    finished = {p: p.stat().st_mtime_ns for p in (tmp_path / "broken" / "checkpoints").rglob("*.safetensors")}
    again = live("broken")
    again.join(120)
    assert "nothing to do" in (tmp_path / "out").read_text()
    assert finished == {p: p.stat().st_mtime_ns for p in (tmp_path / "broken" / "checkpoints").rglob("*.safetensors")}


def test_torchrun_restarts_a_killed_process_and_the_weights_are_the_same(
    start: Callable[..., Any], experiment_file: Write, t3: Path, tmp_path: Path
) -> None:
    config = experiment_file(data={"num_workers_train": 1}, epochs=30, checkpoint_every=3, drop_path_prob=0.1)
    finish(start(*torchrun(2, config, t3, "straight")))
    shared_memory = len(list(Path("/dev/shm").iterdir()))
    process = start(*torchrun(2, config, t3, "broken", options=("--max-restarts", "3")))
    wait_for(lambda: logged(tmp_path / "broken") >= 30, process)
    ranks = [pid for pid in members(process) if b"RANK=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")]
    os.kill(min(ranks), signal.SIGKILL)
    out = finish(process)
    assert "resumed after step" in out
    same_checkpoints(tmp_path / "straight", tmp_path / "broken")
    assert same_but_for_speed(read_log(tmp_path / "straight"), read_log(tmp_path / "broken"))
    assert_nothing_left(process, shared_memory)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_field_report_52_a_stop_signal_saves_and_ends(
    start: Callable[..., Any], experiment_file: Write, t3: Path, tmp_path: Path, processes: int, number: int
) -> None:
    if processes == 2 and number != signal.SIGTERM:
        pytest.skip("the launcher passes on SIGTERM; the others reach each process as with one")
    config = experiment_file(data={"num_workers_train": 2}, epochs=400, validate_every=400)
    shared_memory = len(list(Path("/dev/shm").iterdir()))
    command = train_command(config, t3, "run") if processes == 1 else torchrun(2, config, t3, "run")
    process = start(*command)
    wait_for(lambda: logged(tmp_path / "run") >= 3, process)
    sent = time.time()
    # to the whole group, as a terminal and a scheduler do: the workers get it too
    os.killpg(process.pid, number) if processes == 1 else process.send_signal(number)
    out = finish(process, code=75 if processes == 1 else None, timeout=20)
    newest = checkpoints(tmp_path / "run" / "checkpoints")[-1]
    assert (newest / "manifest.json").stat().st_mtime > sent
    assert load(newest)[1]["batches"] >= 3
    assert f"stopped by {signal.Signals(number).name} after step" in out
    assert "run again with --resume" in out
    assert_nothing_left(process, shared_memory)


def test_a_stopped_run_goes_on_with_another_number_of_processes(
    start: Callable[..., Any], experiment_file: Write, t3: Path, tmp_path: Path
) -> None:
    config = experiment_file(epochs=40, ema_decay=0.5)
    process = start(*train_command(config, t3, "run"))
    wait_for(lambda: logged(tmp_path / "run") >= 20, process)
    process.send_signal(signal.SIGTERM)
    finish(process, code=75)
    out = finish(start(*torchrun(2, config, t3, "run", "--resume")))
    assert "this run goes on with 2 processes after 1" in out
    finish(start(*train_command(config, t3, "straight")))
    rates, straight = ([line["learning_rate"] for line in read_log(tmp_path / r, "train")] for r in ("run", "straight"))
    assert rates == straight


def test_two_nodes_train_and_resume(
    start: Callable[..., Any], experiment_file: Write, t3: Path, tmp_path: Path
) -> None:
    """Two launchers that meet on loopback, as on two machines with a common file system."""
    config = experiment_file(epochs=30)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def launch(node: int, *more: str) -> Any:
        rendezvous = ["--nnodes", 2, "--node_rank", node, "--master_addr", "127.0.0.1", "--master_port", port]
        return start(
            *TORCHRUN, *rendezvous, "--nproc_per_node", 1, MODEL_DEF, config, "--data", t3, "--run-dir", "run", *more
        )

    nodes = [launch(0), launch(1)]
    wait_for(lambda: logged(tmp_path / "run") >= 8, nodes[0])
    for node in nodes:
        node.send_signal(signal.SIGTERM)
    for node in nodes:
        finish(node, code=None, timeout=30)
    done = load(checkpoints(tmp_path / "run" / "checkpoints")[-1])[1]["batches"]
    assert 8 <= done < 120
    outs = [finish(node) for node in [launch(0, "--resume"), launch(1, "--resume")]]
    assert f"resumed after step {done}" in outs[0]
    finish(start(*torchrun(2, config, t3, "straight")))
    same_checkpoints(tmp_path / "straight", tmp_path / "run")


def test_an_error_on_one_process_ends_all_with_its_message(
    start: Callable[..., Any], experiment_file: Write, t3: Path, tmp_path: Path
) -> None:
    for image in list((t3 / "train").glob("*/*"))[:1]:
        image.write_bytes(b"\xff\xd8\xff not a whole image")
    begin = time.monotonic()
    out = finish(start(*torchrun(2, experiment_file(epochs=400), t3, "run")), code=1, timeout=60)
    assert time.monotonic() - begin < 60
    assert str(image) in out
    assert "gaeanet, process" in out


def test_field_report_47_few_file_handles_end_in_a_hint(
    start: Callable[..., Any], experiment_file: Write, t3: Path
) -> None:
    config = experiment_file(data={"num_workers_train": 2}, epochs=50)
    command = " ".join(str(word) for word in train_command(config, t3, "run"))
    out = finish(start("bash", "-c", f"ulimit -n 40 && exec {command}"), code=1)
    assert "Traceback" not in out
    assert "ulimit -n" in out
