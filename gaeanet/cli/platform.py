"""Which systems gaeanet runs on, and what a launcher has to say there."""

import os
import sys

from gaeanet.errors import RequestError


def check_platform() -> None:
    """Refuses Windows, which lacks what runs are kept safe with: file locks, signals, forked workers.

    Raises:
        RequestError: This is Windows.
    """
    if sys.platform == "win32":
        raise RequestError("gaeanet runs on Linux and macOS; on Windows use WSL (https://aka.ms/wsl)")


_LAUNCHERS = {"WORLD_SIZE": 1, "RANK": 0, "LOCAL_WORLD_SIZE": 1, "LOCAL_RANK": 0, "TORCHELASTIC_RESTART_COUNT": 0}
"""Variables by which a launcher says which of how many processes this one is, and the least value of each."""


def check_launcher() -> None:
    """Refuses variables of a launcher that are no numbers, or that no launcher sets.

    Raises:
        RequestError: One of them; the message names it.
    """
    for name, least in _LAUNCHERS.items():
        text = os.environ.get(name)
        if text is not None and not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= least):
            raise RequestError(
                f"the environment has {name}={text[:40]!r}, where torchrun sets a whole number from {least}: unset it"
            )
    for one, all_ in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if int(os.environ.get(one, "0")) >= int(os.environ.get(all_, "999999999")):
            raise RequestError(
                f"the environment has {one}={os.environ[one]} of {all_}={os.environ[all_]}: processes count from 0"
            )
