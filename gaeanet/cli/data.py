"""`gaeanet prepare`. Nothing here imports torch."""

from __future__ import annotations

import argparse
from typing import Any

from gaeanet.cli.parser import add_command, as_name, as_path
from gaeanet.errors import RequestError
from gaeanet.runtime.imports import importing


def prepare(arguments: argparse.Namespace) -> None:
    """Turns ImageNet's archives, a folder tree or a bucket into class folders or shards; stopped, it continues."""
    with importing():
        from gaeanet.data.prepare.prepare import prepare as run
        from gaeanet.data.prepare.verify import verify

    if arguments.destination is None and not arguments.verify:
        raise RequestError("prepare: give a DESTINATION to write to, or --verify to check SOURCE")
    if arguments.destination is None and arguments.shards:
        raise RequestError("prepare: --shards needs a DESTINATION to write to")
    if arguments.destination is not None:
        run(arguments.source, arguments.destination, shards=arguments.shards)
    if arguments.verify:
        verify(str(arguments.destination or arguments.source))


def add_commands(commands: Any) -> None:
    """Adds this command to the parser."""
    command = add_command(commands, "prepare", prepare, "convert a data set to class folders or shards")
    command.add_argument(
        "source",
        metavar="SOURCE",
        type=as_name,
        help="directory of archives, folders or shards, or a bucket's URL",
    )
    command.add_argument("destination", metavar="DESTINATION", type=as_path, nargs="?", help="directory to write to")
    command.add_argument("--shards", action="store_true", help="write tar shards with an index, not class folders")
    command.add_argument("--verify", action="store_true", help="decode every image and report what is odd")
