"""The processor cores that this process may use. Nothing here needs torch."""

import os


def usable_cores() -> int:
    """Those that the process is bound to, where the system tells; else the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
