"""What each ingredient of a recipe adds or costs: the experiment as it is and with one change at a time, several seeds.

    python benchmarks/ablation.py --data /path/to/imagenette --out runs/ablation
    python benchmarks/ablation.py --data ... --out ... --only optimizer,do_SE      some of the changes

Every run is one of its own in `--out`: stopped anywhere, the same command goes on, and a change or seed that is added
later trains only what is missing. Reported is the top-1 of the last validation: raw weights' mean, standard deviation
and number over seeds, and the mean difference to the unchanged recipe, seed by seed, with its standard error.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import yaml
from runs import train, validations

CHANGES: dict[str, dict[str, Any]] = {
    "recipe": {},
    "activation": {"activation": "relu"},
    "do_SE": {"do_SE": False},
    "label_smoothing": {"label_smoothing_rate": 0.0},
    "initial_gamma": {"initial_gamma": 0.1},
    "warmup": {"warmup_epochs": 0},
    "clipping": {"clip_gradients_l2_norm": 0},
    "scheduler": {"lr_scheduler": "linear"},
    "color_jitter": {"color_jitter": False},
    "autoaugment": {"autoaugment": False},
    "cutout": {"cutout": False},
    "light": {"color_jitter": False, "autoaugment": False, "cutout": False},
    "crop": {"crop_min_area": 0.35},
    "auxiliary": {"auxiliary": True},
    "drop_path": {"drop_path_prob": 0.2},
    "weight_decay": {"weight_decay": 5.0e-4},
    "no_decay": {"decay_norms_and_biases": False},
    "progressive": {"train_image_size": [64, 96]},
    "mixup": {"mixup_alpha": 0.2},
    "cutmix": {"cutmix_alpha": 1.0},
    "random_erasing": {"random_erasing": 0.25},
    "repeated": {"repeated_augmentation": 2},
    "optimizer": {"optimizer": "muon", "learning_rate": 0.04, "momentum": 0.8},
}
"""What becomes different in the experiment's hyperparameters, by name; those that the recipe has go, others come."""


def settings_of(changes: dict[str, Any], seed: int) -> list[str]:
    values = {**changes, "seed": seed}
    return [f"hyperparameters.{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in values.items()]


def spread(values: list[float]) -> str:
    deviation = f"{statistics.stdev(values):.2f}" if len(values) > 1 else "-"
    return f"{statistics.mean(values):.2f} | {deviation} | {len(values)}"


def difference(values: list[float], others: list[float]) -> str:
    """The mean difference seed by seed, with its standard error."""
    gains = [a - b for a, b in zip(values, others)]
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
    return f"{statistics.mean(gains):+.2f} ± {error:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), help="where runs and result are kept")
    parser.add_argument("--config", type=Path, default=Path(__file__).parent / "ablation.yaml")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", help="these changes, separated by commas")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",") if arguments.only else list(CHANGES)
    if unknown := set(chosen) - set(CHANGES):
        parser.error(f"no such change: {', '.join(sorted(unknown))}; there are {', '.join(CHANGES)}")
    found: dict[str, list[float]] = {}
    averaged: dict[str, list[float]] = {}
    for seed in range(arguments.seeds):  # all changes once before any a second time
        for name in dict.fromkeys(["recipe", *chosen]):
            run = arguments.out / f"{name}-{seed}"
            train(arguments.config, arguments.data, run, settings_of(CHANGES[name], seed))
            last = validations(run)[-1]
            found.setdefault(name, []).append(last["top1_accuracy"])
            averaged.setdefault(name, []).append(last.get("ema_top1_accuracy", math.nan))
    print("\n| | changed | top-1 % | deviation | n | beside the recipe | averaged weights |")
    print("|---|---|---|---|---|---|---|")
    for name, values in found.items():
        changed = ", ".join(f"{key}: {value}" for key, value in CHANGES[name].items())
        gain = difference(values, found["recipe"]) if name != "recipe" else ""
        print(f"| {name} | {changed} | {spread(values)} | {gain} | {statistics.mean(averaged[name]):.2f} |")
    result = {name: {"raw": found[name], "averaged": averaged[name], "changes": CHANGES[name]} for name in found}
    (arguments.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
