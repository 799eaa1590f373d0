"""Statistics of classification results: confidence intervals, calibration, paired tests. NumPy only."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054
"""Half-width of a 95 % interval in standard deviations of a normal variable."""


def wilson(successes: int, trials: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's interval (1927) of a proportion, both ends in 0..1; its coverage holds near 0 and 1 too.

    Returns NaNs for no trials.
    """
    if trials == 0:
        return math.nan, math.nan
    proportion = successes / trials
    scale = 1 + z * z / trials
    middle = (proportion + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(proportion * (1 - proportion) / trials + z * z / (4 * trials * trials))
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    high = 1.0 if successes == trials else min(1.0, middle + half)
    return low, high


def calibration_error(confidence: NDArray[np.floating], correct: NDArray[np.bool_], bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599): mean of |accuracy - confidence| over bins.

    Args:
        confidence: Probability of the most probable class, (n,) in 0..1.
        correct: Whether it was right, (n,).
        bins: Number of equal bins of 0..1.
    """
    if len(confidence) == 0:
        return math.nan
    index = np.clip(np.ceil(confidence.astype(np.float64) * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(index, weights=correct - confidence.astype(np.float64), minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


class Paired(NamedTuple):
    """The comparison of two classifiers on the same images.

    Attributes:
        both, only_first, only_second, neither: Images that they classify correctly.
        difference: Accuracy of the second minus that of the first, in 0..1, with the 95 % `interval`.
        p_value: Of McNemar's exact test, two-sided: the probability, if both were equally good, of a split at least as
            uneven of the images that only one of them classifies correctly.
    """

    both: int
    only_first: int
    only_second: int
    neither: int
    difference: float
    interval: tuple[float, float]
    p_value: float


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Paired:
    """McNemar's test (1947), exact, of two classifiers' right answers on the same images, bool (n,) each.

    The interval is the paired one of Agresti & Min (2005): Wald's with half an image more in each of the four counts.
    """
    n = len(first)
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    b, c, m = only_first + 0.5, only_second + 0.5, n + 2
    middle, half = (c - b) / m, Z95 * math.sqrt(b + c - (c - b) ** 2 / m) / m
    return Paired(
        both,
        only_first,
        only_second,
        neither,
        (only_second - only_first) / n if n else math.nan,
        (max(-1.0, middle - half), min(1.0, middle + half)),
        _two_sided(min(only_first, only_second), only_first + only_second),
    )


def _two_sided(fewer: int, trials: int) -> float:
    """Probability that `trials` tosses of a fair coin split at least as unevenly as `fewer` to the rest."""
    if trials == 0:
        return 1.0
    log_total = math.lgamma(trials + 1) - trials * math.log(2)
    tail = math.fsum(math.exp(log_total - math.lgamma(k + 1) - math.lgamma(trials - k + 1)) for k in range(fewer + 1))
    return min(1.0, 2 * tail)


def student_tail(value: float, degrees: int) -> float:
    """Probability that a variable of Student's distribution is `value` or more, for 1 or more degrees of freedom.

    The finite series for whole degrees of freedom (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4).
    """
    angle = math.atan(value / math.sqrt(degrees))
    odd, sine, square = degrees % 2, math.sin(angle), math.cos(angle) ** 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for k in range(1 + odd, degrees, 2):  # k = degrees has no term
        total += term
        term *= square * k / (k + 1)
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return (1 - inside) / 2
