"""What a search's architecture has to go by: do its scores rank cells as training does, and how noisy is its gradient?

    python benchmarks/search_signal.py runs/found runs/compared --data /path/to/imagenette

Takes the cells that `gaeanet compare` trained (runs/compared) and gives each two scores by the search (runs/found):
top-1 of its cell with the supernet's weights, and the logarithm of the weights that the architecture gives to its
edges and operations. Both runs must have the same `data.minival`, on whose images the supernet is evaluated.

The gradient is that of the supernet as the search left it, on batches of the images that train the architecture. Its
signal to noise in one batch is its mean over its standard deviation; over T batches it is sqrt(T) times as large.
"""

from __future__ import annotations

import argparse
import json
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from gaeanet.artifacts import checkpoint
from gaeanet.artifacts.directory import CHECKPOINTS, CONFIG
from gaeanet.cells.genotype import Genotype
from gaeanet.cells.read import from_dict
from gaeanet.cells.space import INTO, CellWeights, Weights
from gaeanet.config.experiment import load_experiment
from gaeanet.data.images.transforms import TrainingTransform, ValidationTransform, normalize
from gaeanet.data.loading.loader import training_batches, validation_batches
from gaeanet.data.sources.open import open_source
from gaeanet.data.sources.source import Source
from gaeanet.data.sources.splits import search_splits
from gaeanet.evaluation.meter import Totals, evaluate
from gaeanet.models.fast import accelerate
from gaeanet.search.architecture import Architecture, mixture_of
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


def ranked(values: Values) -> Values:
    """The rank of each value from 1; equal ones share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Values = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return ranks


def spearman(a: Values, b: Values) -> float:
    """Rank correlation (Spearman 1904)."""
    return float(np.corrcoef(ranked(a), ranked(b))[0, 1])


def bootstrap_error(a: Values, b: Values, rounds: int = 2000) -> float:
    """Standard error of the rank correlation over cells drawn with replacement."""
    rng = np.random.default_rng(0)
    drawn = (rng.integers(0, len(a), len(a)) for _ in range(rounds))
    return float(np.nanstd([spearman(a[chosen], b[chosen]) for chosen in drawn if len(set(chosen.tolist())) > 2]))


class Searched:
    """A search that has ended, with its images."""

    def __init__(self, run: Path, data: str) -> None:
        experiment = load_experiment(run / CONFIG, data=data)
        self.hp, self.source = experiment.hyperparameters, open_source(experiment)
        assert self.hp.search is not None
        tensors, _ = checkpoint.load((run / CHECKPOINTS / "latest").resolve())
        self.supernet = build_supernet(self.hp).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.supernet.load_state_dict(tensors["supernet"])
        accelerate(self.supernet)
        self.architecture = Architecture(self.hp.search, torch.device("cpu"))
        self.architecture.load(tensors["architecture"])
        self.for_weights, self.for_architecture = search_splits(self.source, self.hp)

    def batches(self, source: Source, count: int) -> list[tuple[Tensor, Tensor]]:
        """Normalised images and labels of the first batches."""
        size = self.hp.global_batch_size
        epochs = -(-count * size // len(source.catalog.train))
        stream = training_batches(source, TrainingTransform(self.hp), global_batch=size, epochs=epochs, seed=0)
        return [(normalize(batch.images), batch.labels) for batch in islice(stream, count)]

    def accuracies(self, genotypes: list[Genotype]) -> list[float]:
        """Top-1 in percent of each cell with the supernet's weights, on the images held out of training."""
        calibration = [images for images, _ in self.batches(self.for_weights, CALIBRATION_BATCHES)]
        batches = list(validation_batches(self.source, ValidationTransform(self.hp.image_size), batch=128))
        found = []
        for genotype in genotypes:
            mixture = mixture_of(one_hot(genotype), torch.device("cpu"))
            network = Mixed(recalibrated(self.supernet, mixture, calibration), mixture)
            (meter,) = evaluate([network], batches, torch.device("cpu"))
            found.append(Totals.of(meter.sums).metrics()["top1_accuracy"])
        return found

    def signal_to_noise(self, count: int) -> dict[str, Values]:
        """Mean over standard deviation of the gradient, for each weight of the architecture; rows less their mean."""
        gradients: dict[str, list[Values]] = {"operations": [], "edges": []}
        self.supernet.train()
        for images, labels in self.batches(self.for_architecture or self.for_weights, count):
            loss = F.cross_entropy(self.supernet(images, self.architecture.mixture()), labels)
            normal, reduce, *edges = torch.autograd.grad(loss, self.architecture.parameters)
            rows = torch.cat([normal, reduce])
            gradients["operations"].append((rows - rows.mean(1, keepdim=True)).double().numpy())
            nodes = [row for cell in edges for row in cell.split([len(into) for into in INTO])]
            gradients["edges"].append(torch.cat([node - node.mean() for node in nodes]).double().numpy())
        return {name: np.mean(g, axis=0) / (np.std(g, axis=0, ddof=1) + 1e-30) for name, g in gradients.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("search", type=Path, help="the run directory of a search")
    parser.add_argument("compared", type=Path, help="the run directory of a comparison")
    parser.add_argument("--data", required=True)
    parser.add_argument("--batches", type=int, default=64, help="from which the gradient's noise is estimated")
    arguments = parser.parse_args()
    cells = json.loads((arguments.compared / "comparison.json").read_text())["cells"]
    genotypes = [from_dict(cell["genotype"]) for cell in cells]
    trained = np.array([np.mean(cell["top1"]) for cell in cells])
    weights = average_weights(arguments.search)
    searched = Searched(arguments.search, arguments.data)
    scores = {
        "with the supernet's weights": np.array(searched.accuracies(genotypes)),
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
    for name, ratio in searched.signal_to_noise(arguments.batches).items():
        # The mean of n batches has noise of its own, which would count as signal: its share is 1 / n of the variance.
        typical = np.sqrt(max(0.0, float((ratio**2).mean()) - 1 / arguments.batches))
        print(
            f"gradient of {name}: signal to noise of one batch {typical:.3f} (root mean square over {ratio.size} "
            f"weights, {arguments.batches} batches)"
        )


if __name__ == "__main__":
    main()
