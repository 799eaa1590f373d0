"""Runs that a benchmark trains and compares: each in its directory, going on where it was stopped."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gaeanet.artifacts.directory import read_run
from gaeanet.cli.main import main as gaeanet


def train(config: Path, data: str, run: Path, settings: Iterable[str]) -> None:
    """Trains an experiment with the given `KEY=VALUE` to its end, starting it, going on or finding it finished."""
    changes = [word for setting in settings for word in ("--set", setting)]
    if code := gaeanet(["train", str(config), "--data", data, "--run-dir", str(run), "--resume", *changes]):
        sys.exit(code)


def validations(run: Path) -> list[dict[str, Any]]:
    """The validation lines of a run's log, in order."""
    return [line for line in read_run(run) if line["kind"] == "validation"]
