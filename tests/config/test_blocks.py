"""The blocks of hyperparameters: each stands alone, all together are the file's flat keys."""

from __future__ import annotations

import pytest
import yaml
from pydantic import ValidationError

from gaeanet.config.augmentation import Augmentation, MixedImages
from gaeanet.config.base import Length, Seeded
from gaeanet.config.experiment import NOT_IN_A_SEARCH, OPERATIONAL, Hyperparameters, experiment_from
from gaeanet.config.network import Network
from gaeanet.config.optimizer import Optimizer
from gaeanet.config.run import Run, Start
from gaeanet.config.schedule import Batches, Schedule

BLOCKS = (Network, Augmentation, MixedImages, Schedule, Batches, Optimizer, Run, Start)


def test_every_key_belongs_to_one_block() -> None:
    shared = {*Length.model_fields, *Seeded.model_fields}
    keys = [key for block in BLOCKS for key in block.model_fields if key not in shared]
    assert len(keys) == len(set(keys))
    assert {*keys, *shared, "search"} == Hyperparameters.model_fields.keys()
    assert Hyperparameters.model_fields.keys() > OPERATIONAL
    assert NOT_IN_A_SEARCH.keys() < Hyperparameters.model_fields.keys()


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_stands_alone_and_hyperparameters_are_one(block: type) -> None:
    alone, together = block(), Hyperparameters()
    assert isinstance(together, block)
    assert {key: getattr(together, key) for key in block.model_fields} == alone.model_dump()  # type: ignore[attr-defined]
    with pytest.raises(ValidationError):
        block(epoch=3)


@pytest.mark.parametrize(
    ("block", "values", "message"),
    [
        (Network, {"stem": "cifar", "stem_stride": 1}, "the cifar stem has no stride"),
        (Augmentation, {"cutout": True, "cutout_length": 300}, "exceeds the training images' size 224"),
        (Batches, {"repeated_augmentation": 3}, "does not divide global_batch_size 1024"),
    ],
)
def test_a_block_checks_what_concerns_it_alone(block: type, values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        block(**values)
    with pytest.raises(ValidationError, match=message):
        Hyperparameters(**values)


def test_a_file_is_written_block_by_block() -> None:
    written = list(yaml.safe_load(experiment_from({}).to_yaml())["hyperparameters"])
    places = [written.index(key) for key in ("genotype", "image_size", "learning_rate", "optimizer", "precision")]
    assert places == sorted(places)
