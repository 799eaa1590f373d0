"""mixup and CutMix: what a mixture is, that its loss is that of the mixed target, and that parts make no difference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sharing import keep_norms_in_evaluation
from steps import Trainee
from tiny import NET
from torch import Tensor

from gaeanet.config.experiment import Hyperparameters, experiment_from
from gaeanet.data.sources.order import mix_seed
from gaeanet.data.sources.synthetic import SyntheticSource
from gaeanet.errors import RequestError
from gaeanet.training.mixing import Mix, Mixing, cut
from gaeanet.training.objective import larger, mixed_loss

Write = Callable[..., Path]
shares = st.floats(0, 1)
places = st.floats(0, 1, exclude_max=True)


@given(shares, st.integers(32, 300), st.integers(32, 300), places, places)
def test_the_share_is_what_the_rectangle_leaves_to_the_pixel(share: float, h: int, w: int, y: float, x: float) -> None:
    mix = cut(share, h, w, y, x)
    images, follower = torch.zeros(2, 3, h, w), torch.full((1, 3, h, w), 2.0)
    images[1] = 1.0
    mixed = mix.images(images, follower)
    for k in range(2):
        partners = mixed[k] == k + 1
        assert torch.equal(partners[0], partners[2])
        assert mix.lam == pytest.approx(1 - partners[0].float().mean().item(), abs=1e-6)
        rows, columns = partners[0].any(1), partners[0].any(0)
        assert int(rows.sum() * columns.sum()) == int(partners[0].sum()), "a rectangle, and nothing else"
    assert mix.lam >= share - 1e-9, "cut off at the edges, it only gets smaller"


def test_mixup_is_the_weighted_mean_with_the_image_after_it() -> None:
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    mixed = Mix(0.75).images(images, images[:1])
    assert mixed[:, 0, 0, 0].tolist() == [0.25, 1.25, 2.25, 2.25]
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    labels = Mix(0.75).labels(torch.tensor([5, 6, 7, 8]), torch.tensor([5]))
    assert labels.tolist() == [[5, 6], [6, 7], [7, 8], [8, 5]]
    assert larger(labels, Mix(0.75).weights).tolist() == [5, 6, 7, 8]
    assert larger(labels, Mix(0.25).weights).tolist() == [6, 7, 8, 5]


@given(shares, st.floats(0, 0.9), st.integers(0, 99))
def test_the_mixed_loss_is_the_cross_entropy_with_the_mixed_target(share: float, smoothing: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, (6, 2), generator=generator)

    def against(target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="sum")

    one_hot = F.one_hot(labels, 5).double()
    target = share * one_hot[:, 0] + (1 - share) * one_hot[:, 1]
    torch.testing.assert_close(mixed_loss(against, labels, torch.tensor([share, 1 - share]).double()), against(target))


def test_a_step_takes_either_evenly_and_shares_follow_beta() -> None:
    both = Mixing(Hyperparameters(mixup_alpha=0.4, cutmix_alpha=1.0))
    draws = [both.draw(mix_seed(3, k), 32, 32) for k in range(400)]
    assert 160 < sum(mix.box is not None for mix in draws if mix) < 240
    assert draws == [both.draw(mix_seed(3, k), 32, 32) for k in range(400)]
    found = [Mixing(Hyperparameters(mixup_alpha=0.4)).draw(mix_seed(0, k), 32, 32) for k in range(400)]
    values = torch.tensor([mix.lam for mix in found if mix])
    assert len(values) == 400
    assert values.mean().item() == pytest.approx(0.5, abs=0.06)
    assert values.var().item() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.02)  # of Beta(a, a)
    assert Mixing(Hyperparameters()).draw(0, 32, 32) is None


def trained(**values: Any) -> Trainee:
    return Trainee(experiment_from({"hyperparameters": {**NET, "auxiliary": True, **values}}))


@pytest.fixture
def examples() -> tuple[Tensor, Tensor]:
    source = SyntheticSource(3, 10, 32, 0)
    pixels = torch.stack([torch.from_numpy(source.read("train", 4 * k)).permute(2, 0, 1) for k in range(7)])
    return pixels, torch.from_numpy(source.catalog.train.labels[:28:4]).long()


def gradients(state: Trainee) -> dict[str, Tensor]:
    return {name: value.grad.clone() for name, value in state.network.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("mix", [Mix(1.0), cut(1.0, 32, 32, 0.5, 0.5)])
def test_all_of_an_image_is_that_image(
    examples: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch, mix: Mix
) -> None:
    plain = trained(global_batch_size=7)
    plain.step(*examples, 0.1, 0.0)
    monkeypatch.setattr(Mixing, "draw", lambda *_: mix)
    mixed = trained(global_batch_size=7, mixup_alpha=1.0)
    mixed.step(*examples, 0.1, 0.0)
    expected = gradients(plain)
    for name, gradient in gradients(mixed).items():
        assert torch.equal(gradient, expected[name]), name
    assert torch.equal(plain.learner.meter.sums, mixed.learner.meter.sums)


@pytest.mark.parametrize("mix", [Mix(0.3), cut(0.6, 32, 32, 0.4, 0.7)])
@pytest.mark.parametrize("at_once", [2, 3])
def test_parts_of_a_share_have_the_gradients_of_the_whole(
    examples: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch, mix: Mix, at_once: int
) -> None:
    monkeypatch.setattr(Mixing, "draw", lambda *_: mix)
    found = []
    for limit in (None, at_once):
        state = trained(global_batch_size=7, activation="relu", max_batch_per_slot=limit)
        keep_norms_in_evaluation(state.network)
        state.step(*examples, 0.0, 0.0)
        found.append((gradients(state), state.learner.meter.sums))
    for name, gradient in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], gradient, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1])


def test_a_draw_is_of_the_position_and_no_process_has_one_of_its_own(
    examples: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, draw = list[Mix | None](), Mixing.draw

    def noted(self: Mixing, *arguments: int) -> Mix | None:
        drawn.append(draw(self, *arguments))
        return drawn[-1]

    monkeypatch.setattr(Mixing, "draw", noted)
    state, other = (trained(global_batch_size=7, mixup_alpha=0.2, cutmix_alpha=1.0, seed=5) for _ in range(2))
    for k in range(3):
        for rank, one in enumerate((state, other)):
            torch.manual_seed(rank)  # as what the network draws
            one.step(*examples, 0.0, 0.0)
        expected = draw(Mixing(state.state.experiment.hyperparameters), mix_seed(5, k), 32, 32)
        assert drawn[-2:] == [expected, expected]


def test_other_processes_mean_other_partners_and_that_is_said(tmp_path: Path) -> None:
    for values, said in (({}, False), ({"cutmix_alpha": 1.0}, True)):
        state = trained(**values)
        tensors, saved = state.state.saved()
        (note,) = state.state.load(tmp_path, tensors, {**saved, "world_size": 2})
        assert ("drop-path draws, partners of mixed images and rounding" in note) is said


@pytest.mark.parametrize("key", ["mixup_alpha", "cutmix_alpha"])
def test_a_search_mixes_nothing(key: str) -> None:
    with pytest.raises(RequestError, match=f"{key} is 0.2, which a search does not have: leave it out"):
        experiment_from({"hyperparameters": {"search": {}, key: 0.2}})
    with pytest.raises(RequestError, match=f"{key}: must be a number >= 0, got -1"):
        experiment_from({"hyperparameters": {key: -1}})
