"""What a container is: an image that builds where there is an engine, and a run with a root nobody can write."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import read_log

from gaeanet import __version__

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "launch" / "Dockerfile").read_text()
SOMEBODY = 54321
"""A user without an entry in /etc/passwd, as OpenShift makes them."""


def test_the_image_has_what_the_package_needs_and_a_user_of_its_own() -> None:
    copied = re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    assert all((ROOT / name).exists() for name in names)
    project = (ROOT / "pyproject.toml").read_text()
    assert {re.findall('^readme = "(.+)"', project, re.MULTILINE)[0], "gaeanet", "pyproject.toml"} <= set(names)
    users = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)
    assert users[-1] == "1000", "by number, so that runAsNonRoot can be checked"


@pytest.fixture(scope="module")
def engine() -> str:
    """A program that builds and runs images here."""
    for name in ("docker", "podman"):
        if shutil.which(name) and subprocess.run([name, "info"], capture_output=True).returncode == 0:
            return name
    pytest.skip("neither a Docker engine nor Podman here")


@pytest.fixture(scope="module")
def base(engine: str) -> str:
    """The image that ours starts from."""
    (usual,) = re.findall("^ARG BASE=(.+)$", DOCKERFILE, re.MULTILINE)
    name = os.environ.get("GAEANET_BASE_IMAGE", usual)
    here = subprocess.run([engine, "image", "inspect", name], capture_output=True).returncode == 0
    if not here and subprocess.run(["timeout", "100", engine, "pull", name], capture_output=True).returncode:
        pytest.skip(f"{name} cannot be pulled: name an image with Python and pip in GAEANET_BASE_IMAGE")
    return name


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_image_builds_and_trains(engine: str, base: str) -> None:
    """As Kubernetes runs it: a user without a name, a root that cannot be written; and no network."""
    tag = f"gaeanet-test-{os.getpid()}"
    build = ["build", "--network=host", f"--build-arg=BASE={base}", "--file", ROOT / "launch/Dockerfile", "--tag", tag]
    built = subprocess.run([engine, *build, ROOT], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert built.returncode == 0, built.stdout[-3000:]
    try:
        limits = ["--read-only", "--tmpfs=/tmp:exec", "--tmpfs=/runs:mode=1777", "--shm-size=1g", "--network=none"]

        def run(*arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
            command = [engine, "run", "--rm", *limits, *options, tag, *arguments]
            return subprocess.run(command, capture_output=True, text=True)

        assert run("--version").stdout == f"gaeanet {__version__}\n"
        assert run("-u", options=("--entrypoint=id",)).stdout == "1000\n"
        settings = ["--set=hyperparameters.epochs=1", "--set=data.generated_per_class=20"]
        done = run("train", "const", *settings, options=(f"--user={SOMEBODY}",))
        assert done.returncode == 0, done.stderr
        assert "own kernels" in done.stdout
        assert "everything is in runs/" in done.stdout
    finally:
        subprocess.run([engine, "image", "rm", "--force", tag], capture_output=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="a mount of one's own takes root on Linux")
def test_field_report_84_a_root_that_cannot_be_written_and_no_home(
    experiment_file: Callable[..., Path], t3: Path, tmp_path: Path
) -> None:
    """As with readOnlyRootFilesystem, runAsUser and emptyDir volumes at /runs and /tmp.

    The package and its environment are mounted where everybody may go, as they are in an image.
    """
    config = experiment_file(epochs=1, data={"num_workers_train": 1})
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == os.geteuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    runs = tmp_path / "runs"
    runs.mkdir(mode=0o777)
    runs.chmod(0o777)
    script = f"""
    set -e
    mount --bind {runs} /mnt
    mount --bind {ROOT} /media
    mount --bind {sys.prefix} /srv
    mount -o remount,ro,bind /
    mount -t tmpfs tmpfs /var/tmp
    exec setpriv --reuid {SOMEBODY} --regid {SOMEBODY} --clear-groups --no-new-privs \
      /srv/bin/python -m gaeanet.cli train {config} --data {t3} --run-dir /mnt/run
    """
    kept = {key: value for key, value in os.environ.items() if key not in ("XDG_CACHE_HOME", "LOGNAME", "USER")}
    environment = {
        **kept,
        "HOME": "/nonexistent",
        "TMPDIR": "/var/tmp",
        "PYTHONPATH": "/media",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "bash", "-c", script],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "own kernels" in done.stdout
    assert [line["epoch"] for line in read_log(runs / "run", "validation")] == [1.0]
