"""Intervals, calibration and the paired test, against values known from elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaeanet.evaluation.statistics import calibration_error, mcnemar, student_tail, wilson


def test_wilson_is_the_published_interval() -> None:
    # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3.
    for successes, trials, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)]:
        assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)
    assert wilson(29, 29) == pytest.approx((0.8830, 1.0), abs=5e-5)
    assert all(map(math.isnan, wilson(0, 0)))


@given(st.integers(1, 3000), st.data())
def test_wilson_holds_the_share_and_is_symmetric(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    low, high = wilson(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    assert wilson(trials - successes, trials) == pytest.approx((1 - high, 1 - low))


def test_calibration_error_by_hand() -> None:
    confidence = np.array([0.95, 0.95, 0.55, 0.55])
    correct = np.array([True, False, True, True])
    # Two bins of two images: |0.5 - 0.95| and |1 - 0.55|.
    assert calibration_error(confidence, correct, bins=10) == pytest.approx(0.45)
    assert calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0
    assert math.isnan(calibration_error(np.array([]), np.array([], bool)))


def test_mcnemar_is_the_exact_binomial_test() -> None:
    first = np.array([True] * 40 + [True] * 9 + [False] * 2 + [False] * 9)
    second = np.array([True] * 40 + [False] * 9 + [True] * 2 + [False] * 9)
    found = mcnemar(first, second)
    assert (found.both, found.only_first, found.only_second, found.neither) == (40, 9, 2, 9)
    assert found.difference == pytest.approx(-7 / 60)
    assert found.p_value == pytest.approx(2 * sum(math.comb(11, k) for k in range(3)) / 2**11)
    assert found.interval[0] < found.difference < found.interval[1]
    same = mcnemar(first, first)
    assert (same.difference, same.p_value) == (0, 1.0)


def test_mcnemar_of_many_images_does_not_overflow() -> None:
    first = np.arange(50_000) % 4 != 0
    second = np.arange(50_000) % 4 != 1
    assert mcnemar(first, second).p_value == 1.0
    second[:2000] = True
    # z = 500 / sqrt(24500) = 3.19 in the normal approximation.
    assert mcnemar(first, second).p_value == pytest.approx(0.0014, abs=1e-4)


@given(st.floats(-50, 50))
def test_students_tail_has_its_closed_forms(value: float) -> None:
    """Cauchy's distribution for one degree of freedom; Student's own formulas for two and four; symmetry for any."""
    assert student_tail(value, 1) == pytest.approx(0.5 - math.atan(value) / math.pi, abs=1e-12)
    assert student_tail(value, 2) == pytest.approx(0.5 - value / (2 * math.sqrt(2 + value * value)), abs=1e-12)
    sine = value / math.sqrt(4 + value * value)
    assert student_tail(value, 4) == pytest.approx(0.5 - (3 * sine - sine**3) / 4, abs=1e-12)
    for degrees in (3, 5, 9, 30):
        assert student_tail(-value, degrees) == pytest.approx(1 - student_tail(value, degrees), abs=1e-12)


def test_students_tail_is_the_published_table() -> None:
    # Abramowitz & Stegun 1964, table 26.10: 2.5 % points.
    for degrees, value in ((1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (9, 2.262), (30, 2.042), (120, 1.980)):
        assert student_tail(value, degrees) == pytest.approx(0.025, abs=2e-5)
