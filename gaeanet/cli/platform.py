"""Where gaeanet runs: on which systems, and in a working directory that is there."""

import os
import sys

from gaeanet.errors import RequestError


def check_platform() -> None:
    """Refuses Windows, which lacks what runs are kept safe with: file locks, signals, forked workers.

    Raises:
        RequestError: This is Windows, or the working directory has been removed.
    """
    if sys.platform == "win32":
        raise RequestError("gaeanet runs on Linux and macOS; on Windows use WSL (https://aka.ms/wsl)")
    try:
        os.getcwd()
    except OSError:
        raise RequestError("the working directory is not there any more: cd to another") from None
