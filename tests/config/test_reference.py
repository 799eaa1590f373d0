"""The reference table in docs/training.md is what the configuration classes say."""

from __future__ import annotations

import re
from pathlib import Path

from gaeanet.config.data import Data
from gaeanet.config.experiment import Hyperparameters
from gaeanet.config.reference import table, write
from gaeanet.config.search import Search

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


def test_the_page_is_up_to_date() -> None:
    text = PAGE.read_text()
    assert write(text) == text, "make reference"


def test_every_key_has_one_row_with_all_four_cells() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \| (.+) \|$", table(), re.MULTILINE)
    keys = [row[0] for row in rows]
    assert len(keys) == len(set(keys))
    known = {*Data.model_fields, *Hyperparameters.model_fields, *Search.model_fields} - {"search"}
    assert set(keys) == known
    assert ("init_weights", "raw or ema or null", "null") in [row[:3] for row in rows]
    assert ("minival", "a number > 0 and &lt; 1, or null", "null") in [row[:3] for row in rows]


def test_every_key_that_the_guide_names_exists() -> None:
    guide, _, _ = PAGE.read_text().partition("<!-- reference")
    known = {*Data.model_fields, *Hyperparameters.model_fields, *Search.model_fields}
    for key in re.findall(r"`(?:data\.|hyperparameters\.)?([a-z]+_[a-z_A-Z]+)(?::[^`]*)?`", guide):
        assert key in known | {"skipped_steps"}, key
