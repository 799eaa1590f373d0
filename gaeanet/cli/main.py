"""The command line: commands and exit codes. torch is imported only after the request has been checked."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext

from gaeanet import __version__
from gaeanet.cli import bench, cells, data, networks, run, trained
from gaeanet.cli.parser import Parser
from gaeanet.cli.platform import check_platform
from gaeanet.cli.run import is_trial
from gaeanet.errors import GaeanetError, RequestError, RunError, reason
from gaeanet.runtime.host import shorten_temporary_directory
from gaeanet.runtime.imports import uncollected
from gaeanet.runtime.names import shown
from gaeanet.runtime.output import open_standard_streams
from gaeanet.runtime.ranks import Ranks, ranks


def _parser() -> Parser:
    parser = Parser(prog="gaeanet", description="Train the ImageNet network found by GAEA and its relatives.")
    parser.add_argument("--version", action="version", version=f"gaeanet {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for group in (run, cells, bench, data, networks, trained):
        group.add_commands(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code; every refusal and failure is one line on standard error."""
    open_standard_streams()
    try:
        check_platform()
        parsed = _parser().parse_args(arguments)
        shorten_temporary_directory()
        with uncollected() if parsed.brief else nullcontext():
            parsed.run(parsed)
        sys.stdout.flush()
    except GaeanetError as error:
        return _fail(error)
    except PermissionError as error:  # wherever it shows: whose file it is helps, a traceback does not
        return _fail(RunError(f"{error.filename or 'a file'}: {reason(error)}"))
    except BrokenPipeError:  # the reader of a pipe (head, less) has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("gaeanet: interrupted; a run continues from its last checkpoint with --resume", file=sys.stderr)
        return 130
    return 0


def _fail(error: GaeanetError) -> int:
    """Prints an error; where several processes refuse or stop alike, only the first on each machine prints."""
    try:
        here = ranks()
    except RequestError:  # that is what is being reported
        here = Ranks()
    if not isinstance(error, RunError) and here.local_rank != 0:
        if error.exit_code:
            time.sleep(3)  # the launcher ends all when one has failed: let the first one print before
    else:
        prefix = f"gaeanet, process {here.rank}" if here.world_size > 1 else "gaeanet"
        # A cluster's log_policies match this word, to not restart a trial that would fail again.
        refused = "refused: " if isinstance(error, RequestError) and is_trial() else ""
        print(f"{prefix}: {refused}{shown(' '.join(str(error).split()))}", file=sys.stderr, flush=True)
    return error.exit_code
