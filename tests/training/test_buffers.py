"""A learner on flat buffers learns what one on separate tensors does, and saves what that one saves."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from steps import Trainee
from tiny import NET
from torch import Tensor

from gaeanet.config.experiment import Experiment, Hyperparameters

BATCH, SIZE = 8, 32


def trainee(flat: bool, **values: Any) -> Trainee:
    hp = Hyperparameters(**{**NET, "global_batch_size": BATCH, "image_size": SIZE, "activation": "swish", **values})
    return Trainee(Experiment(hyperparameters=hp), flat=flat)


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (BATCH, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 3, (BATCH,), generator=generator)


def assert_alike(one: Trainee, other: Trainee) -> None:
    tensors, expected = one.learner.tensors(), other.learner.tensors()
    assert tensors.keys() == expected.keys()
    for group, values in expected.items():
        assert tensors[group].keys() == values.keys()
        for name, value in values.items():
            apart = float((tensors[group][name].double() - value.double()).norm())
            assert apart <= 1e-2 * float(value.double().norm()) + 1e-6, f"{group} {name}"
    assert torch.equal(one.learner.counts, other.learner.counts)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"do_SE": True, "auxiliary": True, "max_batch_per_slot": 3},
        {"optimizer": "muon", "momentum": 0.8, "do_SE": True},
        {"momentum": 0.0, "ema_decay": 0.0},
        {"freeze": "stem", "layer_decay": 0.7, "decay_norms_and_biases": False},
        {"optimizer": "muon", "layer_decay": 0.7, "decay_norms_and_biases": False, "drop_path_prob": 0.2},
    ],
    ids=["sgd", "parts", "muon", "plain", "layers", "muon, layers"],
)
def test_steps_on_flat_buffers_are_those_on_separate_tensors(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    both = [trainee(flat, **values) for flat in (True, False)]
    assert both[0].learner.buffers
    for k in range(3):
        for one in both:
            torch.manual_seed(k)
            with monkeypatch.context() as patch:
                if k == 1:  # a gradient that is not finite: nothing may move
                    patch.setattr(one.learner, "loss_scale", math.nan)
                one.step(*batch(k), 0.002, 0.2)  # small: rounding grows from step to step
    assert_alike(*both)
    assert both[0].learner.counts.tolist() == [2, 1, 0]


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_a_checkpoint_of_either_resumes_on_the_other(optimizer: str) -> None:
    both = [trainee(flat, optimizer=optimizer) for flat in (True, False)]
    both[0].step(*batch(0), 0.05)
    copies = {
        group: {name: value.clone() for name, value in values.items()}
        for group, values in both[0].learner.tensors().items()
    }
    both[1].learner.load(copies)
    both[1].learner.counts.copy_(both[0].learner.counts)
    for one in both:
        one.step(*batch(1), 0.05)
    assert_alike(*both)


def test_the_buffers_are_the_memory_of_all_that_a_step_changes() -> None:
    learner = trainee(True, do_SE=True).learner
    assert learner.buffers
    flat = [parameter for group in learner.buffers.parameters for parameter in group]
    places = {parameter.untyped_storage().data_ptr() for parameter in learner.network.parameters()}
    assert places == {parameter.untyped_storage().data_ptr() for parameter in flat}
    statistics = {
        buffer.untyped_storage().data_ptr() for name, buffer in learner.network.named_buffers() if "running" in name
    }
    assert statistics == {learner.buffers.statistics[0].untyped_storage().data_ptr()}
