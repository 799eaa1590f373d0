"""A run under a storm equals one that was left alone: benchmarks/storm.py in short."""

from __future__ import annotations

import re
from pathlib import Path

import lives
import pytest

STORM = Path(__file__).parents[2] / "benchmarks" / "storm.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_under_a_storm_equals_one_that_was_left_alone(tmp_path: Path) -> None:
    """Laws 2 and 7: whatever happens to a run, it ends as documented, without a traceback, and goes on exactly."""
    code, said = lives.run(["python", str(STORM), "--seconds", "1"], tmp_path / "said", timeout=850)
    assert code == 0, said
    assert re.search(r"^\d+ events, [1-9]\d* rounds?: log and weights equal the undisturbed run's$", said, re.MULTILINE)
    happened = {line.split("  ")[0] for line in said.splitlines() if " exit " in line}
    assert len(happened) == 10, said
