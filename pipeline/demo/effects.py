"""Means over seeds and what differs between them: intervals, shares of a ceiling, tests, power.

Values of two rows belong to the same seeds, so that differences are taken seed by seed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy.stats import nct
from scipy.stats import t as student

from pipeline.storage.records import Estimate

__all__ = ["estimate", "holm", "p_value", "power", "seeds_needed", "share", "spread"]

CONFIDENCE = 0.95

POWER = 0.8
"""The chance of finding a difference that `seeds_needed` asks for."""

MOST_SEEDS = 10_000


def _quantile(count: int) -> float:
    """The two-sided quantile of Student's t for the mean of a number of values."""
    return float(student.ppf(0.5 + CONFIDENCE / 2, count - 1))


def estimate(values: Sequence[float]) -> Estimate | None:
    """The mean of values and its 95 % interval by Student's t; one value has no interval."""
    if not values:
        return None
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Estimate(mean=mean, low=None, high=None)
    half = _quantile(len(values)) * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean=mean, low=mean - half, high=mean + half)


def share(effects: Sequence[float], whole: Sequence[float]) -> Estimate | None:
    """The ratio of two means of the same seeds, with its 95 % interval by Fieller's theorem.

    Args:
        effects: n differences of a row to the first.
        whole: n differences of the ceiling to the first.

    Returns:
        Their ratio. It has no interval where `whole` cannot be told from 0, or with one seed; it is
        None where the mean of `whole` is 0.
    """
    if not whole or statistics.fmean(whole) == 0:
        return None
    top, bottom = statistics.fmean(effects), statistics.fmean(whole)
    ratio, count = top / bottom, len(whole)
    if count == 1:
        return Estimate(mean=ratio, low=None, high=None)
    factor = _quantile(count) ** 2 / count
    a = bottom**2 - factor * statistics.variance(whole)
    b = top * bottom - factor * statistics.covariance(effects, whole)
    c = top**2 - factor * statistics.variance(effects)
    if a <= 0:
        return Estimate(mean=ratio, low=None, high=None)
    root = math.sqrt(max(b**2 - a * c, 0.0))
    return Estimate(mean=ratio, low=(b - root) / a, high=(b + root) / a)


def p_value(differences: Sequence[float]) -> float | None:
    """The two-sided p of a paired t-test; None for fewer than two seeds."""
    if len(differences) < 2:
        return None
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    if deviation == 0:
        return 1.0 if mean == 0 else 0.0
    t = abs(mean) * math.sqrt(len(differences)) / deviation
    return float(2 * student.sf(t, len(differences) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p of each of several comparisons after Holm's correction, in the same order.

    All that stay below 0.05 hold together: the chance that any of them is an accident is 5 %.
    """
    corrected = [0.0] * len(p_values)
    least = 0.0
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank, index in enumerate(order):
        least = max(least, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = least
    return corrected


def spread(values: Sequence[float]) -> float | None:
    """The standard deviation of differences over seeds; None for fewer than two."""
    return statistics.stdev(values) if len(values) > 1 else None


def power(difference: float, deviation: float, seeds: int) -> float:
    """The chance that a paired t-test at 5 % finds a difference, with a number of seeds.

    Args:
        difference: The true mean of the differences.
        deviation: Their standard deviation over seeds.
        seeds: The number of seeds.
    """
    if seeds < 2:
        return 0.0
    if deviation == 0:
        return float(difference != 0)
    freedom, noncentrality = seeds - 1, abs(difference) * math.sqrt(seeds) / deviation
    quantile = _quantile(seeds)
    upper, lower = (
        nct.sf(quantile, freedom, noncentrality),
        nct.cdf(-quantile, freedom, noncentrality),
    )
    # scipy gives nan for tails that are too far out to matter.
    return sum(float(tail) for tail in (upper, lower) if not math.isnan(tail))


def seeds_needed(difference: float, deviation: float) -> int | None:
    """The least number of seeds with which `power` reaches 80 %; None for more than 10,000."""
    if difference == 0:
        return None
    low, high = 1, 2
    while power(difference, deviation, high) < POWER:
        low, high = high, high * 2
        if high > 2 * MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        is_enough = power(difference, deviation, middle) >= POWER
        low, high = (low, middle) if is_enough else (middle, high)
    return high if high <= MOST_SEEDS else None
