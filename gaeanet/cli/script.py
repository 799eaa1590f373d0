"""What `gaeanet` offers to scripts: its commands as functions, exported by the package itself.

They refuse what the commands refuse, with the same messages. Nothing here imports torch before a request has been found
good.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from gaeanet.artifacts.find import Trained, find
from gaeanet.cli import run
from gaeanet.cli.platform import check_platform
from gaeanet.cli.trained import check_export, check_images, joined
from gaeanet.config.experiment import Experiment, load_experiment
from gaeanet.data.sources.evaluation import open_evaluation_data
from gaeanet.errors import RequestError
from gaeanet.runtime.imports import importing

AnyPath = str | os.PathLike[str]
Weights = Literal["raw", "ema"]


def train(
    config: AnyPath | Experiment,
    *,
    overrides: Sequence[str] = (),
    data: str | None = None,
    run_dir: AnyPath | None = None,
    resume: bool = False,
) -> Path:
    """Trains a network, as `gaeanet train` does, and returns the run directory.

    Args:
        config: An experiment file, a recipe's name (`const`), or the experiment itself.
        overrides: `KEY=VALUE` each, as for `--set`; for a file only.
        data: A directory or a bucket's URL in place of `data.location`; for a file only.
        run_dir: The run directory; None is `runs/<name of the experiment>`.
        resume: Whether to continue the run that is there, if there is one.

    Raises:
        RequestError: The request is wrong; nothing was started.
        RunError: The run failed.
        Stopped: A signal stopped the run; its state is saved.
    """
    return _start("train", config, overrides, data, run_dir, resume)


def search_cell(
    config: AnyPath | Experiment,
    *,
    overrides: Sequence[str] = (),
    data: str | None = None,
    run_dir: AnyPath | None = None,
    resume: bool = False,
) -> Path:
    """Searches a cell, as `gaeanet search` does, and returns the run directory, which holds genotype.json.

    Arguments and errors are those of `train`.
    """
    return _start("search", config, overrides, data, run_dir, resume)


def _start(
    job: str,
    config: AnyPath | Experiment,
    overrides: Sequence[str],
    data: str | None,
    run_dir: AnyPath | None,
    resume: bool,
) -> Path:
    check_platform()
    if isinstance(config, Experiment):
        if overrides or data is not None:
            raise RequestError("overrides and data change an experiment file: hand them to load_experiment")
        experiment, name = config, config.name
    else:
        experiment, name = load_experiment(config, overrides, data), os.fspath(config)
    run.check_job(experiment, job, name)
    return run.start(experiment, job, None if run_dir is None else Path(run_dir), resume=resume)


def evaluate(trained: AnyPath | Trained, *, data: str | None = None, weights: Weights | None = None) -> dict[str, Any]:
    """Evaluates a trained network on validation images, as `gaeanet evaluate --json` does.

    Args:
        trained: What `find` takes or returns.
        data: Where the images are; None is the run's own data.
        weights: None is every kind that is there.

    Returns:
        Plain values, named as in the log: `loss`, `top1_accuracy` and `top5_accuracy` in percent with their 95 %
        intervals, and more; those of averaged weights start with `ema_`.

    Raises:
        RequestError: There is no such network, or no data that fits it.
        RunError: An image does not decode.
    """
    trained = _trained(trained)
    kinds = trained.kinds if weights is None else [trained.kind(weights)]
    source, notes = open_evaluation_data(trained.state, trained.hyperparameters, data, False, False)
    with importing(torch=True):
        from gaeanet.evaluation.score import Options, evaluate_trained

    options = Options(kinds, workers=trained.workers)
    with joined() as processes:
        return evaluate_trained(trained, source, notes, options, processes)


def predict(
    trained: AnyPath | Trained,
    images: AnyPath | Sequence[AnyPath],
    *,
    weights: Weights | None = None,
    top: int = 5,
    batch_size: int = 16,
) -> list[dict[str, Any]]:
    """The most probable classes of each image, as `gaeanet predict --json` gives them.

    Args:
        trained: What `find` takes or returns.
        images: Files, or directories of images.
        weights: None is the kind that did better in validation.
        top: Classes an image.
        batch_size: Images of a batch.

    Returns:
        One dictionary an image: `image`, and either `top` (dictionaries with `index`, `class`, `name` and
        `probability`, most probable first) or `error` where the image does not decode.

    Raises:
        RequestError: There is no such network or image.
    """
    trained = _trained(trained)
    kind = trained.kind(weights)
    paths = [os.fspath(path) for path in ([images] if isinstance(images, (str, os.PathLike)) else images)]
    check_images(paths, top, batch_size)
    with importing(torch=True):
        from gaeanet.evaluation.predict import images_of
        from gaeanet.evaluation.predict import predict as rows

    return list(rows(trained, kind, images_of(paths), batch=batch_size, top=top))


def export(
    trained: AnyPath | Trained,
    destination: AnyPath,
    *,
    form: Literal["timm", "onnx", "torch-export"] = "timm",
    weights: Weights | None = None,
    fold_batchnorm: bool = False,
) -> Path:
    """Writes a trained network in a form that other tools read, compared with the network on the spot.

    Args:
        trained: What `find` takes or returns.
        destination: The directory to make; for `onnx` and `torch-export` also a file with the suffix .onnx or .pt2.
        weights: None is the kind that did better in validation.
        fold_batchnorm: Whether to fold batch norm into the convolutions; not for timm.

    Returns:
        The destination.

    Raises:
        RequestError: The destination exists, or a package that the form needs is missing.
        RunError: The export does not give the network's outputs, or cannot be written; nothing is left behind.
    """
    trained, path = _trained(trained), Path(destination)
    kind = trained.kind(weights)
    check_export(path, form, fold_batchnorm)
    with importing(torch=True):
        from gaeanet.artifacts.export import export as write

    write(trained, path, form, kind, fold_batchnorm)
    return path


def _trained(trained: AnyPath | Trained) -> Trained:
    check_platform()
    return trained if isinstance(trained, Trained) else find(os.fspath(trained))
