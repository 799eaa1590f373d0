"""The command `gaeanet`, with a second for each step as long as there is a file `held` in its directory.

So there is time to do something to a run, however fast the machine is.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from gaeanet.cli.main import main
from gaeanet.training import recorded

step = recorded.step


def held_step(*arguments: Any) -> None:
    time.sleep(os.path.exists("held"))
    step(*arguments)


if __name__ == "__main__":
    recorded.step = held_step
    sys.exit(main())
