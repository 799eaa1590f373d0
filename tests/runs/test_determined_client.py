"""The real client against the stand-in master: what `det experiment create distributed.yaml .` sends."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from master import Master
from task import ROOT, client

pytest.importorskip("determined.core", reason="the extra gaeanet[determined] is not installed")


def test_create_sends_what_a_task_needs_and_nothing_else(tmp_path: Path) -> None:
    with Master() as master:
        result = client(master, tmp_path, "experiment", "create", "distributed.yaml", ".")
    assert "Created experiment 1" in result.stdout.splitlines(), result.stderr
    assert result.returncode == 0
    assert master.requests == ["GET /info", "POST /api/v1/auth/login", "POST /api/v1/experiments"]
    [body] = master.submissions
    assert body["activate"] is True
    assert body["config"] == (ROOT / "distributed.yaml").read_text()
    assert yaml.safe_load(body["config"])["name"] == "gaea-imagenet"

    sent = {file["path"]: file for file in body["modelDefinition"]}
    package = [path for path in (ROOT / "gaeanet").rglob("*") if path.suffix != ".pyc" and path.name != "__pycache__"]
    expected = {"model_def.py", "startup-hook.sh", "gaeanet", *(str(path.relative_to(ROOT)) for path in package)}
    assert {path for path in sent if not path.startswith("cells")} == expected
    for path, file in sent.items():
        assert file["type"] == (53 if (ROOT / path).is_dir() else 48)
        if file["type"] == 48:
            assert base64.b64decode(file["content"]) == (ROOT / path).read_bytes()
    assert len(json.dumps(body)) < 2_000_000
    runs_alone(body["modelDefinition"], tmp_path / "work")


def runs_alone(files: list[dict[str, Any]], folder: Path) -> None:
    """Unpacked in an empty directory the files import, and refuse what a cluster would refuse, naming the key."""
    folder.mkdir()
    for file in sorted(files, key=lambda file: str(file["path"])):
        if file["type"] == 53:
            (folder / file["path"]).mkdir()
        else:
            (folder / file["path"]).write_bytes(base64.b64decode(file["content"]))
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("DET_", "PYTHON"))}
    command = [sys.executable, "model_def.py", str(ROOT / "distributed.yaml")]
    result = subprocess.run(command, cwd=folder, env=keep, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert "data.bucket_name is '<your-bucket>': name a location" in result.stderr


PRIVATE = [".env", "runs/a/metrics.jsonl", "data/train/a.JPEG", ".git/config", ".venv/bin/python", "key.json"]
PRIVATE += [
    "notes.txt",
    "gaeanet/.secret",
    "gaeanet/__pycache__/cli.cpython-311.pyc",
    "imagenet.tar",
    "wandb/x",
    "x.pt",
]
PRIVATE += ["distributed.yaml", "tests/conftest.py", "docs/cells.md", "build/lib/gaeanet/cli/main.py"]
NEEDED = ["model_def.py", "startup-hook.sh", "gaeanet/cli/main.py", "gaeanet/data/sources/folder.py", "cells/mine.yaml"]


def test_nothing_big_or_private_travels(tmp_path: Path) -> None:
    from determined.common.context import read_v1_context

    for name in [*PRIVATE, *NEEDED]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("secret")
    (tmp_path / ".detignore").write_bytes((ROOT / ".detignore").read_bytes())
    files = [file.path for file in read_v1_context(tmp_path) if file.type == 48]
    assert sorted(files) == sorted(NEEDED)
