"""`gaeanet train` and `gaeanet search`. torch is imported only after the request has been checked."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gaeanet.cli.diagnose import diagnosed
from gaeanet.cli.parser import add_changes, add_command, as_name, as_path
from gaeanet.errors import RequestError
from gaeanet.runtime.imports import importing
from gaeanet.runtime.ranks import ranks

if TYPE_CHECKING:
    from gaeanet.config.experiment import Experiment
    from gaeanet.runs.local import LocalContext
    from gaeanet.runs.mirror import Mirror


def train(arguments: argparse.Namespace) -> None:
    """Trains a network."""
    _run(arguments, "train")


def search(arguments: argparse.Namespace) -> None:
    """Searches for a cell (GAEA, PC-DARTS, DARTS); the result is genotype.json in the run directory."""
    _run(arguments, "search")


def _run(arguments: argparse.Namespace, job: str) -> None:
    """Starts or resumes the run that a command line asks for."""
    experiment = _any_experiment(arguments, job)
    check_job(experiment, job, arguments.config)
    start(experiment, job, arguments.run_dir, resume=arguments.resume, continue_from=arguments.continue_from)


def start(
    experiment: Experiment,
    job: str,
    run_dir: Path | None = None,
    *,
    resume: bool = False,
    continue_from: Path | None = None,
) -> Path:
    """Starts or resumes a run of a job, `train` or `search`; returns its directory when it has ended.

    Args:
        run_dir: None is runs/<name of the experiment>.
        resume: Whether to resume an existing run, if there is one.
        continue_from: A checkpoint made elsewhere to resume from, while the run has none of its own.
    """
    with importing():
        from gaeanet.artifacts.directory import check_run_dir, checkpoint_to_continue, run_dir_of
        from gaeanet.artifacts.start import read_start
        from gaeanet.data.sources.open import open_source
        from gaeanet.runs.lock import owned
        from gaeanet.runs.trackers import factory_of

    here = ranks()
    for name in experiment.hyperparameters.track:
        factory_of(name)
    run_dir = run_dir or run_dir_of(experiment.name)
    elsewhere = checkpoint_to_continue(continue_from) if continue_from else None
    mirror = None
    with ExitStack() as owning:
        with _refused_together():
            source = open_source(experiment)
            if job == "search":
                from gaeanet.data.sources.splits import search_splits

                search_splits(source, experiment.hyperparameters)
            # Launchers restart a run with the same arguments: what is in its directory is then its own.
            if here.rank == 0 and not is_trial():
                resume = resume or here.restarted
                check_run_dir(run_dir, resume)
                owning.enter_context(owned(run_dir))
                check_run_dir(run_dir, resume)  # again: another may have run here between the first look and the lock
                if not resume:  # a resumed run does not need it any more
                    read_start(experiment.hyperparameters, source.catalog.classes)
                mirror = _mirror(experiment.hyperparameters.checkpoint_bucket, resume)

        with importing(torch=True):
            if job == "search":
                from gaeanet.search.job import search as run
            else:
                from gaeanet.training.train import train as run

        with diagnosed(), _context(run_dir, elsewhere, mirror) as context:
            run(experiment, source, context)
    return run_dir


@contextmanager
def _refused_together() -> Iterator[None]:
    """Lets the other processes of the run refuse what this one refuses."""
    try:
        yield
    except RequestError as error:
        if ranks().world_size > 1:
            with importing(torch=True):
                from gaeanet.runtime.processes import report_refusal

            report_refusal(str(error))
        raise


def is_trial() -> bool:
    """Whether a Determined cluster runs this process as part of a trial."""
    return os.environ.get("DET_TASK_TYPE") == "TRIAL"


def check_started_alone(command: str, why: str) -> None:
    """Raises `RequestError` where a launcher or a cluster started this command, which `why` forbids."""
    if is_trial() or ranks().init_method is not None:
        raise RequestError(f"{command}: {why}; start it directly, not with torchrun or on a cluster")


def _context(run_dir: Path, start: Path | None, mirror: Mirror | None) -> LocalContext:
    if is_trial():
        from gaeanet.runs.determined import DeterminedContext

        return DeterminedContext(run_dir, start)
    from gaeanet.runs.local import LocalContext

    return LocalContext(run_dir, mirror, start)


_EXAMPLES = {"train": "const", "search": "search"}


def check_job(experiment: Experiment, job: str, config: str | Path | None) -> None:
    """Checks that an experiment is for this job: `gaeanet search`, or any other command.

    Raises:
        RequestError: It is not.
    """
    searches = experiment.hyperparameters.search is not None
    name = config or "experiment"
    if searches and job != "search":
        raise RequestError(
            f"{name}: hyperparameters.search makes this a search: gaeanet search {name}, or set it to null"
        )
    if not searches and job == "search":
        raise RequestError(
            f"{name}: no hyperparameters.search, which a search needs: add it (search: {{}} is GAEA's), as in "
            f"the recipe {_EXAMPLES[job]}"
        )


def _any_experiment(arguments: argparse.Namespace, job: str) -> Experiment:
    with importing():
        from gaeanet.config.experiment import load_experiment

    if not is_trial():
        if arguments.config is None:
            raise RequestError(f"{job}: name the experiment file, for example gaeanet {job} {_EXAMPLES[job]}")
        init = [] if arguments.init is None else [f"hyperparameters.init_checkpoint={json.dumps(arguments.init)}"]
        track = [f"hyperparameters.track={json.dumps(arguments.track)}"] if arguments.track else []
        return load_experiment(arguments.config, [*arguments.set, *init, *track], arguments.data)
    if arguments.config or arguments.set or arguments.data or arguments.resume or arguments.run_dir:
        raise RequestError(
            "on a cluster the submitted file has all settings and trials resume by themselves: leave CONFIG, --data, "
            "--set, --run-dir and --resume out of entrypoint (det experiment create --config KEY=VALUE sets values)"
        )
    from gaeanet.runs.determined import read_experiment

    return read_experiment()


def _mirror(location: str | None, resume: bool) -> Mirror | None:
    """The run's mirror in a bucket, if it has one; refuses a bucket that holds another run."""
    if location is None:
        return None
    from gaeanet.runs.mirror import Mirror

    mirror = Mirror(location)
    if not resume and mirror.checkpoints():
        raise RequestError(
            f"{location} already holds a run: continue it with --resume, or change hyperparameters.checkpoint_bucket"
        )
    return mirror


def _add_run_options(command: argparse.ArgumentParser) -> None:
    """Adds the options of all commands that start or resume a run."""
    command.add_argument(
        "config",
        metavar="CONFIG",
        type=as_path,
        nargs="?",
        help="the experiment file, or a recipe such as const (not on a cluster, which provides it)",
    )
    add_changes(command)
    command.add_argument(
        "--run-dir",
        metavar="DIR",
        type=as_path,
        help="the run directory (default: runs/<name of the experiment>)",
    )
    command.add_argument(
        "--resume", action="store_true", help="continue the run in the run directory, or start it if there is none"
    )
    command.add_argument(
        "--continue-from",
        metavar="CHECKPOINT",
        type=as_path,
        help="resume exactly from a checkpoint made elsewhere, while the run has none of its own",
    )
    command.add_argument(
        "--track", metavar="TRACKER", action="append", help="report to a tracker too: tensorboard, or module:callable"
    )


def add_commands(commands: Any) -> None:
    """Adds these commands to the parser."""
    command = add_command(commands, "train", train, "train a network")
    _add_run_options(command)
    command.add_argument(
        "--init",
        metavar="CHECKPOINT",
        type=as_name,
        help="start from a trained network, in place of hyperparameters.init_checkpoint",
    )

    command = add_command(commands, "search", search, "search for a cell")
    command.set_defaults(init=None)
    _add_run_options(command)
