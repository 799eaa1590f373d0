"""Does a search's supernet rank cells as training them does? Rank correlations, with their errors.

    python benchmarks/ranking.py runs/found runs/compared --data /path/to/imagenette

Takes the cells that `gaeanet compare` trained (runs/compared) and gives each two scores by the search (runs/found):
top-1 of its cell as the supernet holds it, and the logarithm of the weights that the architecture gives to its edges
and operations. Both runs must have the same `data.minival`, on whose images the supernet is evaluated.
"""

from __future__ import annotations

import argparse
import json
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gaeanet.artifacts import checkpoint
from gaeanet.artifacts.directory import CHECKPOINTS, CONFIG
from gaeanet.cells.genotype import Genotype
from gaeanet.cells.read import from_dict
from gaeanet.cells.space import CellWeights, Weights
from gaeanet.config.experiment import load_experiment
from gaeanet.data.images.transforms import TrainingTransform, ValidationTransform, normalize
from gaeanet.data.loading.loader import training_batches, validation_batches
from gaeanet.data.sources.open import open_source
from gaeanet.data.sources.splits import search_splits
from gaeanet.evaluation.meter import Totals, evaluate
from gaeanet.models.fast import accelerate
from gaeanet.search.architecture import mixture_of
from gaeanet.search.candidates import average_weights
from gaeanet.search.discretize import one_hot
from gaeanet.search.job import CALIBRATION_BATCHES, build_supernet
from gaeanet.search.supernet import Mixed, recalibrated

Values = NDArray[np.float64]


def strength(genotype: Genotype, weights: Weights) -> float:
    """Sum of the logarithms of the weights of a cell's edges and operations."""
    return sum(_strength(kept, weights[cell]) for cell, kept in one_hot(genotype).items())


def _strength(kept: CellWeights, weights: CellWeights) -> float:
    chosen = np.concatenate([np.ravel(kept.edges), np.ravel(kept.operations)])
    values = np.concatenate([np.ravel(weights.edges), np.ravel(weights.operations)])
    return float(np.log(np.maximum(values[chosen > 0], 1e-12)).sum())


def spearman(a: Values, b: Values) -> float:
    """Rank correlation (Spearman 1904)."""
    ranks = [np.argsort(np.argsort(values)).astype(float) for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def bootstrap_error(a: Values, b: Values, rounds: int = 2000) -> float:
    """Standard error of the rank correlation over cells drawn with replacement."""
    rng = np.random.default_rng(0)
    drawn = (rng.integers(0, len(a), len(a)) for _ in range(rounds))
    return float(np.nanstd([spearman(a[chosen], b[chosen]) for chosen in drawn if len(set(chosen.tolist())) > 2]))


def supernet_accuracies(search: Path, data: str, genotypes: list[Genotype]) -> list[float]:
    """Top-1 in percent of each cell with the weights of a search's supernet, on the images held out of training."""
    experiment = load_experiment(search / CONFIG, data=data)
    hp, source = experiment.hyperparameters, open_source(experiment)
    supernet = build_supernet(hp).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    tensors, _ = checkpoint.load((search / CHECKPOINTS / "latest").resolve())
    supernet.load_state_dict(tensors["supernet"])
    accelerate(supernet)
    weights, _ = search_splits(source, hp)
    training = training_batches(weights, TrainingTransform(hp), global_batch=hp.global_batch_size, epochs=1, seed=0)
    calibration = [normalize(batch.images) for batch in islice(training, CALIBRATION_BATCHES)]
    batches = list(validation_batches(source, ValidationTransform(hp.image_size), batch=128))
    found = []
    for genotype in genotypes:
        mixture = mixture_of(one_hot(genotype), torch.device("cpu"))
        network = Mixed(recalibrated(supernet, mixture, calibration), mixture)
        (meter,) = evaluate([network], batches, torch.device("cpu"))
        found.append(Totals.of(meter.sums).metrics()["top1_accuracy"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("search", type=Path, help="the run directory of a search")
    parser.add_argument("compared", type=Path, help="the run directory of a comparison")
    parser.add_argument("--data", required=True)
    arguments = parser.parse_args()
    cells = json.loads((arguments.compared / "comparison.json").read_text())["cells"]
    genotypes = [from_dict(cell["genotype"]) for cell in cells]
    trained = np.array([np.mean(cell["top1"]) for cell in cells])
    weights = average_weights(arguments.search)
    scores = {
        "as the supernet holds it": np.array(supernet_accuracies(arguments.search, arguments.data, genotypes)),
        "weight in the architecture": np.array([strength(genotype, weights) for genotype in genotypes]),
    }
    print("| cell | trained | " + " | ".join(scores) + " |")
    print("|---|---|" + "---|" * len(scores))
    for number, cell in enumerate(cells):
        values = " | ".join(f"{score[number]:.2f}" for score in scores.values())
        print(f"| {cell['name']} | {trained[number]:.2f} | {values} |")
    for name, score in scores.items():
        error = bootstrap_error(score, trained)
        print(f"{name}: rank correlation {spearman(score, trained):+.2f} ± {error:.2f} over {len(cells)} cells")


if __name__ == "__main__":
    main()
