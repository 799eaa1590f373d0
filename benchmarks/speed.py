"""Speed beside the plain way (benchmarks/plain.py), in one table: `make bench`.

    python benchmarks/speed.py                       all parts, some minutes
    python benchmarks/speed.py step --batch 16       one part
    python benchmarks/speed.py --gpu                 what computes on the GPU there, `precision: auto`
    GAEANET_DATA=... python benchmarks/speed.py      with the photographs of $GAEANET_DATA/imagenette

Both ways do the same work on the same weights, which is checked before the clock starts. They take turns, each turn is
a pair, and the ratio is the median over pairs: what else the machine does hits both.
"""

from __future__ import annotations

import argparse
import atexit
import copy
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import plain
import torch
from photographs import photograph
from torch import Tensor, nn

from gaeanet import __version__
from gaeanet.bench.timing import wait
from gaeanet.config.experiment import Hyperparameters, experiment_from
from gaeanet.data.images.transforms import TrainingTransform, ValidationTransform, normalize
from gaeanet.data.loading.loader import training_batches, validation_batches
from gaeanet.data.sources.folder import FolderSource
from gaeanet.kernels.build import availability
from gaeanet.models.build import build_network
from gaeanet.models.folding import fold_batch_norm
from gaeanet.optim.rates import Rates, Row
from gaeanet.runtime.processes import Processes
from gaeanet.training.learner import build_learner
from gaeanet.training.objective import Classification
from gaeanet.training.step import step

DEVICE = torch.device("cuda" if "--gpu" in sys.argv else "cpu")
if DEVICE.type == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a run computes on a GPU where it finds one
TOLERANCE = {"cpu": 1e-3, "cuda": 2e-2}
"""Of a step's logits, as a fraction of their norm: convolutions on GPUs may compute in TF32."""

WAYS = ("plain", "gaeanet")
PARTS = ("step", "memory", "input", "end-to-end", "inference")
RECIPE = {
    "init_channels": 48,
    "layers": 14,
    "activation": "swish",
    "do_SE": True,
    "image_size": 224,
    "autoaugment": True,
    "cutout": True,
    "ema_decay": 0.0,
    "epochs": 1,
    "warmup_epochs": 0,
}


def hyperparameters(arguments: argparse.Namespace, batch: int, classes: int = 1000) -> Any:
    block = {**RECIPE, "num_classes": classes, "global_batch_size": batch, "image_size": arguments.size}
    block |= {"init_channels": arguments.channels, "layers": arguments.layers}
    return experiment_from({"hyperparameters": block})


def compare(name: str, work: float, unit: str, ways: dict[str, Callable[[], float]], rounds: int) -> None:
    """Prints a row: the rate of each way, and the median of the ratios pair by pair with their range.

    A way does the work once and returns the seconds that it took.
    """
    times: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds + 1):  # the first warms up
        for way, seconds in ways.items():
            taken = seconds()
            if turn:
                times[way].append(taken)
    slow, fast = times.values()
    ratios = sorted(a / b for a, b in zip(slow, fast))
    row(name, *(f"{work / statistics.median(t):.1f} {unit}" for t in (slow, fast)), ratios)


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """The work with a clock around it."""

    def seconds() -> float:
        began = time.perf_counter()
        work()
        wait(DEVICE)
        return time.perf_counter() - began

    return seconds


def row(name: str, slow: str, fast: str, ratios: list[float]) -> None:
    ratio = statistics.median(ratios)
    print(f"| {name} | {slow} | {fast} | {ratio:.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f}) |", flush=True)


def close(ours: Tensor, theirs: Tensor, tolerance: float, what: str) -> None:
    error = float(((ours - theirs).norm() / theirs.norm()).detach())
    if not error < tolerance:
        sys.exit(f"{what}: the two ways differ by {error:.1e} of the norm, more than {tolerance:g}: nothing is timed")


def images_of(batch: int, size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (batch, 3, size, size), dtype=torch.uint8, generator=generator)
    return images.contiguous(memory_format=torch.channels_last), torch.randint(1000, (batch,), generator=generator)


def check_steps(arguments: argparse.Namespace, batch: int) -> None:
    """Stops where the plain step and ours differ: logits in training, and the gradients of every tenth parameter."""
    experiment = hyperparameters(arguments, batch)
    images, labels = images_of(batch, arguments.size)
    floats, targets = normalize(images).contiguous().to(DEVICE), labels.to(DEVICE)
    learner = build_learner(experiment.hyperparameters, Processes())
    networks = plain_step(experiment.hyperparameters).network, learner.network.train()
    outputs = networks[0](floats), networks[1](normalize(images.to(DEVICE)))
    close(outputs[1], outputs[0], TOLERANCE[DEVICE.type], "logits of a training step")
    for out in outputs:
        nn.functional.cross_entropy(out, targets).backward()
    for theirs, ours in list(zip(*(network.parameters() for network in networks)))[::10]:
        assert theirs.grad is not None
        assert ours.grad is not None
        if float(theirs.grad.norm()) > 1e-4:
            close(ours.grad, theirs.grad, 3e-2, "gradients of a training step")


def step_of(way: str, arguments: argparse.Namespace, batch: int) -> Callable[[], object]:
    """One training step of a way, again and again on the same images."""
    experiment = hyperparameters(arguments, batch)
    images, labels = images_of(batch, arguments.size)
    if way == "plain":
        plain = plain_step(experiment.hyperparameters)
        floats, targets = normalize(images).contiguous().to(DEVICE), labels.to(DEVICE)
        return lambda: plain(floats, targets)
    ours = our_step(experiment.hyperparameters)
    return lambda: ours(images, labels)


def our_step(hp: Hyperparameters) -> Callable[[Tensor, Tensor], None]:
    """A training step on uint8 images and labels, as a run makes it."""
    learner, objective = build_learner(hp, Processes()), Classification(hp)
    rates = Rates.constant(Row(0.01, 0.0, 1 - hp.ema_decay), learner.device)

    def work(images: Tensor, labels: Tensor) -> None:
        step(learner, objective.prepare(learner, images, labels), objective, rates.at(learner.updates))

    return work


def plain_step(hp: Hyperparameters) -> plain.Step:
    network = plain.plain(build_network(hp)).to(DEVICE)
    return plain.Step(network, hp.clip_gradients_l2_norm, hp.label_smoothing_rate)


def alone(part: str, way: str, arguments: argparse.Namespace, batch: int) -> Callable[[], float]:
    """A way in a process of its own, as people run it: what ours asks of the C library's memory is not for both.

    It takes a turn each time it is called and waits in between.
    """
    options = ["--channels", arguments.channels, "--layers", arguments.layers, "--size", arguments.size]
    options += ["--steps", arguments.steps, "--batch", batch, *["--gpu"] * (DEVICE.type == "cuda")]
    command = [sys.executable, __file__, part, "--only", way, *options]
    process = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.kill)
    assert process.stdin is not None
    assert process.stdout is not None
    asked, told = process.stdin, process.stdout

    def seconds() -> float:
        asked.write("\n")
        asked.flush()
        return float(told.readline())

    return seconds


def take_turns(seconds: Callable[[], float]) -> None:
    """The other side of `alone`: a turn for each line that comes in."""
    for _ in sys.stdin:
        print(seconds(), flush=True)


def bench_step(arguments: argparse.Namespace) -> None:
    for batch in arguments.batch:
        check_steps(arguments, batch)
        ways = {way: alone("step", way, arguments, batch) for way in WAYS}
        compare(f"training step, batch {batch}", batch, "images/s", ways, arguments.rounds)


def bench_memory(arguments: argparse.Namespace) -> None:
    """Peak memory of a process that does three steps, less what it had before the network was built.

    Resident memory, or what PyTorch has allocated on the GPU.
    """
    for batch in arguments.batch:
        peaks = []
        for way in WAYS:
            options = ["--channels", arguments.channels, "--layers", arguments.layers, "--size", arguments.size]
            command = [sys.executable, __file__, "memory", "--only", way, "--batch", batch, *options]
            command += ["--gpu"] * (DEVICE.type == "cuda")
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
            peaks.append(float(done.stdout))
        slow, fast = peaks
        row(f"memory of a step, batch {batch}", f"{slow:.2f} GiB", f"{fast:.2f} GiB", [fast / max(slow, 2**-20)])


def peak_memory() -> int:
    """Of this process, in kB; getrusage's figure would begin with the peak of the process that started this one."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() // 1024
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def memory_of(way: str, arguments: argparse.Namespace) -> None:
    before = peak_memory()
    step = step_of(way, arguments, arguments.batch[0])
    for _ in range(3):
        step()
    print((peak_memory() - before) / 2**20)


def photographs(scratch: str) -> dict[str, Path]:
    """Directories with train/ and val/ by what they hold: those of $GAEANET_DATA, or copies of a made-up photograph."""
    given, sets = Path(os.environ.get("GAEANET_DATA", "")), {}
    if (given / "imagenette" / "train").is_dir():
        sets["imagenette"] = given / "imagenette"
    if (given / "imagenet-samples").is_dir():
        sets["full-size"] = Path(scratch) / "samples"
        for path in sorted((given / "imagenet-samples").glob("*.JPEG")):
            for split in ("train", "val"):
                folder = sets["full-size"] / split / path.stem.split("_")[0]
                folder.mkdir(parents=True, exist_ok=True)
                (folder / path.name).symlink_to(path.resolve())
    if sets:
        return sets
    for split, count in (("train", 600), ("val", 200)):
        for k in range(count):
            folder = Path(scratch) / split / f"n{k % 10:08d}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{k}.JPEG").write_bytes(photograph())
    return {"generated": Path(scratch)}


def bench_input(arguments: argparse.Namespace) -> None:
    """JPEG files -> batches of 64 in this process, one thread."""
    threads, batch = torch.get_num_threads(), 64
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        for name, root in photographs(scratch).items():
            source, hp = FolderSource(str(root)), hyperparameters(arguments, batch).hyperparameters
            endless = training_batches(source, TrainingTransform(hp), global_batch=batch, epochs=1000, seed=0)
            theirs = iter(
                _endless(plain.loader(str(root / "train"), plain.training_transform(arguments.size), batch, 0, True))
            )
            ours = iter(endless)
            ways = {"plain": timed(partial(next, theirs)), "gaeanet": timed(partial(next, ours))}
            compare(f"training input, {name}, one core", batch, "images/s", ways, arguments.rounds)

            mine = validation_batches(source, ValidationTransform(arguments.size), batch=batch)
            other = plain.loader(str(root / "val"), plain.validation_transform(arguments.size), batch, 0, False)
            a, b = normalize(next(iter(mine)).images), next(iter(other))[0]  # type: ignore[index]
            levels = 255 * float((a - b).abs().mean()) * 0.226
            if levels > 1.5:
                sys.exit(f"validation images differ by {levels:.2f} levels of 255 in the mean: nothing is timed")
            print(f"| (validation images differ by {levels:.2f} levels of 255 in the mean) | | | |")
            ways = {
                "plain": timed(partial(next, iter(_endless(other)))),
                "gaeanet": timed(partial(next, iter(_endless(mine)))),
            }
            compare(f"validation input, {name}, one core", batch, "images/s", ways, arguments.rounds)
    torch.set_num_threads(threads)


def _endless(batches: Any) -> Any:
    while True:
        yield from batches


def bench_end_to_end(arguments: argparse.Namespace) -> None:
    """Files -> steps, one worker beside the training threads."""
    batch = arguments.batch[-1]
    ways = {way: alone("end-to-end", way, arguments, batch) for way in WAYS}
    compare(f"end to end, batch {batch}", batch * arguments.steps, "images/s", ways, arguments.rounds)


def end_to_end_of(way: str, arguments: argparse.Namespace, batch: int, root: Path) -> Callable[[], float]:
    """The seconds of some steps from files; workers start anew each turn, so that none works ahead between two."""
    experiment, steps = hyperparameters(arguments, batch), arguments.steps
    if way == "plain":
        step = plain_step(experiment.hyperparameters)

        def slow() -> float:
            batches = iter(plain.loader(str(root / "train"), plain.training_transform(arguments.size), batch, 1, True))
            step(*(part.to(DEVICE) for part in next(batches)))  # type: ignore[attr-defined]
            began = time.perf_counter()
            for _ in range(steps):
                step(*(part.to(DEVICE) for part in next(batches)))  # type: ignore[attr-defined]
            return time.perf_counter() - began

        return slow
    source, transform = FolderSource(str(root)), TrainingTransform(experiment.hyperparameters)
    ours = our_step(experiment.hyperparameters)

    def fast() -> float:
        batches = iter(training_batches(source, transform, global_batch=batch, epochs=9, seed=0, workers=1))
        first = next(batches)
        ours(first.images, first.labels)
        began = time.perf_counter()
        for _ in range(steps):
            taken = next(batches)
            ours(taken.images, taken.labels)
        wait(DEVICE)
        return time.perf_counter() - began

    return fast


def bench_inference(arguments: argparse.Namespace) -> None:
    """In PyTorch with batch norm folded into the convolutions, and in ONNX Runtime from the same network."""
    for batch in (1, 32):
        hp = hyperparameters(arguments, max(batch, 2)).hyperparameters  # one image is too few to train on
        images, _ = images_of(batch, arguments.size)
        floats = normalize(images).to(DEVICE)
        ours = with_statistics(build_network(hp).to(DEVICE), floats)
        theirs = plain.plain(copy.deepcopy(ours))
        fold_batch_norm(ours)
        runtime = onnx_session(ours, arguments.size) if DEVICE.type == "cpu" else None
        ours = ours.to(memory_format=torch.channels_last)

        rows = floats.contiguous()
        array = rows.cpu().numpy()

        def slow(network: nn.Module = theirs, x: Tensor = rows) -> None:
            plain.predict(network, x)

        def fast(network: nn.Module = ours, x: Tensor = floats) -> None:
            with torch.inference_mode():
                network(x).softmax(1)

        def exported(session: Any = runtime, x: Any = array) -> Any:
            return session.run(None, {"images": x})[0]

        with torch.inference_mode():
            close(ours(floats), theirs(rows), 1e-3, "logits")
            if runtime:
                close(torch.from_numpy(exported()), theirs(rows), 1e-3, "logits of ONNX Runtime")
        for name, way in [("PyTorch", fast), ("ONNX Runtime", exported)][: 2 if runtime else 1]:
            ways = {"plain": timed(slow), "gaeanet": timed(way)}
            compare(f"inference in {name}, batch {batch}", batch, "images/s", ways, arguments.rounds)


def with_statistics(network: nn.Module, images: Tensor) -> nn.Module:
    """The network in evaluation mode with the batch-norm statistics of `images`.

    Those of an untrained network let its maps vanish, so that two ways would agree whatever they compute.
    """
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = None
    with torch.no_grad():
        network.train()(images.repeat(2, 1, 1, 1) + 0.1 * torch.randn(2 * len(images), *images.shape[1:]))
    return network.eval()


def onnx_session(network: nn.Module, size: int) -> Any:
    """The network in ONNX Runtime, with as many threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = str(Path(scratch) / "network.onnx")
        example = torch.zeros(2, 3, size, size)
        axes = {"images": {0: "batch"}}
        torch.onnx.export(network, (example,), path, input_names=["images"], dynamic_axes=axes, dynamo=False)
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def one_way(part: str, way: str, arguments: argparse.Namespace) -> None:
    """What this program does in a process of its own for one way."""
    batch = arguments.batch[0]
    if part == "memory":
        memory_of(way, arguments)
    elif part == "step":
        take_turns(timed(step_of(way, arguments, batch)))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            root = next(iter(photographs(scratch).values()))
            take_turns(end_to_end_of(way, arguments, batch, root))


def machine() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line] or ["?"]
    flags = [flag for flag in ("avx2", "avx512f", "amx_bf16") if info.exists() and f" {flag}" in info.read_text()]
    gpu = f"{torch.cuda.get_device_name()}, " if DEVICE.type == "cuda" else ""
    return (
        f"{gpu}{names[0]} ({', '.join(flags)}), {torch.get_num_threads()} threads of {os.cpu_count()} cores, "
        f"{platform.system()}, Python {platform.python_version()}, torch {torch.__version__}, gaeanet {__version__}, "
        f"{availability()}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--rounds", type=int, default=5, help="pairs of turns")
    parser.add_argument("--steps", type=int, default=6, help="of a turn end to end")
    parser.add_argument("--channels", type=int, default=48)
    parser.add_argument("--layers", type=int, default=14)
    parser.add_argument("--size", type=int, default=224, help="of images, in pixels")
    parser.add_argument("--gpu", action="store_true", help="compute on the first GPU, not on the CPU")
    parser.add_argument("--only", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if arguments.gpu and not torch.cuda.is_available():
        parser.error("--gpu: PyTorch finds no GPU here")
    if arguments.only:
        one_way(arguments.parts[0], arguments.only, arguments)
        return
    print(machine())
    print(f"network: C={arguments.channels}, {arguments.layers} cells, swish, squeeze-excite, {arguments.size} px\n")
    print("| | plain | gaeanet | ratio: median (range) |\n|---|---|---|---|")
    benches = (bench_step, bench_memory, bench_input, bench_end_to_end, bench_inference)
    for part, bench in zip(PARTS, benches):
        if part in arguments.parts:
            bench(arguments)


if __name__ == "__main__":
    main()
