"""Field report 91: every number has stated bounds, which are looked at before anything is allocated or read."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from tiny import Result

from gaeanet.cells.read import read_genotype
from gaeanet.config.data import Data
from gaeanet.config.experiment import Hyperparameters, experiment_from, load_experiment
from gaeanet.config.messages import expected
from gaeanet.config.search import Search
from gaeanet.errors import RequestError
from gaeanet.runtime.files import MOST_BYTES

Run = Callable[..., Result]

BLOCKS: dict[str, type[BaseModel]] = {
    "data": Data,
    "hyperparameters": Hyperparameters,
    "hyperparameters.search": Search,
}
WHOLE_NUMBERS = [
    (block, key)
    for block, model in BLOCKS.items()
    for key, field in model.model_fields.items()
    if "whole number" in expected(field)
]


def tree(block: str, key: str, value: Any) -> dict[str, Any]:
    inner: dict[str, Any] = {key: value}
    for name in reversed(block.split(".")):
        inner = {name: inner}
    return inner


@pytest.mark.parametrize("value", [2**70, 10**400], ids=["2^70", "10^400"])
@pytest.mark.parametrize(("block", "key"), WHOLE_NUMBERS)
def test_field_report_91_no_whole_number_of_the_experiment_is_without_bounds(block: str, key: str, value: int) -> None:
    with pytest.raises(RequestError, match=rf"{block}(\.{key}: must be|: freeze)"):
        experiment_from(tree(block, key, value))


@pytest.mark.parametrize("sizes", [10**8, [32, 10**8], [10**8, 32]])
def test_field_report_91_training_sizes_have_bounds(sizes: Any) -> None:
    with pytest.raises(RequestError, match="train_image_size: must be a whole number <= 4096 or two whole numbers"):
        experiment_from(tree("hyperparameters", "train_image_size", sizes))


def test_field_report_91_a_network_has_a_bound_as_a_whole() -> None:
    with pytest.raises(RequestError, match="more than 142 billion parameters, and at most 10 billion are built"):
        experiment_from({"hyperparameters": {"layers": 200, "init_channels": 4096}})


def test_field_report_91_generated_images_have_a_bound_together(gaeanet: Run) -> None:
    values = ["hyperparameters.num_classes=1000000", "data.generated_per_class=100000"]
    refused = gaeanet("train", "const", *(word for value in values for word in ("--set", value)))
    assert refused.code == 2
    assert "100,000,000,000, at most 10,000,000 are generated" in refused.err


@pytest.mark.parametrize("read", [load_experiment, lambda path: read_genotype(str(path))])
def test_field_report_91_a_file_is_not_read_beyond_its_limit(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    path = tmp_path / "file.yaml"
    with open(path, "wb") as file:
        file.truncate(20 << 30)
    with pytest.raises(RequestError, match=re.escape(f"too large: more than {MOST_BYTES:,} bytes")):
        read(path)


def test_field_report_91_an_endless_experiment_file_is_refused() -> None:
    with pytest.raises(RequestError, match="too large"):
        load_experiment("/dev/zero")


@pytest.mark.parametrize("seconds", ["inf", "1e300", "86401"])
def test_field_report_91_a_bench_ends(gaeanet: Run, seconds: str) -> None:
    refused = gaeanet("bench", "const", "--seconds", seconds)
    assert refused.code == 2
    assert "must be 86,400 (a day) or less" in refused.err


@pytest.mark.parametrize("option", ["--image-size", "--batch-size"])
@pytest.mark.parametrize("value", ["100000000", "1" * 5000, "1.5"], ids=["large", "long", "no whole number"])
def test_field_report_91_options_have_bounds(gaeanet: Run, option: str, value: str) -> None:
    refused = gaeanet("evaluate", "run", option, value)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert re.search(rf"argument {option}: must be (at most|a whole number)", refused.err)
