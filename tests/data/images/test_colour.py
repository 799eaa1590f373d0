"""Colour operations: the kernels and Pillow give the same bytes, and both what torchvision's transforms give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as transforms
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from gaeanet.config.experiment import Hyperparameters
from gaeanet.data.images import policies
from gaeanet.data.images.colour import ColorJitter, jitter, jitter_in_pillow
from gaeanet.data.images.decode import Pixels
from gaeanet.data.images.transforms import TrainingTransform
from gaeanet.kernels.build import OWN, availability

needs_kernels = pytest.mark.skipif(availability() != OWN, reason=availability())
factors = st.floats(0, 2)


def pixels(height: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=generator)


@needs_kernels
@pytest.mark.parametrize("turn", [0.0, 0.2, -0.13, 0.004])
def test_the_hue_of_every_colour_is_turned_as_by_pillow(turn: float) -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    every = torch.cartesian_prod(levels, levels, levels).view(4096, 4096, 3)
    only_hue = torch.tensor([3, -1, -1, -1])
    turned = jitter(every.clone(), only_hue, [1.0, 1.0, 1.0, turn])
    assert torch.equal(turned, jitter_in_pillow(every, only_hue[:1], [1.0, 1.0, 1.0, turn]))


@needs_kernels
@settings(max_examples=200)
@given(
    st.permutations(range(4)),
    st.tuples(factors, factors, factors, st.floats(-0.5, 0.5)),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 2**32),
)
def test_any_order_and_factors(order: list[int], drawn: tuple[float, ...], height: int, width: int, seed: int) -> None:
    image = pixels(height, width, seed)
    expected = jitter_in_pillow(image, torch.tensor(order), list(drawn))
    assert torch.equal(jitter(image, torch.tensor(order), list(drawn)), expected)


@needs_kernels
def test_memory_that_is_not_one_block_is_refused() -> None:
    with pytest.raises(ValueError, match="in one block"):
        jitter(pixels(4, 4, 0).permute(1, 0, 2), torch.arange(4), [1.0, 1.0, 1.0, 0.0])


@pytest.mark.parametrize("seed", range(8))
def test_draws_and_pixels_are_those_of_torchvision(seed: int) -> None:
    image = pixels(24, 32, seed)
    torch.manual_seed(seed)
    theirs = transforms.ColorJitter(0.4, 0.4, 0.4, 0.2)(Image.fromarray(image.numpy()))
    torch.manual_seed(seed)
    ours = ColorJitter(0.4, 0.4, 0.4, 0.2)(image)
    assert np.array_equal(ours.numpy(), np.asarray(theirs))


MAGNITUDES = {
    **dict.fromkeys(("Brightness", "Contrast", "Color"), st.floats(-0.9, 0.9)),
    **dict.fromkeys(("AutoContrast", "Equalize", "Invert", "Identity"), st.just(0.0)),
    "Posterize": st.integers(1, 8),
    "Solarize": st.floats(0, 1),
}


@needs_kernels
@settings(max_examples=300)
@given(st.data(), st.sampled_from(sorted(MAGNITUDES)), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32))
def test_an_operation_in_place_is_pillows(data: st.DataObject, name: str, height: int, width: int, seed: int) -> None:
    image = pixels(height, width, seed)
    low, high = sorted(data.draw(st.tuples(st.integers(0, 255), st.integers(0, 255))))
    image = image.clamp(low, high)  # flat images and narrow ones are where Pillow's rules have exceptions
    magnitude = data.draw(MAGNITUDES[name])
    pillow = Image.fromarray(image.numpy().copy())
    theirs = transforms.AutoAugment()._apply_image_or_video_transform(pillow, name, magnitude, "nearest", {})  # type: ignore[arg-type]
    assert policies.apply_in_place(image, name, magnitude)
    assert np.array_equal(image.numpy(), np.asarray(theirs))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(policies.AutoAugment(), transforms.AutoAugment()), (policies.RandAugment(), transforms.RandAugment())],
)
def test_a_policys_draws_and_pixels_are_those_of_torchvision(ours: Any, theirs: Any) -> None:
    image = pixels(24, 32, 0)
    for seed in range(100):
        torch.manual_seed(seed)
        expected = np.asarray(theirs(Image.fromarray(image.numpy())))
        torch.manual_seed(seed)
        assert np.array_equal(ours(image.permute(2, 0, 1).clone()).permute(1, 2, 0).numpy(), expected)


def test_augmentation_is_the_same_without_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    hp = Hyperparameters(image_size=64, autoaugment=True, cutout=True)
    image = pixels(90, 120, 0).permute(2, 0, 1)

    def augmented() -> list[Tensor]:
        transform = TrainingTransform(hp).at(0)
        results = []
        for seed in range(20):
            torch.manual_seed(seed)
            results.append(transform(Pixels(image)))
        return results

    fast = augmented()
    for module in ("colour", "policies"):
        monkeypatch.setattr(f"gaeanet.data.images.{module}.availability", lambda: "PyTorch's kernels")
    for a, b in zip(fast, augmented()):
        assert torch.equal(a, b)
