"""Whatever is done to files that come from others ends as it should: benchmarks/fuzz.py in short."""

from __future__ import annotations

import re
from pathlib import Path

import lives
import pytest

FUZZ = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_damaged_jpegs_go_through_the_kernels_under_sanitizers(tmp_path: Path) -> None:
    code, said = lives.run(["python", str(FUZZ), "kernels", "--seconds", "2"], tmp_path / "said", timeout=500)
    if code == 2:
        pytest.skip(said.strip())
    assert code == 0, said
    counts = re.search(r"(\d[\d,]*) decoded, .* took a new way; 0 failures", said)
    assert counts, said
    assert int(counts[1].replace(",", "")) > 20


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_damaged_files_are_read_or_refused_by_every_reader(tmp_path: Path) -> None:
    """Field reports 86 to 95: at least one input each."""
    code, said = lives.run(["python", str(FUZZ), "readers", "--seconds", "4"], tmp_path / "said", timeout=500)
    assert code == 0, said
    results = re.findall(r"^(.+): (?:\d[\d,]* (?:read|refused)(?:, )?)+$", said, re.MULTILINE)
    assert len(results) >= 20, said
