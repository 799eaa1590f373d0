"""The command line. Nothing here imports torch before a request has been found good."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from gaeanet import __version__
from gaeanet.after_training import add_commands
from gaeanet.errors import GaeanetError, RequestError, RunError
from gaeanet.startup import importing, uncollected

if TYPE_CHECKING:
    from gaeanet.config import Experiment
    from gaeanet.context import LocalContext
    from gaeanet.mirror import Mirror


def train(arguments: argparse.Namespace) -> None:
    """Trains a network."""
    _run(arguments, "train")


def search(arguments: argparse.Namespace) -> None:
    """Searches for a cell (GAEA, PC-DARTS, DARTS); what it finds is in genotype.json of the run directory."""
    _run(arguments, "search")


def _run(arguments: argparse.Namespace, job: str) -> None:
    """Starts or continues a run: `train`, or `search`."""
    with importing():
        from gaeanet.data.sources import open_source
        from gaeanet.finetune import read_start
        from gaeanet.run_directory import check_run_dir, checkpoint_to_continue, run_dir_of
        from gaeanet.sinks import factory_of

    experiment = _experiment(arguments, job)
    for name in experiment.hyperparameters.track:
        factory_of(name)
    run_dir = arguments.run_dir or run_dir_of(experiment.name)
    start = checkpoint_to_continue(arguments.continue_from) if arguments.continue_from else None
    source = open_source(experiment)
    if job == "search":
        from gaeanet.search.images import image_shares

        image_shares(source, experiment.hyperparameters)
    # torchrun and clusters start failed processes again with the same arguments: what they then find is their own run.
    mirror = None
    if os.environ.get("RANK", "0") == "0" and not _is_trial():
        resume = arguments.resume or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        check_run_dir(run_dir, resume)
        if not resume:  # a run that goes on does not need it any more
            read_start(experiment.hyperparameters, source.catalog.classes)
        mirror = _mirror(experiment.hyperparameters.checkpoint_bucket, resume)

    with importing(torch=True):
        if job == "search":
            from gaeanet.search.job import search as run
        else:
            from gaeanet.train import train as run

    with _context(run_dir, start, mirror) as context:
        try:
            run(experiment, source, context)
        except (RuntimeError, OSError) as error:
            from gaeanet.failures import explained

            raise explained(error) or error from error


def _is_trial() -> bool:
    """Whether a Determined cluster runs this process as part of a trial."""
    return os.environ.get("DET_TASK_TYPE") == "TRIAL"


def _context(run_dir: Path, start: Path | None, mirror: Mirror | None) -> LocalContext:
    if _is_trial():
        from gaeanet.determined_context import DeterminedContext

        return DeterminedContext(run_dir, start)
    from gaeanet.context import LocalContext

    return LocalContext(run_dir, mirror, start)


_EXAMPLES = {"train": "const.yaml", "search": "search.yaml"}


def _experiment(arguments: argparse.Namespace, job: str) -> Experiment:
    """The experiment that the command line names, or the cluster has chosen."""
    experiment = _any_experiment(arguments, job)
    _check_job(experiment, job, arguments.config)
    return experiment


def _check_job(experiment: Experiment, job: str, config: Path | None) -> None:
    """An experiment is one for `gaeanet search` or for all others.

    Raises:
        RequestError: It is not one for this job.
    """
    searches = experiment.hyperparameters.search is not None
    where = config or "experiment"
    if searches and job != "search":
        raise RequestError(
            f"{where}: hyperparameters.search makes this a search: gaeanet search {where}, or set it to null"
        )
    if not searches and job == "search":
        raise RequestError(
            f"{where}: no hyperparameters.search, which says how to search: add it (search: {{}} is GAEA's), as in "
            f"{_EXAMPLES[job]}"
        )


def _any_experiment(arguments: argparse.Namespace, job: str) -> Experiment:
    with importing():
        from gaeanet.config import load_experiment

    if not _is_trial():
        if arguments.config is None:
            raise RequestError(f"{job}: name the experiment file, for example gaeanet {job} {_EXAMPLES[job]}")
        init = [] if arguments.init is None else [f"hyperparameters.init_checkpoint={json.dumps(arguments.init)}"]
        track = [f"hyperparameters.track={json.dumps(arguments.track)}"] if arguments.track else []
        return load_experiment(arguments.config, [*arguments.set, *init, *track], arguments.data)
    if arguments.config or arguments.set or arguments.data or arguments.resume or arguments.run_dir:
        raise RequestError(
            "on a cluster the submitted file says everything and trials resume by themselves: leave CONFIG, --data, "
            "--set, --run-dir and --resume out of entrypoint (det experiment create --config KEY=VALUE sets values)"
        )
    from gaeanet.determined_context import read_experiment

    return read_experiment()


def _mirror(location: str | None, resume: bool) -> Mirror | None:
    """The bucket that the run is copied to, if there is to be one and it holds no other run."""
    if location is None:
        return None
    from gaeanet.mirror import Mirror

    mirror = Mirror(location)
    if not resume and mirror.checkpoints():
        raise RequestError(
            f"{location} already holds a run: continue it with --resume, or change hyperparameters.checkpoint_bucket"
        )
    return mirror


def bench(arguments: argparse.Namespace) -> None:
    """Measures each stage of training on this machine with these images: what limits it, and how long the run takes."""
    with importing():
        from gaeanet.config import load_experiment
        from gaeanet.data.sources import open_source

    if _is_trial() or "WORLD_SIZE" in os.environ:
        raise RequestError("bench: measures one process; start it by itself, not with torchrun or on a cluster")
    if not arguments.seconds >= 1:
        raise RequestError(f"--seconds {arguments.seconds:g}: give it a second or more")
    experiment = load_experiment(arguments.config, arguments.set, arguments.data)
    _check_job(experiment, "bench", arguments.config)
    began = time.perf_counter()
    source = open_source(experiment)
    listing = time.perf_counter() - began

    with importing(torch=True):
        from rich.console import Console

        from gaeanet.bench import Bench
        from gaeanet.bench_report import facts_of, to_json, to_text
        from gaeanet.failures import explained
        from gaeanet.run_directory import run_dir_of

    run_dir = run_dir_of(experiment.name).absolute()
    beside = next(parent for parent in run_dir.parents if parent.is_dir())  # the run's own file system
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left behind then either
    try:
        with Console(stderr=True).status("", refresh_per_second=2) as status:
            measuring = Bench(experiment, source, arguments.seconds, lambda what: status.update(f"measuring {what}"))
            findings = measuring.run(beside)
    except (RuntimeError, OSError) as error:
        raise explained(error) or error from error
    finally:
        signal.signal(signal.SIGTERM, previous)
    findings.seconds["listing"] = listing
    facts = facts_of(experiment, source, findings)
    print(to_json(facts) if arguments.json else to_text(facts))


def plot(arguments: argparse.Namespace) -> None:
    """Draws the curves of one run, or of several together, from their logs."""
    with importing():
        from gaeanet.report import draw_curves
        from gaeanet.run_directory import CURVE, read_run

    runs: list[Path] = arguments.runs
    logs = {str(run) if len(runs) > 1 else run.resolve().name: read_run(run) for run in runs}
    output = arguments.output or (runs[0] / CURVE if len(runs) == 1 else Path("curves.png"))
    draw_curves(logs, output)
    print(f"wrote {output}")


def import_(arguments: argparse.Namespace) -> None:
    """Makes a checkpoint from a state dict of the DARTS family (DARTS, P-DARTS, PC-DARTS; .pt, .pth, .safetensors)."""
    from gaeanet.genotypes import read_genotype

    if arguments.genotype:
        read_genotype(arguments.genotype)

    with importing(torch=True):
        from gaeanet.weights_import import import_weights

    hp = import_weights(arguments.file, arguments.checkpoint, arguments.genotype, arguments.activation)
    print(
        f"wrote {arguments.checkpoint}: cell {hp.cell.fingerprint}, {hp.layers} cells, {hp.init_channels} channels, "
        f"{hp.activation}, {hp.num_classes} classes, {hp.stem} stem{', squeeze-excite' * hp.do_SE}"
        f"{', auxiliary tower' * hp.auxiliary}"
    )


def prepare(arguments: argparse.Namespace) -> None:
    """Turns ImageNet's archives, a folder tree or a bucket into class folders or shards; stopped, it continues."""
    with importing():
        from gaeanet.prepare import prepare as run
        from gaeanet.verify import verify

    if arguments.destination is None and not arguments.verify:
        raise RequestError("prepare: give a DESTINATION to write to, or --verify to check SOURCE")
    if arguments.destination is None and arguments.shards:
        raise RequestError("prepare: --shards needs a DESTINATION to write to")
    if arguments.destination is not None:
        run(arguments.source, arguments.destination, shards=arguments.shards)
    if arguments.verify:
        verify(str(arguments.destination or arguments.source))


def describe(arguments: argparse.Namespace) -> None:
    """Says what a network is and costs and explains its cells; of two, how they differ."""
    with importing():
        from gaeanet.describe import compare, read_subject
        from gaeanet.describe import describe as describe_one

    references: list[str] = arguments.networks or ["gaea-imagenet"]
    if len(references) > 2:
        raise RequestError(f"describe takes one network or two to compare, not {len(references)}")
    if arguments.draw:
        if len(references) == 2:
            raise RequestError("--draw draws one network's cells: name one network")
        from gaeanet.drawing import write_drawing

        subject = read_subject(references[0])
        write_drawing(subject.genotype, subject.name, arguments.draw)
        if not arguments.json:
            print(f"wrote {arguments.draw}")
            return
    if len(references) == 2:
        print(compare(references[0], references[1], arguments.image_size, arguments.json))
    else:
        print(describe_one(references[0], arguments.image_size, arguments.json))


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are errors like all others: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="gaeanet", description="Train the ImageNet network found by GAEA and its relatives.")
    parser.add_argument("--version", action="version", version=f"gaeanet {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    command = commands.add_parser("train", help="train a network", description=train.__doc__)
    command.set_defaults(run=train)
    _add_run_options(command)
    command.add_argument(
        "--init", metavar="CHECKPOINT", help="start from a trained network, in place of hyperparameters.init_checkpoint"
    )

    command = commands.add_parser("search", help="search for a cell", description=search.__doc__)
    command.set_defaults(run=search, init=None)
    _add_run_options(command)

    command = commands.add_parser("bench", help="measure what limits the speed here", description=bench.__doc__)
    command.set_defaults(run=bench)
    command.add_argument("config", metavar="CONFIG", type=Path, help="the experiment file")
    _add_changes(command)
    command.add_argument(
        "--seconds", metavar="N", type=float, default=60.0, help="about how long it may take (default: 60)"
    )
    command.add_argument("--json", action="store_true", help="print JSON")

    command = commands.add_parser("plot", help="draw a run's curves", description=plot.__doc__)
    command.set_defaults(run=plot)
    command.add_argument("runs", metavar="RUN_DIR", type=Path, nargs="+", help="run directories")
    command.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="the picture (default: curve.png in the only run directory)"
    )

    command = commands.add_parser("import", help="take over weights from elsewhere", description=import_.__doc__)
    command.set_defaults(run=import_)
    command.add_argument("file", metavar="FILE", type=Path, help="the file of weights")
    command.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="the checkpoint directory to make")
    command.add_argument("--genotype", help="the cell, where names and shapes do not tell")
    command.add_argument(
        "--activation",
        choices=("relu", "swish", "hswish"),
        default="relu",
        help="not to be seen in weights (default: relu)",
    )

    command = commands.add_parser("prepare", help="bring images into shape", description=prepare.__doc__)
    command.set_defaults(run=prepare)
    command.add_argument("source", metavar="SOURCE", help="directory of archives, folders or shards, or a bucket's URL")
    command.add_argument("destination", metavar="DESTINATION", type=Path, nargs="?", help="directory to write to")
    command.add_argument("--shards", action="store_true", help="write tar shards with an index, not class folders")
    command.add_argument("--verify", action="store_true", help="decode every image and report what is odd")

    command = commands.add_parser("describe", help="explain a network, or compare two", description=describe.__doc__)
    command.set_defaults(run=describe)
    command.add_argument(
        "networks",
        metavar="NETWORK",
        nargs="*",
        help="a cell's name, a genotype file, a Genotype(...) text, an experiment file, a run or a checkpoint "
        "(default: gaea-imagenet); two are compared",
    )
    command.add_argument(
        "--image-size", metavar="N", type=int, help="count at this size (default: the experiment's; 224 for a cell)"
    )
    command.add_argument("--draw", metavar="FILE.svg", type=Path, help="draw both cells, instead of the text")
    command.add_argument("--json", action="store_true", help="print JSON")

    add_commands(commands)
    return parser


def _add_run_options(command: argparse.ArgumentParser) -> None:
    """Adds what all commands that start or continue a run understand."""
    command.add_argument(
        "config", metavar="CONFIG", type=Path, nargs="?", help="the experiment file (not on a cluster, which has it)"
    )
    _add_changes(command)
    command.add_argument(
        "--run-dir", metavar="DIR", type=Path, help="where the run is kept (default: runs/<name of the experiment>)"
    )
    command.add_argument(
        "--resume", action="store_true", help="continue the run in the run directory, or start it if there is none"
    )
    command.add_argument(
        "--continue-from",
        metavar="CHECKPOINT",
        type=Path,
        help="go on exactly from a checkpoint made elsewhere, while the run has none of its own",
    )
    command.add_argument(
        "--track", metavar="TRACKER", action="append", help="tell another tracker too: tensorboard, or module:callable"
    )


def _add_changes(command: argparse.ArgumentParser) -> None:
    """Adds the options by which a command line changes an experiment file."""
    command.add_argument("--data", metavar="LOCATION", help="where the images are, in place of data.location")
    command.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="set one value, for example hyperparameters.epochs=5; may be repeated",
    )


_BRIEF = (describe, plot, import_)
"""Commands that end before there is any garbage worth looking for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code; every refusal and failure is one line on standard error."""
    try:
        parsed = _parser().parse_args(arguments)
        with uncollected() if parsed.run in _BRIEF else nullcontext():
            parsed.run(parsed)
        sys.stdout.flush()
    except GaeanetError as error:
        return _fail(error)
    except BrokenPipeError:  # the reader of a pipe (head, less) has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("gaeanet: interrupted; a run continues from its last checkpoint with --resume", file=sys.stderr)
        return 130
    return 0


def _fail(error: GaeanetError) -> int:
    """Says what went wrong; of several processes that refuse or stop alike, the first on each machine speaks."""
    rank = os.environ.get("RANK")
    if not isinstance(error, RunError) and os.environ.get("LOCAL_RANK", "0") != "0":
        if error.exit_code:
            time.sleep(3)  # the launcher ends all when one has failed: let the first one speak before
    else:
        speaker = f"gaeanet, process {rank}" if rank and os.environ.get("WORLD_SIZE") != "1" else "gaeanet"
        # By this word a cluster's log_policies know what would fail again, however often it was started.
        refused = "refused: " if isinstance(error, RequestError) and _is_trial() else ""
        print(f"{speaker}: {refused}{' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
