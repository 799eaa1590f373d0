"""`gaeanet prepare`. Nothing here imports torch."""

from __future__ import annotations

import argparse
from typing import Any

from gaeanet.cli.parser import add_command, as_name, as_path
from gaeanet.errors import RequestError
from gaeanet.runtime.imports import importing


def prepare(arguments: argparse.Namespace) -> None:
    """Turns a data set into class folders or shards; stopped, it continues.

    SOURCE is a directory of class folders, ImageNet's archives, shards, webdataset tars, parquet or
    Arrow files of Hugging Face, TFRecords or MDS; a table (CSV, TSV, JSON lines, parquet) of image files and labels;
    a bucket's URL; or hf://datasets/NAME. docs/data.md has a line for each.
    """
    with importing():
        from gaeanet.data.prepare.prepare import prepare as run
        from gaeanet.data.prepare.verify import verify

    if arguments.destination is None and not arguments.verify:
        raise RequestError("prepare: give a DESTINATION to write to, or --verify to check SOURCE")
    if arguments.destination is None and arguments.shards:
        raise RequestError("prepare: --shards needs a DESTINATION to write to")
    if arguments.destination is None and arguments.link:
        raise RequestError("prepare: --link needs a DESTINATION to write to")
    columns = None if arguments.columns is None else [name.strip() for name in arguments.columns.split(",")]
    if columns is not None and (len(columns) not in (2, 3) or not all(columns)):
        raise RequestError(f"--columns {arguments.columns}: must be IMAGE,LABEL or IMAGE,LABEL,SPLIT")
    if arguments.destination is not None:
        run(arguments.source, arguments.destination, shards=arguments.shards, columns=columns, link=arguments.link)
    if arguments.verify:
        verify(str(arguments.destination or arguments.source), None if arguments.destination else columns)


def add_commands(commands: Any) -> None:
    """Adds this command to the parser."""
    command = add_command(commands, "prepare", prepare, "convert a data set to class folders or shards")
    command.add_argument(
        "source", metavar="SOURCE", type=as_name, help="directory, table, bucket's URL or hf://datasets/NAME"
    )
    command.add_argument("destination", metavar="DESTINATION", type=as_path, nargs="?", help="directory to write to")
    command.add_argument("--shards", action="store_true", help="write tar shards with an index, not class folders")
    command.add_argument(
        "--columns", metavar="IMAGE,LABEL[,SPLIT]", help="columns of a table, where their names do not show it"
    )
    command.add_argument("--link", action="store_true", help="link image files instead of copying them")
    command.add_argument("--verify", action="store_true", help="decode every image and report what is odd")
