"""A step of the search beside the plain way (benchmarks/plain_search.py): speed and peak memory.

    python benchmarks/search.py                      the paper's supernet: 16 channels, 8 cells, 32 px; some minutes
    python benchmarks/search.py --stem imagenet --size 224

Both have the same weights; logits and the architecture's gradient are checked equal before the clock starts. They take
turns, each turn is a pair, and the ratio is the median over pairs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import Any

import torch
import torch.nn.functional as F
from plain_search import PlainSupernet
from speed import close, compare, machine, peak_memory, row, timed
from torch import Tensor, nn

from gaeanet.config.search import Search
from gaeanet.models.fast import accelerate
from gaeanet.search.architecture import Architecture
from gaeanet.search.supernet import Supernet


class Way:
    """A supernet and the gradients of a search step: of weights and architecture, one after the other."""

    def __init__(self, network: nn.Module, arguments: argparse.Namespace) -> None:
        self.network = network.train()
        self.architecture = Architecture(Search(channel_divisor=arguments.divisor), torch.device("cpu"))

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.network(images, self.architecture.mixture()), labels)

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        torch.autograd.grad(self.loss(images, labels), self.architecture.parameters)
        torch.autograd.grad(self.loss(images, labels), list(self.network.parameters()))


def way(name: str, arguments: argparse.Namespace) -> tuple[Way, Tensor, Tensor]:
    torch.manual_seed(0)
    shape = arguments.channels, arguments.layers, arguments.divisor, arguments.stem
    network: nn.Module = Supernet(arguments.classes, *shape)
    images = torch.randn(arguments.batch, 3, arguments.size, arguments.size)
    labels = torch.randint(arguments.classes, (arguments.batch,))
    if name == "plain":
        return Way(PlainSupernet(network, *shape), arguments), images, labels  # type: ignore[arg-type]
    accelerate(network.to(memory_format=torch.channels_last))
    return Way(network, arguments), images.contiguous(memory_format=torch.channels_last), labels


def check(plain: tuple[Any, ...], ours: tuple[Any, ...]) -> None:
    found = []
    for one, images, labels in (plain, ours):
        logits = one.network(images, one.architecture.mixture())
        found.append((logits, torch.autograd.grad(F.cross_entropy(logits, labels), one.architecture.parameters)))
    close(found[1][0], found[0][0], 1e-3, "logits")
    for a, b in zip(found[1][1], found[0][1]):
        close(a, b, 3e-2, "gradients of the architecture")


def memory_of(name: str, arguments: argparse.Namespace) -> None:
    before = peak_memory()
    run, images, labels = way(name, arguments)
    for _ in range(2):
        run(images, labels)
    print((peak_memory() - before) / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("batch", 32), ("channels", 16), ("layers", 8), ("divisor", 4), ("size", 32), ("classes", 10)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--stem", choices=("cifar", "imagenet"), default="cifar")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of turns")
    parser.add_argument("--only", choices=("plain", "gaeanet"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        memory_of(arguments.only, arguments)
        return
    print(machine())
    print(
        f"supernet: C={arguments.channels}, {arguments.layers} cells, k={arguments.divisor}, {arguments.stem} stem, "
        f"{arguments.size} px\n\n| | plain | gaeanet | ratio: median (range) |\n|---|---|---|---|"
    )
    plain, ours = way("plain", arguments), way("gaeanet", arguments)
    check(plain, ours)
    ways = {"plain": timed(lambda: plain[0](*plain[1:])), "gaeanet": timed(lambda: ours[0](*ours[1:]))}
    compare(f"search step, batch {arguments.batch}", arguments.batch, "images/s", ways, arguments.rounds)
    peaks = []
    for name in ways:
        command = [sys.executable, __file__, *sys.argv[1:], "--only", name]
        peaks.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    slow, fast = peaks
    ratio = [fast / max(slow, 2**-20)]
    row(f"memory of a step, batch {arguments.batch}", f"{slow:.2f} GiB", f"{fast:.2f} GiB", ratio)


if __name__ == "__main__":
    main()
