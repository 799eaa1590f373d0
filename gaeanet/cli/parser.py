"""The command line's parser: its errors are like all others, one line and exit code 2."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from gaeanet.errors import RequestError


class Parser(argparse.ArgumentParser):
    """A parser that raises `RequestError`; half an option's name is a typo, not the option."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message}; see {self.prog} --help")


def as_path(text: str) -> Path:
    """The type of an argument that names a file or directory: an empty one would be the working directory."""
    return Path(as_name(text))


def as_name(text: str) -> str:
    """The type of an argument that names a path or a URL."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(
            "is empty: is a variable unset?" if not text.strip() else "has a null byte, which no name has"
        )
    return text


def at_most(most: int) -> Callable[[str], int]:
    """The type of an option that takes a whole number of a size that can be computed with."""

    def whole_number(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a whole number, is {text[:40]!r}") from None
        if number > most:
            raise argparse.ArgumentTypeError(f"must be at most {most:,}, is {text[:40]}")
        return number

    return whole_number


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], help_: str, *, brief: bool = False
) -> argparse.ArgumentParser:
    """Adds a command that calls `run`, whose docstring is the command's description.

    Args:
        brief: Whether it ends before there is any garbage worth collecting.
    """
    command: argparse.ArgumentParser = commands.add_parser(name, help=help_, description=run.__doc__)
    command.set_defaults(run=run, brief=brief)
    return command


def add_changes(command: argparse.ArgumentParser) -> None:
    """Adds the options by which a command line changes an experiment file."""
    command.add_argument("--data", metavar="LOCATION", help="where the images are, in place of data.location")
    command.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="set one value, for example hyperparameters.epochs=5; may be repeated",
    )
