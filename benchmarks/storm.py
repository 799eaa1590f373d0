"""A run under a storm: signals, kills, full disk, lost output, stalled and vanishing images, two launchers, damage.

    python benchmarks/storm.py                        20 minutes
    python benchmarks/storm.py --seconds 60 --seed 7  shorter, another storm

A tiny run on photographs is trained once undisturbed. Then the same run is started again and again, and something
happens to it at a random moment, until it is finished; then a new round begins, until the time is up. Each round's log
and newest weights must equal the undisturbed run's bit for bit. A traceback, an exit code that is not the documented
one, a process that outlives its run and one that does not end are failures, and end the storm with exit code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

import gaeanet.report.gather
import gaeanet.training.train
from gaeanet.artifacts import checkpoint
from gaeanet.cli.main import main as gaeanet_main

IMPORTED = (gaeanet.report.gather, gaeanet.training.train)
"""Each start of the run is forked from this process: a start takes no seconds of imports."""

MOST_SECONDS = 120
"""In which a process ends that was asked to, on any machine."""

EXPERIMENT: dict[str, Any] = {
    "name": "storm",
    "data": {"num_workers_train": 1, "num_workers_val": 1, "max_bad": 0},
    "hyperparameters": {
        "num_classes": 3,
        "init_channels": 4,
        "layers": 3,
        "image_size": 32,
        "global_batch_size": 6,
        "epochs": 4,
        "warmup_epochs": 0,
        "learning_rate": 0.05,
        "ema_decay": 0.9,
        "drop_path_prob": 0.1,
        "mixup_alpha": 0.2,
        "checkpoint_every": 2,
        "keep_latest": 3,
    },
}


class Failure(Exception):
    """Something that no storm may do to a run."""


def photographs(root: Path) -> list[Path]:
    """Makes three classes of 10 + 4 noisy photographs; returns the files."""
    rng = np.random.default_rng(0)
    files = []
    for split, count in (("train", 10), ("val", 4)):
        for label in range(3):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 80, (48, 56, 3)) + np.eye(3, dtype=int)[label] * 150
                files.append(folder / f"{number}.jpg")
                Image.fromarray(pixels.astype(np.uint8)).save(files[-1])
    return files


class Launch:
    """A start of the run, in a session of its own, its output in a file or a pipe that is closed early."""

    def __init__(self, arguments: list[str], output: Path, *, closes_output: bool = False) -> None:
        self.output = output
        reader, writer = os.pipe() if closes_output else (None, None)
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            os.setsid()
            errors = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(errors if writer is None else writer, 1)
            os.dup2(errors, 2)
            sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
            if reader is not None:
                os.close(reader)
            code = 1
            try:
                code = gaeanet_main(arguments)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                with contextlib.suppress(Exception):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(code)
        if writer is not None:
            os.close(writer)
        self.reader = reader

    def close_output(self) -> None:
        """Closes the pipe that the run writes into."""
        if self.reader is not None:
            os.close(self.reader)
            self.reader = None

    def send(self, number: int) -> None:
        """Sends a signal, if the run is still there."""
        if not self._is_over():
            os.kill(self.pid, number)

    def _is_over(self) -> bool:
        # A child that has ended is left for `wait`.
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait(self, seconds: float = MOST_SECONDS) -> int | None:
        """The exit code, None where it has not ended in this time; a negative one is a signal's number."""
        end = time.monotonic() + seconds
        while not self._is_over():
            if time.monotonic() > end:
                return None
            time.sleep(0.01)
        self.close_output()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def finish(self) -> int:
        """Waits for the end of the run and of its workers; raises `Failure` where there is none, or a traceback."""
        code = self.wait()
        said = self.output.read_text(errors="replace")
        if code is None:
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            raise Failure(f"no end within {MOST_SECONDS} s:\n{said}")
        if "Traceback" in said:
            raise Failure(said)
        end = time.monotonic() + MOST_SECONDS
        while True:
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return code
            if time.monotonic() > end:
                raise Failure(f"a worker outlives its run by {MOST_SECONDS} s")
            time.sleep(0.02)


class Storm:
    """Rounds of the run, and what happens to them.

    Args:
        root: An empty directory.
    """

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.random = root, random.Random(seed)
        self.files = photographs(root / "data")
        self.config = root / "storm.yaml"
        self.config.write_text(yaml.safe_dump(EXPERIMENT))
        self.run = root / "undisturbed"
        self.codes: Counter[tuple[str, int]] = Counter()
        self.length = 0.0
        self.acts: dict[str, Callable[[], int]] = {
            "SIGHUP": lambda: self.signalled(signal.SIGHUP, self.random.randint(1, 3)),
            "SIGTERM": lambda: self.signalled(signal.SIGTERM, 1),
            "SIGTERM twice": lambda: self.signalled(signal.SIGTERM, 2),
            "kill -9": lambda: self.signalled(signal.SIGKILL, 1),
            "full disk": self.full_disk,
            "closed output": self.closed_output,
            "stalled image": self.stalled_image,
            "vanished image": self.vanished_image,
            "two launchers": self.two_launchers,
            "damaged checkpoint": self.damaged_checkpoint,
        }

    def launch(self, **options: Any) -> Launch:
        arguments = ["train", str(self.config), "--data", str(self.root / "data"), "--run-dir", str(self.run)]
        self.launches = getattr(self, "launches", 0) + 1
        return Launch([*arguments, "--resume"], self.root / f"output-{self.launches % 4}", **options)

    def undisturbed(self) -> None:
        """Trains the run that all others must equal."""
        began = time.monotonic()
        launch = self.launch()
        if code := launch.finish():
            raise Failure(f"the undisturbed run ended with {code}:\n{launch.output.read_text()}")
        self.length = time.monotonic() - began

    def moment(self) -> None:
        """Waits until a random moment of the run."""
        time.sleep(self.random.uniform(0, self.length / 2))

    def signalled(self, number: int, times: int) -> int:
        launch = self.launch()
        self.moment()
        for _ in range(times):
            launch.send(number)
            time.sleep(self.random.choice((0, 0.05)))
        return self._ended(launch, number)

    def _ended(self, launch: Launch, number: int = signal.SIGTERM) -> int:
        """The code of a run that got a signal: 75 or 0, or the signal's own before the run or at its second time."""
        code = launch.finish()
        return self._one_of(code, launch, {0, 75, -number, 128 + number})

    def _one_of(self, code: int, launch: Launch, expected: set[int]) -> int:
        if code not in expected:
            raise Failure(f"exit code {code}, not one of {sorted(expected)}:\n{launch.output.read_text()}")
        return code

    def full_disk(self) -> int:
        """No file of the run may grow beyond a random size from some moment on, as on a disk that is full."""
        launch = self.launch()
        self.moment()
        with contextlib.suppress(ProcessLookupError):
            most = self.random.choice((0, 100, 5_000, 100_000))
            resource.prlimit(launch.pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
        self.moment()
        launch.send(signal.SIGTERM)
        code = launch.finish()
        return self._one_of(code, launch, {0, 1, 2, 75, -signal.SIGTERM})

    def closed_output(self) -> int:
        launch = self.launch(closes_output=True)
        self.moment()
        launch.close_output()
        self.moment()
        launch.send(signal.SIGTERM)
        return self._ended(launch)

    @contextlib.contextmanager
    def without(self, file: Path) -> Iterator[None]:
        """Without one image, which comes back."""
        away = self.root / "away"
        file.rename(away)
        try:
            yield
        finally:
            away.replace(file)

    def stalled_image(self) -> int:
        """A read that does not return, as on a mount that does not answer."""
        launch, file = self.launch(), self.random.choice(self.files)
        self.moment()
        with self.without(file):
            os.mkfifo(file)
            self.moment()
            launch.send(signal.SIGTERM)
            return self._ended(launch)

    def vanished_image(self) -> int:
        """Ends the run where the image is read, or refuses it where it starts: data.max_bad is 0."""
        launch, file = self.launch(), self.random.choice(self.files)
        self.moment()
        with self.without(file):
            self.moment()
        launch.send(signal.SIGTERM)
        code = launch.finish()
        return self._one_of(code, launch, {0, 1, 2, 75, -signal.SIGTERM})

    def two_launchers(self) -> int:
        """One of the two is refused, unless the other has ended; nothing happens to that one."""
        launches = [self.launch()]
        self.moment()
        launches.append(self.launch())
        self.moment()
        for launch in launches:
            launch.send(signal.SIGTERM)
        codes = [launch.finish() for launch in launches]
        for code, launch in zip(codes, launches):
            self._one_of(code, launch, {0, 2, 75, -signal.SIGTERM})
            if code == 2 and "in use by process" not in launch.output.read_text():
                raise Failure(launch.output.read_text())
        return min(codes, key=lambda code: code == 2)

    def damaged_checkpoint(self) -> int:
        """The newest checkpoint is damaged in one of several ways; an older one is there, or the run starts again."""
        code = self.signalled(signal.SIGKILL, 1)
        kept = checkpoint.checkpoints(self.run / "checkpoints")
        if not kept:
            return code
        file = self.random.choice(sorted(kept[-1].iterdir()))
        way = self.random.choice(("flip", "cut", "remove", "empty"))
        data = bytearray(file.read_bytes())
        if way == "remove":
            file.unlink()
        elif way == "flip" and data:
            data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
            file.write_bytes(data)
        else:
            file.write_bytes(data[: len(data) // 2] if way == "cut" else b"")
        with contextlib.suppress(FileNotFoundError), open(self.run / "metrics.jsonl", "a") as log:
            log.write('{"kind": "train", "epo')  # what a killed process leaves
        return code

    def blow(self, seconds: float) -> int:
        """Rounds until the time is up and everything has happened at least once; returns how many."""
        end, rounds = time.monotonic() + seconds, 0
        deck: list[str] = []
        happened: set[str] = set()
        while time.monotonic() < end or happened != self.acts.keys():
            rounds += 1
            self.run = self.root / f"round-{rounds}"
            finished = False
            while not finished and (time.monotonic() < end or happened != self.acts.keys()):
                if not deck:
                    deck = self.random.sample(sorted(self.acts), len(self.acts))
                name = deck.pop()
                code = self.acts[name]()
                happened.add(name)
                self.codes[name, code] += 1
                finished = code == 0
            launch = self.launch()
            self._one_of(launch.finish(), launch, {0})
            self.compare()
            shutil.rmtree(self.run)
        return rounds

    def compare(self) -> None:
        """Raises `Failure` unless log and newest weights of this round equal the undisturbed run's."""
        logs = [
            [
                {key: value for key, value in json.loads(line).items() if key != "images_per_second"}
                for line in (run / "metrics.jsonl").read_text().splitlines()
            ]
            for run in (self.root / "undisturbed", self.run)
        ]
        if logs[0] != logs[1]:
            first = next((pair for pair in zip(*logs) if pair[0] != pair[1]), "one is longer")
            raise Failure(f"the log differs: {first}")
        (tensors, state), (others, other_state) = (
            checkpoint.load(checkpoint.checkpoints(run / "checkpoints")[-1])
            for run in (self.root / "undisturbed", self.run)
        )
        if state != other_state or tensors.keys() != others.keys():
            raise Failure("the state differs")
        for group, values in tensors.items():
            for name, value in values.items():
                if not torch.equal(value, others[group][name]):
                    raise Failure(f"the weights differ: {group}, {name}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Trains a tiny run under a storm.")
    parser.add_argument("--seconds", type=float, default=1200, help="how long (default: 1200)")
    parser.add_argument("--seed", type=int, default=0, help="which storm (default: 0)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # and no threads before a fork
    with tempfile.TemporaryDirectory(prefix="storm-") as root:
        storm = Storm(Path(root), arguments.seed)
        try:
            storm.undisturbed()
            print(f"undisturbed: {storm.length:.1f} s", flush=True)
            rounds = storm.blow(arguments.seconds)
        except Failure as failure:
            print(f"storm {arguments.seed}, after {sum(storm.codes.values())} events: {failure}")
            return 1
        finally:
            for (name, code), count in sorted(storm.codes.items()):
                print(f"{name:<20} exit {code:>4}  {count:>5} times")
    print(f"{sum(storm.codes.values())} events, {rounds} rounds: log and weights equal the undisturbed run's")
    return 0


if __name__ == "__main__":
    sys.exit(main())
