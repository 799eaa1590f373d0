"""Which systems gaeanet runs on."""

import sys

from gaeanet.errors import RequestError


def check_platform() -> None:
    """Refuses Windows, which lacks what runs are kept safe with: file locks, signals, forked workers.

    Raises:
        RequestError: This is Windows.
    """
    if sys.platform == "win32":
        raise RequestError("gaeanet runs on Linux and macOS; on Windows use WSL (https://aka.ms/wsl)")
