"""Runs of const beside one another on this machine's cores: images/s of each, and their sum against one run alone.

Also the fraction of the time that each run's main thread waited for a core, by which runs notice each other
(gaeanet/runtime/waiting.py).

    python benchmarks/beside.py                                   1, 2 and 4 runs, started together
    python benchmarks/beside.py --after 20 --runs 2               the second 20 s after the first
    python benchmarks/beside.py --env GOMP_SPINCOUNT=100          with other settings of OpenMP
    python benchmarks/beside.py --trials 4 --runs 1 4             as trials of one slot on an agent of four

Rounds are interleaved: 1, 2, 4, 1, 2, 4, ... An otherwise quiet machine is needed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
SMALL = ("data.generated_per_class=100", "hyperparameters.epochs=100000", "hyperparameters.validate_every=100000")
"""A line of the log for each 100 images, and nothing but training."""


class Run:
    """A run in a directory of its own, and how far its log says that it has come."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.log = directory / "run" / "metrics.jsonl"
        settings = [word for setting in SMALL for word in ("--set", setting)]
        command = [
            sys.executable,
            "-m",
            "gaeanet.cli",
            "train",
            "const",
            *settings,
            "--run-dir",
            str(directory / "run"),
        ]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.output = open(directory / "output", "wb")  # noqa: SIM115 (closed by stop)
        self.process = subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": path, **environment}, stdout=self.output, stderr=self.output
        )

    def progress(self) -> tuple[float, int]:
        """When the last line was written, and how many images it counts."""
        with contextlib.suppress(OSError):
            lines = self.log.read_text().splitlines()
            if len(lines) > 1:
                return self.log.stat().st_mtime, int(json.loads(lines[-1])["images"])
        return 0.0, 0

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.process.kill()
        self.process.wait()
        self.output.close()

    def waited(self) -> float:
        """Seconds that its main thread has waited for a core."""
        return int(Path(f"/proc/{self.process.pid}/schedstat").read_text().split()[1]) / 1e9


def rates(runs: list[Run], seconds: float) -> list[float]:
    """Images per second of each run in a window of about so many seconds, from line to line of its log; printed."""
    before, waited = [run.progress() for run in runs], [run.waited() for run in runs]
    time.sleep(seconds)
    after = [run.progress() for run in runs]
    found = [(end[1] - start[1]) / max(1e-9, end[0] - start[0]) for start, end in zip(before, after, strict=True)]
    waits = [(run.waited() - start) / seconds for run, start in zip(runs, waited, strict=True)]
    each = ", ".join(f"{rate:.0f} (waited {wait:.0%})" for rate, wait in zip(found, waits, strict=True))
    print(f"{len(runs)}: {each} images/s", flush=True)
    return found


def measure(count: int, after: float, seconds: float, environment: dict[str, str]) -> list[list[float]]:
    """Rates of each run: while all run; with `after`, before that those of the first alone."""
    windows = list[list[float]]()
    with tempfile.TemporaryDirectory() as directory:
        runs = list[Run]()
        try:
            for number in range(count):
                if number and after:
                    time.sleep(max(0.0, after - seconds))
                    windows.append(rates(runs, seconds))
                home = Path(directory) / str(number)
                home.mkdir()
                runs.append(Run(home, environment))
            while any(run.progress()[1] == 0 for run in runs):
                time.sleep(0.1)
                for run in runs:
                    if run.process.poll() is not None:
                        sys.exit(f"a run ended: {(run.log.parents[1] / 'output').read_text()}")
            time.sleep(1)
            windows.append(rates(runs, seconds))
        finally:
            for run in runs:
                run.stop()
    return windows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--after", type=float, default=0.0, metavar="SECONDS", help="from one start to the next")
    parser.add_argument(
        "--trials", type=int, metavar="SLOTS", help="threads as those of a trial with one slot of so many"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of each window")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--env", nargs="*", default=[], metavar="NAME=VALUE")
    args = parser.parse_args()
    environment = dict(setting.split("=", 1) for setting in args.env)
    if args.trials:
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // args.trials))
    sums = dict[int, list[float]]()
    for _ in range(args.rounds):
        for count in args.runs:
            windows = measure(count, args.after, args.seconds, environment)
            for window in windows:
                sums.setdefault(len(window), []).append(sum(window))
    alone = median(sums[min(sums)])
    for count, values in sorted(sums.items()):
        print(f"{count} together: {median(values):.0f} images/s, {median(values) / alone:.2f} of {min(sums)} alone")


if __name__ == "__main__":
    main()
