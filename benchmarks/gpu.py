"""Tests and measures training on a GPU, way by way, beside a plain script; all ways take turns in one run.

    python benchmarks/gpu.py [correct] [step] [muon] [ready] [inference] [profile] [--out FILE.json]

    correct    the tests that need a GPU: kernels against float64, replayed steps against launched ones, resumed runs
    step       the network of distributed.yaml, batch 128 and 256: images/s and peak memory of each way
    muon       the step of imagenette-5.yaml
    ready      seconds from the start of a process to its first finished step, kernels' cache cold and warm
    inference  logits of batches of 256
    profile    the kernels of a step, by time

Images and labels are on the device; a number is the median over rounds in which all ways take turns. Without a GPU it
says so and ends.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gaeanet.config.experiment import Hyperparameters, load_experiment
from gaeanet.models.build import build_network
from gaeanet.optim.rates import Rates, Row
from gaeanet.runtime.processes import Processes
from gaeanet.training.learner import build_learner
from gaeanet.training.objective import Classification
from gaeanet.training.recorded import Stepper

ROOT = Path(__file__).parents[1]
DEVICE = torch.device("cuda")
ROUNDS, STEPS = 7, 6


class Plain:
    """A plain script's step: eager, contiguous NCHW, PyTorch's SGD, an average, the loss read each step."""

    def __init__(self, hp: Hyperparameters, dtype: torch.dtype | None) -> None:
        self.network, self.dtype, self.clip = build_network(hp).to(DEVICE).train(), dtype, hp.clip_gradients_l2_norm
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.01, momentum=0.9, weight_decay=3e-5)
        self.average = torch.optim.swa_utils.AveragedModel(
            self.network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.999), use_buffers=True
        )

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        self.optimizer.zero_grad()
        with torch.autocast("cuda", self.dtype, enabled=self.dtype is not None):
            logits = self.network(normal(images))
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=0.1)
        loss.backward()
        if self.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        self.optimizer.step()
        self.average.update_parameters(self.network)
        loss.item()


def normal(images: Tensor) -> Tensor:
    mean = torch.tensor([0.485, 0.456, 0.406], device=DEVICE).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], device=DEVICE).view(1, 3, 1, 1)
    return (images.float() / 255 - mean) / std


class Ours:
    """A step of the product, launched or replayed as `compile` says."""

    def __init__(self, hp: Hyperparameters, compile: str | bool) -> None:
        hp = hp.model_copy(update={"compile": compile})
        self.learner = build_learner(hp, Processes())
        self.stepper = Stepper(self.learner, Classification(hp), Rates.constant(Row(0.01, 0.0, 0.001), DEVICE))

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        self.stepper.step(images, labels)


def batch_of(hp: Hyperparameters, count: int) -> tuple[Tensor, Tensor]:
    side = hp.training_sizes[0]
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, device=DEVICE)
    labels = torch.randint(0, hp.num_classes, (count,), device=DEVICE)
    return images.contiguous(memory_format=torch.channels_last), labels


def seconds(work: Callable[[], None], times: int) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / times


def in_turns(ways: dict[str, Callable[[], None]], rounds: int = ROUNDS, times: int = STEPS) -> dict[str, float]:
    """The median seconds of each way."""
    laps: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            laps[name].append(seconds(way, times))
    return {name: statistics.median(found) for name, found in laps.items()}


def compared(title: str, hp: Hyperparameters, count: int, make: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """Prints images/s and peak memory of each way on batches of `count`."""
    images, labels = batch_of(hp, count)
    ways, peaks, ready, texts = {}, {}, {}, {}
    for name, build in make.items():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        try:
            way = build()
            way(images, labels)
            way(images, labels)
            torch.cuda.synchronize()
        except Exception as error:
            print(f"{title:24} {name:18} failed: {type(error).__name__}: {str(error)[:300]}", flush=True)
            continue
        ready[name] = time.perf_counter() - began
        peaks[name] = torch.cuda.max_memory_allocated() - before
        texts[name] = way.learner.way.text if isinstance(way, Ours) else ""
        ways[name] = lambda way=way: way(images, labels)
    found = in_turns(ways)
    first = found.get("plain bf16")
    for name, took in found.items():
        ratio = f"{first / took:5.2f}x" if first else "      "
        print(
            f"{title:24} {name:18} {1e3 * took:8.2f} ms {count / took:8.0f} images/s {ratio} "
            f"{peaks[name] / 2**30:6.2f} GiB  ready {ready[name]:5.1f} s  {texts[name]}",
            flush=True,
        )
    return {
        name: {"ms": 1e3 * took, "images_per_second": count / took, "peak_bytes": peaks[name], "way": texts[name]}
        for name, took in found.items()
    }


def distributed(**changes: Any) -> Hyperparameters:
    hp = load_experiment(ROOT / "distributed.yaml", data=".").hyperparameters
    return hp.model_copy(update={"global_batch_size": 128, **changes})


def part_correct() -> dict[str, int]:
    """Nothing here needs the fixtures of the whole suite."""
    tests = ROOT / "tests"
    files = [*sorted((tests / "kernels" / "gpu").glob("cases_*.py")), tests / "training" / "test_recorded.py"]
    found = {}
    for file in files:
        command = [sys.executable, "-m", "pytest", "--noconftest", "-q", "-p", "no:cacheprovider", "--tb=short"]
        selection = ["-k", "on_a_gpu"] if file.name == "test_recorded.py" else ["-m", "not slow"]
        ended = subprocess.run([*command, *selection, file], cwd=ROOT, capture_output=True, text=True)
        print(f"{file.name}: {(ended.stdout.strip().splitlines() or ['no output'])[-1]}", flush=True)
        if ended.returncode:
            print(ended.stdout[-4000:] + ended.stderr[-1000:], flush=True)
        found[file.name] = ended.returncode
    return found


def part_step() -> dict[str, Any]:
    found = {}
    for count in (128, 256):
        hp = distributed(global_batch_size=count)
        make = {
            "plain fp32": lambda hp=hp: Plain(hp, None),
            "plain bf16": lambda hp=hp: Plain(hp, torch.bfloat16),
            "compile: false": lambda hp=hp: Ours(hp, False),
            "compile: graphs": lambda hp=hp: Ours(hp, "graphs"),
            "compile: auto": lambda hp=hp: Ours(hp, "auto"),
        }
        if count == 256:
            make = {name: make[name] for name in ("plain bf16", "compile: graphs", "compile: auto")}
        found[str(count)] = compared(f"step, batch {count}", hp, count, make)
        torch.cuda.empty_cache()
    return found


def part_muon() -> dict[str, Any]:
    hp = load_experiment(ROOT / "benchmarks" / "imagenette-5.yaml", data=".").hyperparameters
    make = {f"compile: {way}": lambda way=way: Ours(hp, way) for way in ("graphs", "auto")}
    return compared("imagenette-5.yaml", hp, hp.global_batch_size, make)


def part_ready() -> dict[str, float]:
    found = {}
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "TRITON_CACHE_DIR": cache, "XDG_CACHE_HOME": cache}
        for name in ("cold", "warm"):
            began = time.perf_counter()
            command = [sys.executable, __file__, "first"]
            subprocess.run(command, env=environment, check=True, capture_output=True, timeout=200)
            found[name] = time.perf_counter() - began
            print(f"ready, {name} cache: {found[name]:.1f} s", flush=True)
    return found


def part_first() -> None:
    """The start of a run and its first step, and nothing else."""
    hp = distributed()
    Ours(hp, "auto")(*batch_of(hp, 128))
    torch.cuda.synchronize()


def part_inference() -> dict[str, float]:
    hp, count = distributed(), 256
    network = build_network(hp).to(DEVICE).eval()
    images = torch.randn(count, 3, 224, 224, device=DEVICE).contiguous(memory_format=torch.channels_last)

    def eager() -> None:
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
            network(images)

    found = in_turns({"eager bf16": eager})
    for name, took in found.items():
        print(f"inference, batch 256     {name:18} {1e3 * took:8.2f} ms {count / took:8.0f} images/s", flush=True)
    return {name: count / took for name, took in found.items()}


def part_profile() -> None:
    for way in ("graphs", "auto"):
        hp = distributed()
        ours, batch = Ours(hp, way), batch_of(hp, 128)
        for _ in range(3):
            ours(*batch)
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            for _ in range(3):
                ours(*batch)
            torch.cuda.synchronize()
        print(f"kernels of three steps, compile: {way}", flush=True)
        rows = sorted(profile.key_averages(), key=lambda row: -row.self_device_time_total)[:45]
        total = sum(row.self_device_time_total for row in profile.key_averages())
        launches = sum(row.count for row in profile.key_averages())
        print(f"  {total / 3e3:.2f} ms and {launches / 3:.0f} kernels a step", flush=True)
        for row in rows:
            print(f"  {row.self_device_time_total / 3e3:8.3f} ms {row.count / 3:7.1f} x  {row.key[:110]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["correct", "step", "muon", "ready", "inference"])
    parser.add_argument("--out", type=Path, help="where to write the numbers, as JSON")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this machine has no GPU that PyTorch can use")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    found = {}
    for part in arguments.parts:
        found[part] = globals()[f"part_{part}"]()
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
