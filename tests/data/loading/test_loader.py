"""Batches: the same samples with the same draws, however they are prepared."""

import multiprocessing
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from gaeanet.config.experiment import Hyperparameters
from gaeanet.data.images.decode import Pixels
from gaeanet.data.images.transforms import (
    MEAN,
    STD,
    TrainingTransform,
    ValidationTransform,
    crop_box,
    cutout,
    erased,
    normalize,
)
from gaeanet.data.loading.loader import Batch, training_batches, validation_batches
from gaeanet.data.sources.folder import FolderSource
from gaeanet.data.sources.synthetic import SyntheticSource
from gaeanet.errors import RunError

HP = Hyperparameters(image_size=32, autoaugment=True, cutout=True, cutout_length=8, random_erasing=0.5)


def digests(source: object, **options: object) -> dict[tuple[int, int], tuple[int, list[int]]]:
    """For each position: a checksum of the augmented pixels, and the labels."""
    loader = training_batches(source, TrainingTransform(HP), global_batch=4, epochs=2, seed=7, **options)  # type: ignore[arg-type]
    return {(b.epoch, b.step): (int(b.images.long().sum()), b.labels.tolist()) for b in loader}


def test_law_1_order_and_draws_do_not_depend_on_workers_or_restarts(t3: Path) -> None:
    source = FolderSource(str(t3))
    plain = digests(source)
    assert list(plain) == [(e, s) for e in range(2) for s in range(4)]
    assert digests(source, workers=2) == plain
    assert digests(source, workers=1, start=(1, 2)) == {k: v for k, v in plain.items() if k >= (1, 2)}
    assert [plain[0, s] for s in range(4)] != [plain[1, s] for s in range(4)]


@pytest.mark.parametrize("default", ["fork", "forkserver", "spawn"])
@pytest.mark.skipif(sys.platform != "linux", reason="workers are not forked there")
def test_field_report_97_how_workers_start_is_not_pythons_choice(
    t3: Path, monkeypatch: pytest.MonkeyPatch, default: str
) -> None:
    """A forked worker sees what its parent holds, here a changed method; Python 3.14 would not fork unasked."""
    source = FolderSource(str(t3))
    red = Path(source.path("train", 0)).read_bytes()
    monkeypatch.setattr("gaeanet.data.sources.folder.read_or_not", lambda _: red)
    hp = Hyperparameters(image_size=32, color_jitter=False)
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(default, force=True)
    try:
        (batch,) = training_batches(source, TrainingTransform(hp), global_batch=18, epochs=1, seed=0, workers=1)
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert batch.images.float().mean((2, 3)).argmax(1).tolist() == [0] * 18
    assert len(set(batch.labels.tolist())) == 3


@pytest.mark.parametrize("world", [2, 3, 4])
def test_law_1_order_and_draws_do_not_depend_on_the_number_of_processes(t3: Path, world: int) -> None:
    source = FolderSource(str(t3))
    plain = digests(source)
    parts = [digests(source, rank=rank, world_size=world) for rank in range(world)]
    for position, (checksum, labels) in plain.items():
        assert sum(part[position][0] for part in parts) == checksum
        assert sum((part[position][1] for part in parts), []) == labels


def test_labels_belong_to_their_images(t3: Path) -> None:
    source = FolderSource(str(t3))
    hp = Hyperparameters(image_size=32, color_jitter=False)
    for batch in training_batches(source, TrainingTransform(hp), global_batch=6, epochs=2, seed=0):
        # the three colours are red, green and blue: the strongest channel is the class
        assert batch.images.float().mean((2, 3)).argmax(1).tolist() == batch.labels.tolist()


def test_law_1_copies_of_an_image_differ_and_are_the_same_for_any_number_of_processes(t3: Path) -> None:
    source = FolderSource(str(t3))

    def batches(**more: int) -> list[Batch]:
        transform = TrainingTransform(HP)
        return list(training_batches(source, transform, global_batch=6, epochs=2, seed=7, repeats=3, **more))

    whole = batches()
    assert [(b.epoch, b.step) for b in whole] == [(e, s) for e in range(2) for s in range(3)]
    for batch in whole:
        assert batch.labels.tolist() == batch.labels[:2].tolist() * 3
        assert len({image.long().sum().item() for image in batch.images}) == 6
    order = source.epoch_order(7, 1)[:6]
    assert [label for b in whole[3:] for label in b.labels[:2].tolist()] == source.catalog.train.labels[order].tolist()
    for world in (2, 4):
        parts = [batches(rank=rank, world_size=world) for rank in range(world)]
        for k, batch in enumerate(whole):
            assert torch.equal(batch.images, torch.cat([part[k].images for part in parts]))
    assert torch.equal(batches(start=(1, 1))[0].images, whole[4].images)


def test_law_3_validation_has_every_image_once_for_any_batch_and_world_size(t3: Path) -> None:
    source = FolderSource(str(t3))
    for world in (1, 2, 3, 4):
        for batch in (1, 2, 4, 9, 100):
            loaders = [
                validation_batches(source, ValidationTransform(32), batch=batch, rank=rank, world_size=world)
                for rank in range(world)
            ]
            labels = [label for loader in loaders for b in loader for label in b.labels.tolist()]
            assert labels == source.catalog.val.labels.tolist()


def test_a_damaged_image_is_named(t3: Path) -> None:
    source = FolderSource(str(t3))
    victim = Path(source.path("train", 5))
    victim.write_bytes(victim.read_bytes()[:400])
    with pytest.raises(RunError, match=str(victim)):
        list(training_batches(source, TrainingTransform(HP), global_batch=18, epochs=1, seed=0))


def test_batches_are_channels_last_bytes(t3: Path) -> None:
    batch = next(iter(validation_batches(FolderSource(str(t3)), ValidationTransform(32), batch=4)))
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(normalize(batch.images), (batch.images / 255 - mean) / std, atol=1e-5, rtol=1e-5)


def test_crop_boxes_lie_inside_with_the_recipes_area_and_aspect() -> None:
    torch.manual_seed(0)
    areas = []
    for _ in range(2000):
        top, left, h, w = crop_box(375, 500, 0.08)
        assert 0 <= top <= 375 - h
        assert 0 <= left <= 500 - w
        assert 0.73 < w / h < 1.36
        areas.append(h * w / (375 * 500))
    assert 0.079 < min(areas) < 0.1
    theirs = [RandomResizedCrop.get_params(torch.empty(3, 375, 500), [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(2000)]
    assert np.mean(areas) == pytest.approx(np.mean([h * w / (375 * 500) for _, _, h, w in theirs]), abs=0.02)
    assert crop_box(10, 1000, 0.08)[2:] == (10, 13)  # too thin for any draw: the largest central box


def test_cutout_covers_one_square_with_the_mean_colour() -> None:
    torch.manual_seed(1)
    covered = []
    for _ in range(200):
        image = cutout(torch.zeros(3, 32, 32, dtype=torch.uint8), 16)
        rows, columns = image[0].nonzero(as_tuple=True)
        box = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        assert len(rows) == box
        assert image[:, rows[0], columns[0]].tolist() == [124, 116, 104]
        covered.append(int(box))
    assert max(covered) == 256
    assert 64 <= min(covered) < 160


def test_erasing_covers_one_rectangle_of_the_stated_area_and_aspect() -> None:
    torch.manual_seed(1)
    areas, aspects = [], []
    for _ in range(400):
        image = erased(torch.zeros(3, 96, 128, dtype=torch.uint8))
        rows, columns = image[0].nonzero(as_tuple=True)
        height, width = int(rows.max() - rows.min() + 1), int(columns.max() - columns.min() + 1)
        assert len(rows) == height * width
        assert image[:, rows[0], columns[0]].tolist() == [124, 116, 104]
        areas.append(height * width / (96 * 128))
        aspects.append(height / width)
    assert 0.018 < min(areas) < 0.04
    assert 0.3 < max(areas) < 0.345
    assert 0.28 < min(aspects) < 0.4
    assert 2.5 < max(aspects) < 3.6
    narrow = torch.zeros(3, 1, 40, dtype=torch.uint8)
    assert not erased(narrow).any()  # nothing lower than the image fits into it


def test_erasing_is_drawn_last_so_that_other_draws_stay_as_they_were() -> None:
    pixels = torch.randint(1, 255, (3, 48, 48), dtype=torch.uint8)
    changed = 0
    for seed in range(60):
        images = []
        for values in ({}, {"random_erasing": 0.5}):
            hp = Hyperparameters(image_size=32, cutout=True, cutout_length=8, **values)
            torch.manual_seed(seed)
            images.append(TrainingTransform(hp).at(0)(Pixels(pixels)))
        differs = (images[0] != images[1]).any(0)
        assert (images[1][:, differs] == torch.tensor([[124], [116], [104]])).all()
        changed += bool(differs.any())
    assert 18 < changed < 42


def test_validation_resizes_the_shorter_side_and_crops_the_centre() -> None:
    ramp = torch.arange(512, dtype=torch.float32).div(2).byte().expand(3, 256, 512)
    image = ValidationTransform(224)(ramp)
    assert image.shape == (3, 224, 224)
    torch.testing.assert_close(image, ramp[:, 16:240, 144:368])


def test_generated_images_are_the_same_everywhere_and_differ_by_class() -> None:
    source, again = SyntheticSource(10, 20, 37, 3), SyntheticSource(10, 20, 37, 3)
    assert np.array_equal(source.read("train", 57), again.read("train", 57))
    assert not np.array_equal(source.read("train", 0), source.read("val", 0))
    assert source.read("val", 3).shape == (37, 37, 3)
    assert len(source.catalog.train) == 200
    assert len(source.catalog.val) == 20
    shifted = SyntheticSource(10, 20, 37, 4)
    assert not np.array_equal(source.read("train", 57), shifted.read("train", 57))
    thousand = SyntheticSource(1000, 10, 37, 0)
    assert thousand.read("train", 9999).shape == (37, 37, 3)
