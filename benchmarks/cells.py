"""Is a found cell better than chance? Trains it and random cells of about its size, all alike, and compares.

    python benchmarks/cells.py runs/imagenette-search/genotype.json --data /path/to/imagenette --out runs/cells

A random cell draws each node's two inputs and their operations evenly, until the network of `--config` has about as
many multiply-adds as that of the found cell. Every cell is a run of its own in `--out`: stopped anywhere, the same
command goes on. Reported are the best top-1 of each (raw or averaged weights, as its log has it), the random cells'
mean, standard deviation and range, and how many deviations the found cell is away from that mean.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
from runs import best_of, train

from gaeanet.cells.genotype import Edge, Genotype
from gaeanet.cells.read import read_genotype
from gaeanet.cells.space import CANDIDATES, CONCAT
from gaeanet.config.experiment import Hyperparameters, load_experiment
from gaeanet.report.describe import Subject, count_subject
from gaeanet.search.costs import cost_of
from gaeanet.search.genotype_file import write_genotype

TRIES = 1_000_000


def multiply_adds(genotype: Genotype, hp: Hyperparameters) -> int:
    of_cell = hp.model_copy(update={"genotype": genotype.to_dict()})
    return count_subject(Subject(genotype.fingerprint, of_cell)).multiply_adds


def random_genotype(rng: np.random.Generator) -> Genotype:
    cells = []
    for _ in range(2):
        edges: list[Edge] = []
        for node in CONCAT:
            for source in sorted(rng.choice(node, 2, replace=False).tolist()):
                edges.append(Edge(CANDIDATES[int(rng.integers(1, len(CANDIDATES)))], source))
        cells.append(tuple(edges))
    return Genotype(cells[0], CONCAT, cells[1], CONCAT)


def of_equal_size(found: Genotype, hp: Hyperparameters, seed: int, within: float) -> Genotype:
    wanted, wanted_of_paper, rng = multiply_adds(found, hp), cost_of(found).multiply_adds, np.random.default_rng(seed)
    for _ in range(TRIES):
        genotype = random_genotype(rng)
        # The cost in the paper's network, from a table, says whether counting this one layer by layer is worth it.
        alike = abs(cost_of(genotype).multiply_adds / wanted_of_paper - 1) <= 2 * within
        if alike and abs(multiply_adds(genotype, hp) / wanted - 1) <= within:
            return genotype
    sys.exit(
        f"none of {TRIES} random cells is within {within:g} of the found one's {wanted / 1e6:.1f} M: raise --within"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("genotype", help="what the search found")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/cells"), help="where runs and result are kept")
    parser.add_argument("--config", type=Path, default=Path(__file__).parent / "imagenette.yaml")
    parser.add_argument("--random", type=int, default=5, help="how many random cells")
    parser.add_argument("--within", type=float, default=0.05, help="how far their multiply-adds may be from the found")
    parser.add_argument("--seed", type=int, default=0, help="of the random cells")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of gaeanet train")
    arguments = parser.parse_args()
    hp = load_experiment(arguments.config, arguments.set, arguments.data).hyperparameters
    found = read_genotype(arguments.genotype)
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for number in range(arguments.random + 1):
        name = f"random-{number}" if number else "found"
        file = arguments.out / f"{name}.json"
        if not file.exists():
            seed = arguments.seed + number
            cell = of_equal_size(found, hp, seed, arguments.within) if number else found
            write_genotype(file, cell, {})
        cell = read_genotype(str(file))
        train(
            arguments.config, arguments.data, arguments.out / name, [*arguments.set, f"hyperparameters.genotype={file}"]
        )
        accuracy = best_of(arguments.out / name)
        rows.append(
            {"name": name, "top1": accuracy, "multiply_adds": multiply_adds(cell, hp), "cell": cell.fingerprint}
        )
        print(f"{name}: top-1 {accuracy:.2f} %, {rows[-1]['multiply_adds'] / 1e6:.2f} M multiply-adds", flush=True)
    others = [row["top1"] for row in rows[1:]]
    mean = statistics.mean(others)
    deviation = statistics.stdev(others) if len(others) > 1 else math.nan
    result = {"cells": rows, "random_mean": mean, "random_deviation": deviation, "gain": rows[0]["top1"] - mean}
    (arguments.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"found {rows[0]['top1']:.2f} %; {len(others)} random cells of its size: mean {mean:.2f} %, standard deviation "
        f"{deviation:.2f}, {min(others):.2f} to {max(others):.2f} %; gain {result['gain']:+.2f} points"
        + (f", {result['gain'] / deviation:+.1f} deviations" if deviation and deviation > 0 else "")
    )


if __name__ == "__main__":
    main()
