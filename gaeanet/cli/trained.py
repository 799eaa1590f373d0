"""The commands that use a trained network. torch is imported only after the request has been checked."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gaeanet.cli.diagnose import diagnosed
from gaeanet.cli.parser import add_command, as_path, at_most
from gaeanet.errors import RequestError, did_you_mean
from gaeanet.runtime.files import exists
from gaeanet.runtime.imports import importing

if TYPE_CHECKING:
    from gaeanet.runtime.processes import Processes

_CHECKPOINT = (
    "a checkpoint directory, a run directory (its best checkpoint), an exported directory or a file of weights"
)


_WEIGHTS = "which weights (default: those that did better in the checkpoint's validation)"

FORMS = ("timm", "onnx", "torch-export")
"""The formats of an export."""


@contextmanager
def joined() -> Iterator[Processes]:
    """Joins the processes of this command; reports failures of the environment in one line."""
    with importing(torch=True):
        from gaeanet.runtime.processes import Processes

    with diagnosed():
        processes = Processes()
        try:
            yield processes
        finally:
            processes.leave()


def evaluate(arguments: argparse.Namespace) -> None:
    """Evaluates a trained network on validation images: accuracies with 95 % intervals, loss, calibration.

    Without options the numbers equal those of the run's log, on the same device and with as many threads; for a run
    that held images out of its training split, with --minival.
    """
    with importing():
        from gaeanet.artifacts.find import find
        from gaeanet.data.sources.evaluation import open_evaluation_data

    trained = find(arguments.checkpoint)
    hp = trained.hyperparameters
    if arguments.image_size is not None and arguments.image_size < 32:
        raise RequestError(f"--image-size {arguments.image_size}: the network needs 32 pixels or more")
    if arguments.crop is not None and not 0 < arguments.crop <= 1:
        raise RequestError(
            f"--crop {arguments.crop:g}: the fraction of the image that is shown, more than 0 and at most 1"
        )
    if arguments.batch_size is not None and arguments.batch_size < 1:
        raise RequestError(f"--batch-size {arguments.batch_size}: must be 1 or more")
    kinds = trained.kinds if arguments.weights == "both" else [trained.kind(arguments.weights)]
    source, notes = open_evaluation_data(trained.state, hp, arguments.data, arguments.assume_classes, arguments.minival)
    other = None
    if arguments.compare is not None:
        other = find(arguments.compare)
        theirs = list(other.classes or trained.classes or range(other.hyperparameters.num_classes))
        if theirs != list(trained.classes or theirs) or other.hyperparameters.num_classes != hp.num_classes:
            raise RequestError(
                f"{arguments.compare}: has other classes than {arguments.checkpoint}: nothing to compare"
            )

    with importing(torch=True):
        from gaeanet.evaluation.score import Options, evaluate_trained, to_json, to_text

    options = Options(kinds, arguments.image_size, arguments.crop, arguments.batch_size, trained.workers)
    with joined() as processes:
        facts = evaluate_trained(
            trained, source, notes, options, processes, other=other, with_classes=arguments.per_class
        )
        if processes.is_first:
            print(to_json(facts) if arguments.json else "\n".join(to_text(facts, kinds)))


def predict(arguments: argparse.Namespace) -> None:
    """Classifies images with a trained network: the most probable classes of each."""
    with importing():
        from gaeanet.artifacts.find import find

    trained = find(arguments.checkpoint)
    kind = trained.kind(arguments.weights)
    check_images(arguments.images, arguments.top, arguments.batch_size)

    with importing(torch=True):
        from gaeanet.evaluation.predict import images_of, show
        from gaeanet.evaluation.predict import predict as run

    rows = run(trained, kind, images_of(arguments.images), batch=arguments.batch_size, top=arguments.top)
    show(rows, arguments.json)


def check_images(images: Sequence[str], top: int, batch_size: int) -> None:
    """Raises `RequestError` where an input of a prediction is invalid."""
    if top < 1 or batch_size < 1:
        raise RequestError("--top and --batch-size must be 1 or more")
    for path in images:
        if path != "-" and not exists(Path(path)):
            raise RequestError(f"{path}: no such file or directory: name images, directories of images, or -")


def export(arguments: argparse.Namespace) -> None:
    """Exports a trained network to another format, and checks the outputs against the network's."""
    with importing():
        from gaeanet.artifacts.find import find

    trained = find(arguments.checkpoint)
    kind = trained.kind(arguments.weights)
    check_export(arguments.destination, arguments.format, arguments.fold_batchnorm)

    with importing(torch=True):
        from gaeanet.artifacts.export import export as run

    for message in run(trained, arguments.destination, arguments.format, kind, arguments.fold_batchnorm):
        print(message)


def check_export(destination: Path, form: str, fold: bool) -> None:
    """Raises `RequestError` where such an export cannot be written."""
    if exists(destination):
        raise RequestError(f"{destination} exists already: name a new destination")
    if form not in FORMS:
        raise RequestError(f"{form}: not an export format; {did_you_mean(form, FORMS)}")
    if form == "timm" and fold:
        raise RequestError("--fold-batchnorm changes the layers, which timm builds itself: use onnx or torch-export")
    if form == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            if importlib.util.find_spec(name) is None:
                raise RequestError(f"--format onnx needs the package {name}: pip install 'gaeanet[export]'")


def report(arguments: argparse.Namespace) -> None:
    """Writes a self-contained page of a run, or of several to compare: curves, images, confusions, recipe, cells."""
    with importing():
        from gaeanet.artifacts.directory import REPORT, read_run

    runs: list[Path] = arguments.runs
    for run in runs:
        read_run(run)
    output = arguments.output or (runs[0] / REPORT if len(runs) == 1 else Path(REPORT))

    with importing(torch=True):
        from gaeanet.report.gather import gather, write_page

    with joined() as processes:
        if processes.world_size > 1:
            raise RequestError("report: one process makes it; start it without torchrun or srun")
        names = [str(run) if len(runs) > 1 else run.resolve().name for run in runs]
        evaluating = None if arguments.no_images else processes
        facts = [
            gather(run, name, images=not arguments.no_images, processes=evaluating) for run, name in zip(runs, names)
        ]
        write_page(facts, output)
    print(f"wrote {output}")


def plot(arguments: argparse.Namespace) -> None:
    """Draws the curves of one run, or of several together, from their logs."""
    with importing():
        from gaeanet.artifacts.directory import CURVE, read_run
        from gaeanet.report.curves import draw_curves

    runs: list[Path] = arguments.runs
    logs = {str(run) if len(runs) > 1 else run.resolve().name: read_run(run) for run in runs}
    output = arguments.output or (runs[0] / CURVE if len(runs) == 1 else Path("curves.png"))
    draw_curves(logs, output)
    print(f"wrote {output}")


def add_commands(commands: Any) -> None:
    """Adds these commands to the parser."""
    command = add_command(commands, "plot", plot, "draw a run's curves", brief=True)
    command.add_argument("runs", metavar="RUN_DIR", type=as_path, nargs="+", help="run directories")
    command.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=as_path,
        help="the picture (default: curve.png in the only run directory)",
    )

    command = add_command(commands, "evaluate", evaluate, "evaluate a trained network on validation images")
    command.add_argument("checkpoint", metavar="CHECKPOINT", type=as_path, help=_CHECKPOINT)
    command.add_argument("--data", metavar="LOCATION", help="where the images are (default: the run's own data)")
    command.add_argument(
        "--weights", choices=("raw", "ema", "both"), default="both", help="which weights (default: both, side by side)"
    )
    command.add_argument("--image-size", metavar="N", type=at_most(4096), help="another side of the crop in pixels")
    command.add_argument(
        "--crop", metavar="FRACTION", type=float, help="another fraction of the resized image to show (default: 0.875)"
    )
    command.add_argument(
        "--batch-size", metavar="N", type=at_most(1_000_000), help="images of a batch (default: as in the run)"
    )
    command.add_argument("--compare", metavar="OTHER", type=as_path, help="test another network on the same images")
    command.add_argument("--per-class", action="store_true", help="a table of classes, worst first")
    command.add_argument(
        "--assume-classes", action="store_true", help="for weights without a class table: take the data's, sorted"
    )
    command.add_argument(
        "--minival", action="store_true", help="evaluate on the training images that the run held out, as its log does"
    )
    command.add_argument("--json", action="store_true", help="print JSON, named as in the log")

    command = add_command(commands, "report", report, "write a page of a run, or of several")
    command.add_argument("runs", metavar="RUN_DIR", type=as_path, nargs="+", help="run directories")
    command.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=as_path,
        help="the page (default: report.html in the only run directory)",
    )
    command.add_argument("--no-images", action="store_true", help="from the logs alone, without reading images")

    command = add_command(commands, "predict", predict, "classify images")
    command.add_argument("checkpoint", metavar="CHECKPOINT", type=as_path, help=_CHECKPOINT)
    command.add_argument(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="images, directories, or - (an image or names of files on standard input)",
    )
    command.add_argument("--weights", choices=("raw", "ema"), help=_WEIGHTS)
    command.add_argument("--top", metavar="N", type=at_most(1_000_000), default=5, help="classes an image (default: 5)")
    command.add_argument(
        "--batch-size", metavar="N", type=at_most(1_000_000), default=16, help="images of a batch (default: 16)"
    )
    command.add_argument("--json", action="store_true", help="print a JSON object a line")

    command = add_command(commands, "export", export, "write a trained network for other tools")
    command.add_argument("checkpoint", metavar="CHECKPOINT", type=as_path, help=_CHECKPOINT)
    command.add_argument(
        "destination", metavar="DESTINATION", type=as_path, help="directory (or .onnx, .pt2 file) to write"
    )
    command.add_argument("--format", choices=FORMS, default="timm", help="the format (default: timm)")
    command.add_argument("--weights", choices=("raw", "ema"), help=_WEIGHTS)
    command.add_argument("--fold-batchnorm", action="store_true", help="fold batch norm into the convolutions")
