"""`gaeanet describe` and `gaeanet import`. torch is imported only after the request has been checked."""

from __future__ import annotations

import argparse
from typing import Any

from gaeanet.cli.parser import add_command, as_path, at_most
from gaeanet.errors import RequestError, counted
from gaeanet.runtime.imports import importing


def describe(arguments: argparse.Namespace) -> None:
    """Describes a network: its size, its cost, its cells; of two networks, how they differ."""
    with importing():
        from gaeanet.report.describe import compare, read_subject
        from gaeanet.report.describe import describe as describe_one

    references: list[str] = arguments.networks or ["gaea-imagenet"]
    if len(references) > 2:
        raise RequestError(f"describe takes one network or two to compare, not {len(references)}")
    if arguments.draw:
        if len(references) == 2:
            raise RequestError("--draw draws one network's cells: name one network")
        from gaeanet.report.cell_drawing import write_drawing

        subject = read_subject(references[0])
        write_drawing(subject.genotype, subject.name, arguments.draw)
        if not arguments.json:
            print(f"wrote {arguments.draw}")
            return
    if len(references) == 2:
        print(compare(references[0], references[1], arguments.image_size, arguments.json))
    else:
        print(describe_one(references[0], arguments.image_size, arguments.json))


def import_(arguments: argparse.Namespace) -> None:
    """Makes a checkpoint from a state dict of the DARTS family (DARTS, P-DARTS, PC-DARTS; .pt, .pth, .safetensors)."""
    from gaeanet.cells.read import read_genotype

    if arguments.genotype:
        read_genotype(arguments.genotype)

    with importing(torch=True):
        from gaeanet.artifacts.imported import import_weights

    hp = import_weights(arguments.file, arguments.checkpoint, arguments.genotype, arguments.activation)
    print(
        f"wrote {arguments.checkpoint}: cell {hp.cell.fingerprint}, {counted(hp.layers, 'cell')}, "
        f"{hp.init_channels} channels, {hp.activation}, {hp.num_classes} classes, {hp.stem} stem"
        f"{', squeeze-excite' * hp.do_SE}"
        f"{', auxiliary tower' * hp.auxiliary}"
    )


def add_commands(commands: Any) -> None:
    """Adds these commands to the parser."""
    command = add_command(commands, "describe", describe, "explain a network, or compare two", brief=True)
    command.add_argument(
        "networks",
        metavar="NETWORK",
        nargs="*",
        help="a cell's name, a genotype file, a Genotype(...) text, an experiment file, a recipe, a run or a "
        "checkpoint (default: gaea-imagenet); two are compared",
    )
    command.add_argument(
        "--image-size",
        metavar="N",
        type=at_most(4096),
        help="size for multiply-adds (default: the experiment's; 224 for a cell)",
    )
    command.add_argument("--draw", metavar="FILE.svg", type=as_path, help="draw both cells, instead of the text")
    command.add_argument("--json", action="store_true", help="print JSON")

    command = add_command(commands, "import", import_, "import weights of another project", brief=True)
    command.add_argument("file", metavar="FILE", type=as_path, help="the file of weights")
    command.add_argument("checkpoint", metavar="CHECKPOINT", type=as_path, help="the checkpoint directory to write")
    command.add_argument("--genotype", help="the cell, where names and shapes do not identify it")
    command.add_argument(
        "--activation",
        choices=("relu", "swish", "hswish"),
        default="relu",
        help="the activation, which weights do not show (default: relu)",
    )
