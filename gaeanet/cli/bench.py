"""`gaeanet bench`. torch is imported only after the request has been checked."""

from __future__ import annotations

import argparse
import signal
import time
from typing import Any

from gaeanet.cli.diagnose import diagnosed
from gaeanet.cli.parser import add_changes, add_command, as_path
from gaeanet.cli.run import check_job, check_started_alone
from gaeanet.errors import RequestError
from gaeanet.runtime.files import is_directory
from gaeanet.runtime.imports import importing
from gaeanet.runtime.load import Sample, busy_elsewhere


def bench(arguments: argparse.Namespace) -> None:
    """Measures each stage of training on this machine and data set: the bottleneck, and how long the run takes."""
    with importing():
        from gaeanet.config.experiment import load_experiment
        from gaeanet.data.sources.open import open_source

    check_started_alone("bench", "measures one process")
    if not arguments.seconds >= 1:
        raise RequestError(f"--seconds {arguments.seconds:g}: must be 1 or more")
    if arguments.seconds > 86_400:
        raise RequestError(f"--seconds {arguments.seconds:g}: must be 86,400 (a day) or less")
    experiment = load_experiment(arguments.config, arguments.set, arguments.data)
    check_job(experiment, "bench", arguments.config)
    before = Sample.now()
    began = time.perf_counter()
    source = open_source(experiment)
    listing = time.perf_counter() - began

    with importing(torch=True):
        from rich.console import Console

        from gaeanet.artifacts.directory import run_dir_of
        from gaeanet.bench.measure import Bench
        from gaeanet.bench.report import facts_of, to_json, to_text
        from gaeanet.runtime.waiting import waiting_by_load
    elsewhere = busy_elsewhere(before)

    run_dir = run_dir_of(experiment.name).absolute()
    existing = next(parent for parent in run_dir.parents if is_directory(parent))  # the run's own file system
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)  # it removes its files
    try:
        with diagnosed(), waiting_by_load(), Console(stderr=True).status("", refresh_per_second=2) as status:
            measuring = Bench(experiment, source, arguments.seconds, lambda what: status.update(f"measuring {what}"))
            findings = measuring.run(existing)
    finally:
        signal.signal(signal.SIGTERM, previous)
    findings.seconds["listing"] = listing
    facts = facts_of(experiment, source, findings, elsewhere)
    print(to_json(facts) if arguments.json else to_text(facts))


def add_commands(commands: Any) -> None:
    """Adds this command to the parser."""
    command = add_command(commands, "bench", bench, "measure what limits the speed here")
    command.add_argument(
        "config", metavar="CONFIG", type=as_path, help="the experiment file, or a recipe such as distributed"
    )
    add_changes(command)
    command.add_argument(
        "--seconds", metavar="N", type=float, default=60.0, help="about how long it may take (default: 60)"
    )
    command.add_argument("--json", action="store_true", help="print JSON")
