"""The commands that use a trained network. Nothing here imports torch before a request has been found good."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gaeanet.errors import RequestError

if TYPE_CHECKING:
    from gaeanet.processes import Processes

_CHECKPOINT = (
    "a checkpoint directory, a run directory (its best checkpoint), an exported directory or a file of weights"
)


@contextmanager
def _joined() -> Iterator[Processes]:
    """The processes of this command; what fails in the machine meanwhile is told in one line."""
    from gaeanet.failures import explained
    from gaeanet.processes import Processes

    processes = Processes()
    try:
        yield processes
    except (RuntimeError, OSError) as error:
        raise explained(error) or error from error
    finally:
        processes.leave()


def evaluate(arguments: argparse.Namespace) -> None:
    """Counts a trained network on validation images: accuracies with 95 % intervals, loss, calibration.

    Without options the numbers are those of the run's log, to the last digit, on the same device.
    """
    from gaeanet.data.evaluation import open_evaluation_data
    from gaeanet.trained import find

    trained = find(arguments.checkpoint)
    hp = trained.hyperparameters
    if arguments.image_size is not None and arguments.image_size < 32:
        raise RequestError(f"--image-size {arguments.image_size}: the network needs 32 pixels or more")
    if arguments.crop is not None and not 0 < arguments.crop <= 1:
        raise RequestError(
            f"--crop {arguments.crop:g}: the share of the image that is shown, more than 0 and at most 1"
        )
    if arguments.batch_size is not None and arguments.batch_size < 1:
        raise RequestError(f"--batch-size {arguments.batch_size}: must be 1 or more")
    kinds = trained.kinds if arguments.weights == "both" else [trained.kind(arguments.weights)]
    source, notes = open_evaluation_data(trained.state, hp, arguments.data, arguments.assume_classes)
    other = None
    if arguments.compare is not None:
        other = find(arguments.compare)
        theirs = list(other.classes or trained.classes or range(other.hyperparameters.num_classes))
        if theirs != list(trained.classes or theirs) or other.hyperparameters.num_classes != hp.num_classes:
            raise RequestError(
                f"{arguments.compare}: knows other classes than {arguments.checkpoint}: nothing to compare"
            )

    from gaeanet.scoring import Options, evaluate_trained, to_json, to_text

    settings = (trained.state.get("data") or {}).get("settings") or {}
    options = Options(
        kinds, arguments.image_size, arguments.crop, arguments.batch_size, settings.get("num_workers_val", 2)
    )
    with _joined() as processes:
        facts = evaluate_trained(
            trained, source, notes, options, processes, other=other, with_classes=arguments.per_class
        )
        if processes.is_first:
            print(to_json(facts) if arguments.json else "\n".join(to_text(facts, kinds)))


def add_commands(commands: Any) -> None:
    """Adds these commands to the command line's parser."""

    def add(name: str, run: Any, help_: str) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = commands.add_parser(name, help=help_, description=run.__doc__)
        command.set_defaults(run=run)
        return command

    command = add("evaluate", evaluate, "count a trained network on validation images")
    command.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help=_CHECKPOINT)
    command.add_argument("--data", metavar="LOCATION", help="where the images are (default: the run's own data)")
    command.add_argument(
        "--weights", choices=("raw", "ema", "both"), default="both", help="which weights (default: both, side by side)"
    )
    command.add_argument("--image-size", metavar="N", type=int, help="another side of the crop in pixels")
    command.add_argument(
        "--crop", metavar="SHARE", type=float, help="another share of the resized image to show (default: 0.875)"
    )
    command.add_argument("--batch-size", metavar="N", type=int, help="images at once (default: as in the run)")
    command.add_argument("--compare", metavar="OTHER", type=Path, help="test another network on the same images")
    command.add_argument("--per-class", action="store_true", help="a table of classes, worst first")
    command.add_argument(
        "--assume-classes", action="store_true", help="for weights without a class table: take the data's, sorted"
    )
    command.add_argument("--json", action="store_true", help="print JSON, named as in the log")
