"""The family of recipes: what the four imagenette-N.yaml files have in common, and how the rest follows from N epochs.

`x = log4(epochs / 5)` is 0, 1, 2 and 2.66 for 5, 20, 80 and 200 epochs. At 0 and 1 the keys are those of the measured
runs; the rule carries them on. A test holds that the files are what this returns.

    python benchmarks/family.py 40      the keys for another number of epochs
"""

from __future__ import annotations

import math
import sys
from typing import Any

from gaeanet.runtime.yaml import dump

MEAN_RATE = 0.015
"""The learning rate's mean over a run, whatever its schedule."""
STEPS_AN_EPOCH_AVERAGED = 10
"""Window of the averaged weights, 1 / (1 - decay), in steps for each epoch: 7 % of a run in batches of 64."""


def keys(epochs: int) -> dict[str, Any]:
    """The hyperparameters of the recipe of so many epochs."""
    x = math.log(epochs / 5, 4)
    beyond = max(0.0, x - 1)  # regularisation begins where the measured recipes without it end
    is_short = epochs < 10
    return {
        "genotype": "gaea-imagenet",
        "num_classes": 10,
        "init_channels": 48,
        "layers": 14,
        "stem_stride": 1,
        "activation": "swish",
        "do_SE": True,
        "drop_path_prob": round(0.1 * beyond, 2),
        "image_size": 128,
        "train_image_size": [96, 128] if beyond else None,
        "crop_min_area": max(0.2, round(0.65 * (0.35 / 0.65) ** x, 2)),
        "color_jitter": False,
        "randaugment": epochs >= 200,
        "mixup_alpha": round(0.5 * beyond, 1),
        "cutmix_alpha": round(0.5 * beyond, 1),
        "epochs": epochs,
        "global_batch_size": 64,
        "optimizer": "muon",
        # The linear schedule keeps its rate for the first of five epochs: its mean is 0.6 of it, that of cosine 0.5.
        "learning_rate": round(MEAN_RATE / (0.6 if is_short else 0.5), 4),
        "lr_scheduler": "linear" if is_short else "cosine",
        "warmup_epochs": 0,
        "momentum": 0.8,
        "weight_decay": 5.0e-4,
        "clip_gradients_l2_norm": 5,
        "label_smoothing_rate": 0.1,
        "initial_gamma": 0.1,
        "ema_decay": round(1 - 1 / (STEPS_AN_EPOCH_AVERAGED * epochs), 5),
        "validate_every": epochs,
        "seed": 0,
    }


if __name__ == "__main__":
    print(dump({"hyperparameters": keys(int(sys.argv[1]))}), end="")
