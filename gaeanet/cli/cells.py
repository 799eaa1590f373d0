"""`gaeanet tournament` and `gaeanet compare`: trainings that choose a cell, and that show whether it beats chance."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gaeanet.cli.parser import add_changes, add_command, as_path, at_most
from gaeanet.cli.run import check_job, check_started_alone
from gaeanet.errors import RequestError, reason
from gaeanet.runtime.host import usable_cores
from gaeanet.runtime.imports import importing

if TYPE_CHECKING:
    from gaeanet.config.experiment import Experiment
    from gaeanet.search.cell_trial import Train

STARTS_ITSELF = "starts trainings itself"

HELD_OUT = 0.1
"""Fraction of the training images that a tournament validates on, unless `data.minival` says otherwise."""


def tournament(arguments: argparse.Namespace) -> None:
    """Chooses a cell by short trainings on held-out images: many cells at first, then fewer for longer.

    Candidates are the genotypes and searches that are named, and cells drawn from those searches, or random ones where
    none is named. The last rung trains for as many epochs as the experiment file says. Results are genotype.json and
    tournament.json in the run directory; the same command continues what was interrupted.
    """
    check_started_alone("tournament", STARTS_ITSELF)
    experiment = _experiment(arguments, "tournament")
    if experiment.data.minival is None:
        arguments.set = [*arguments.set, f"data.minival={HELD_OUT:g}"]
        experiment = _experiment(arguments, "tournament")
    limit = arguments.multiply_adds_limit
    if limit is not None and not 0 < limit < float("inf"):
        raise RequestError(f"--multiply-adds-limit {limit:g}: millions, more than 0")
    if arguments.bred and arguments.cells - arguments.bred < 2:
        raise RequestError(f"--bred {arguments.bred}: leaves less than 2 of {arguments.cells} cells to breed from")
    _check_data(experiment)

    with importing(torch=True):
        from gaeanet.artifacts.directory import GENOTYPE
        from gaeanet.search.tournament import entrants, hold

    most = limit * 1e6 if limit else None
    cells = entrants(arguments.candidates, arguments.cells - arguments.bred, experiment.hyperparameters.seed, most)
    directory = arguments.run_dir or _directory(experiment, "tournament")
    with _training(arguments, directory) as train:
        winner = hold(experiment, cells, directory, train, _print, bred=arguments.bred, most=most)
    genotype = directory / GENOTYPE
    print(f"found: {winner.to_text()}")
    print(f"train it: gaeanet train {arguments.config} --set hyperparameters.genotype={genotype}")
    print(f"is it better than chance? gaeanet compare {genotype} {arguments.config}")


def compare(arguments: argparse.Namespace) -> None:
    """Says whether a cell is better than chance: trains it and random cells of its cost alike, and compares.

    Results are report.html and comparison.json in the run directory. The same command continues what was interrupted,
    and one with more cells or seeds trains only what is new.
    """
    check_started_alone("compare", STARTS_ITSELF)
    if arguments.random < 2 or arguments.seeds < 1:
        raise RequestError("--random must be 2 or more, and --seeds 1 or more")
    if not 0 < arguments.within < 1:
        raise RequestError(f"--within {arguments.within:g}: a fraction, more than 0 and less than 1")
    from gaeanet.cells.read import read_genotype
    from gaeanet.cells.space import check_in_space

    found = read_genotype(arguments.genotype)
    check_in_space(found, arguments.genotype)
    experiment = _experiment(arguments, "compare")
    _check_data(experiment)

    with importing(torch=True):
        from gaeanet.artifacts.directory import REPORT
        from gaeanet.search.chance import against_chance

    directory = arguments.run_dir or _directory(experiment, "compare")
    with _training(arguments, directory) as train:
        result = against_chance(
            experiment,
            found,
            directory,
            train,
            _print,
            cells=arguments.random,
            seeds=arguments.seeds,
            within=arguments.within,
        )
    print(result.sentence(arguments.random))
    print(f"wrote {directory / REPORT}")


def _experiment(arguments: argparse.Namespace, command: str) -> Experiment:
    with importing():
        from gaeanet.config.experiment import load_experiment

    experiment = load_experiment(arguments.config, arguments.set, arguments.data)
    check_job(experiment, command, arguments.config)
    return experiment


def _check_data(experiment: Experiment) -> None:
    """Refuses what each training would refuse, before any starts."""
    with importing():
        from gaeanet.data.sources.open import open_source

    open_source(experiment)


def _directory(experiment: Experiment, command: str) -> Path:
    from gaeanet.artifacts.directory import run_dir_of

    return run_dir_of(f"{experiment.name}-{command}")


@contextmanager
def _training(arguments: argparse.Namespace, directory: Path) -> Iterator[Train]:
    """What trains the trials of a command, which owns the directory as long."""
    import torch

    from gaeanet.runs.lock import owned
    from gaeanet.runs.trials import train_all

    gpus = torch.cuda.device_count()
    jobs = arguments.jobs or gpus or usable_cores()
    if jobs < 1:
        raise RequestError(f"--jobs {jobs}: must be 1 or more")
    common = [word for change in arguments.set for word in ("--set", change)]
    common += ["--data", arguments.data] if arguments.data else []
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{directory}: cannot be made: {reason(error)}; name another with --run-dir") from None
    with owned(directory):
        yield lambda trials, before, after: train_all(
            arguments.config, common, trials, directory, jobs, gpus, before=before, after=after
        )


def _print(text: str) -> None:
    print(text, flush=True)


def _add_options(command: argparse.ArgumentParser, name: str) -> None:
    add_changes(command)
    command.add_argument(
        "--run-dir", metavar="DIR", type=as_path, help=f"where results are kept (default: runs/<experiment>-{name})"
    )
    command.add_argument(
        "--jobs",
        metavar="N",
        type=at_most(1024),
        default=0,
        help="trainings at a time (default: one for each GPU, or for each core where there is none)",
    )


def add_commands(commands: Any) -> None:
    """Adds these commands to the parser."""
    command = add_command(commands, "tournament", tournament, "choose among cells by short trainings")
    command.add_argument("config", metavar="CONFIG", type=as_path, help="the experiment file that trains the cells")
    command.add_argument(
        "candidates",
        metavar="CANDIDATE",
        nargs="*",
        help="a cell's name, a genotype file, a Genotype(...) text, or the run directory of a search",
    )
    command.add_argument(
        "--cells", metavar="N", type=at_most(10_000), default=27, help="how many cells in all (default: 27)"
    )
    command.add_argument(
        "--bred",
        metavar="N",
        type=at_most(10_000),
        default=0,
        help="how many of them are bred from the best so far (default: 0)",
    )
    command.add_argument(
        "--multiply-adds-limit",
        metavar="MILLIONS",
        type=float,
        help="of the drawn cells' ImageNet network (48 channels, 14 cells, 224 px)",
    )
    _add_options(command, "tournament")

    command = add_command(commands, "compare", compare, "is a cell better than chance?")
    command.add_argument("genotype", metavar="GENOTYPE", help="a cell's name, a genotype file or a Genotype(...) text")
    command.add_argument("config", metavar="CONFIG", type=as_path, help="the experiment file that trains the cells")
    command.add_argument(
        "--random", metavar="N", type=at_most(10_000), default=10, help="how many random cells (default: 10)"
    )
    command.add_argument(
        "--seeds", metavar="N", type=at_most(1_000), default=1, help="trainings of the cell itself (default: 1)"
    )
    command.add_argument(
        "--within",
        metavar="FRACTION",
        type=float,
        default=0.05,
        help="how far the random cells' multiply-adds may be from the cell's (default: 0.05)",
    )
    _add_options(command, "compare")
