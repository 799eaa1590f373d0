"""The family of recipes: what the four imagenette-N.yaml files have in common, and how the rest follows from N epochs.

`x = log4(epochs / 5)` is 0, 1, 2 and 2.66 for 5, 20, 80 and 200 epochs. At 0 and 1 the keys are those of the measured
runs; the rule carries them on. A test holds that the files are what this returns.
"""

from __future__ import annotations

import math
from typing import Any

from gaeanet.optim.schedules import learning_rate

MEAN_RATE = 0.015
"""The learning rate's mean over a run, whatever its schedule."""
STEPS_AN_EPOCH_AVERAGED = 10
"""Window of the averaged weights, 1 / (1 - decay), in steps for each epoch: 7 % of a run in batches of 64."""


def keys(epochs: int) -> dict[str, Any]:
    """The hyperparameters of the recipe of so many epochs."""
    x = math.log(epochs / 5, 4)
    beyond = max(0.0, x - 1)  # regularisation begins where the measured recipes without it end
    scheduler = "linear" if epochs < 10 else "cosine"
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
        "crop_min_area": min(1.0, max(0.2, round(0.65 * (0.35 / 0.65) ** x, 2))),
        "color_jitter": False,
        "randaugment": epochs >= 200,
        "mixup_alpha": round(0.5 * beyond, 1),
        "cutmix_alpha": round(0.5 * beyond, 1),
        "epochs": epochs,
        "global_batch_size": 64,
        "optimizer": "muon",
        "learning_rate": round(MEAN_RATE / _mean(scheduler, epochs), 4),
        "lr_scheduler": scheduler,
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


def _mean(scheduler: str, epochs: int) -> float:
    """Mean of a schedule relative to its rate: it is straight between whole epochs."""
    rates = [learning_rate(epoch, scheduler=scheduler, base=1.0, epochs=epochs) for epoch in range(epochs + 1)]
    return (sum(rates) - (rates[0] + rates[-1]) / 2) / epochs
