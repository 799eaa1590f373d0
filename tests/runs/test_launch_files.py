"""The files in launch/: valid by their engines' own libraries, and their commands run here as written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from launch import free_port
from services import QUICK, Proxy
from tiny import NET, read_log, same_but_for_speed, same_checkpoints

from gaeanet.runs.mirror import Mirror

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
NODES = 2


def documents(name: str) -> list[dict[str, Any]]:
    return [tree for tree in yaml.safe_load_all((LAUNCH / name).read_text()) if tree]


def container(name: str) -> dict[str, Any]:
    (job,) = (tree for tree in documents(name) if tree["kind"] == "Job")
    (only,) = job["spec"]["template"]["spec"]["containers"]
    return only


@pytest.fixture
def python_with_sky() -> str:
    """A Python that has skypilot, which does not go together with determined in one environment."""
    python = os.environ.get("GAEANET_SKYPILOT", sys.executable)
    if subprocess.run([python, "-c", "import sky"], capture_output=True, cwd="/").returncode:
        pytest.skip("no skypilot: install it in an environment of its own, and name its Python in GAEANET_SKYPILOT")
    return python


@pytest.mark.slow
def test_skypilot_takes_its_file(python_with_sky: str, tmp_path: Path) -> None:
    """No account is needed to read a task, nor to check its resources' and envs' schema."""
    code = (
        "import sky, json, sys; task = sky.Task.from_yaml(sys.argv[1]); (wanted,) = task.resources\n"
        "print(json.dumps([task.name, task.num_nodes, wanted.use_spot, wanted.accelerators, wanted.job_recovery, "
        "task.envs]))"
    )
    command = [python_with_sky, "-c", code]
    done = subprocess.run(
        [*command, LAUNCH / "sky.yaml"],
        cwd=ROOT,
        env={**os.environ, "HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    name, nodes, spot, accelerators, recovery, envs = json.loads(done.stdout.splitlines()[-1])
    assert (name, nodes, spot, accelerators) == ("gaeanet", 1, True, {"A100": 8})
    assert (recovery["strategy"], recovery["max_restarts_on_errors"]) == ("FAILOVER", 5)
    assert set(envs) == {"CONFIG", "DATA", "CHECKPOINTS"}

    broken = tmp_path / "broken.yaml"
    broken.write_text((LAUNCH / "sky.yaml").read_text().replace("use_spot", "use_spots"))
    done = subprocess.run([*command, broken], env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True)
    assert "use_spots" in done.stderr, "the library checks what it reads"


def test_kubernetes_takes_its_file() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for tree in documents("kubernetes.yaml"):
        validate.validate(tree, validate.latest_version(), strict=True)
    broken = documents("kubernetes.yaml")[1]
    broken["spec"]["completionmode"] = "Indexed"
    with pytest.raises(validate.ValidationError):
        validate.validate(broken, validate.latest_version(), strict=True)


def test_kubeflow_takes_its_file() -> None:
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="kubeflow-trainer-api is not installed")
    (tree,) = documents("kubeflow.yaml")
    job = models.TrainerV1alpha1TrainJob.from_dict(tree)
    assert json.loads(json.dumps(job.to_dict(), default=str)) == tree, "each key is one of the schema's"


def test_the_job_and_the_trainjob_ask_for_the_same() -> None:
    pod, (trainjob,) = container("kubernetes.yaml"), documents("kubeflow.yaml")
    trainer = trainjob["spec"]["trainer"]
    assert [*trainer["command"], *trainer["args"]] == [*pod["command"], *pod["args"]]
    values = {entry["name"]: entry.get("value") for entry in pod["env"]}
    assert trainer["env"] == [entry for entry in pod["env"] if not entry["name"].startswith("PET_")]
    assert str(trainer["numNodes"]) == values["PET_NNODES"]
    assert str(trainer["numProcPerNode"]) == values["PET_NPROC_PER_NODE"]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["sky", "kubernetes"])
def test_two_nodes_run_the_command_and_new_ones_go_on_from_the_bucket(
    gcs: Proxy, t3: Path, tmp_path: Path, engine: str
) -> None:
    """Each node in a directory of its own; the third and fourth machine have nothing but the bucket."""
    location = f"gs://photos/{tmp_path.name}/{engine}"
    config = tmp_path / "tiny.yaml"
    tree = {
        "name": "gaeanet",
        "data": {"num_workers_train": 0, "num_workers_val": 0},
        "hyperparameters": {**NET, "epochs": 2, "checkpoint_every": 3},
    }
    config.write_text(yaml.safe_dump(tree))
    values = {"CONFIG": str(config), "DATA": str(t3), "CHECKPOINTS": location}
    first = _run(engine, values, tmp_path / "first")
    assert "plan: global 4 = 2 processes x 2 x 1" in first
    there = Mirror(location, QUICK)
    for name in list(there.checkpoints())[1:]:  # the machines were lost earlier
        there._client.delete(f"checkpoints/{name}/manifest.json")
    (left,) = there.checkpoints()
    again = _run(engine, values, tmp_path / "second")
    assert f"downloaded {left} from {location}" in again
    assert "resumed after step" in again
    runs = [tmp_path / machine / "node-0" / "runs" / "gaeanet" for machine in ("first", "second")]
    same_checkpoints(*runs)
    assert same_but_for_speed(*map(read_log, runs))


def _run(engine: str, values: dict[str, str], machines: Path) -> str:
    """The command of an engine's file on two nodes, with the variables that the engine sets; what the first printed."""
    port = str(free_port())
    processes = []
    for node in range(NODES):
        home = machines / f"node-{node}"
        home.mkdir(parents=True)
        (home / "model_def.py").symlink_to(ROOT / "model_def.py")
        make = _by_sky if engine == "sky" else _by_kubernetes
        command, variables = make(values, node, port, home)
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            **values,
            **variables,
        }
        output = open(home / "output", "w")  # noqa: SIM115 (the process's)
        processes.append(subprocess.Popen(command, cwd=home, env=environment, stdout=output, stderr=output))
        output.close()
    for node, process in enumerate(processes):
        try:
            code = process.wait(200)
        finally:
            process.kill()
        assert code == 0, (machines / f"node-{node}" / "output").read_text()[-3000:]
    return (machines / "node-0" / "output").read_text()


def _by_sky(values: dict[str, str], node: int, port: str, home: Path) -> tuple[list[str], dict[str, str]]:
    (tree,) = documents("sky.yaml")
    assert set(tree["envs"]) == set(values)
    script = tree["run"].replace("29500", port)
    variables = {
        "SKYPILOT_NUM_NODES": str(NODES),
        "SKYPILOT_NODE_RANK": str(node),
        "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.2",
        "SKYPILOT_NUM_GPUS_PER_NODE": "1",
    }
    return ["bash", "-c", script], variables


def _by_kubernetes(values: dict[str, str], node: int, port: str, home: Path) -> tuple[list[str], dict[str, str]]:
    pod = container("kubernetes.yaml")
    own = {entry["name"] for entry in pod["env"]}
    assert own >= set(values)
    variables = {
        "PET_NNODES": str(NODES),
        "PET_NPROC_PER_NODE": "1",
        "PET_NODE_RANK": str(node),
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": port,
    }
    assert {name for name in own if name.startswith("PET_")} == set(variables)
    words = [re.sub(r"\$\((\w+)\)", lambda name: values[name[1]], word) for word in pod["command"] + pod["args"]]
    return [word.replace("/runs/", f"{home}/runs/") for word in words], variables
