"""The statistics of ablations, against known numbers and what must hold of any."""

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from pipeline.demo.effects import (
    estimate,
    holm,
    p_value,
    power,
    seeds_needed,
    share,
    spread,
)
from pipeline.storage.records import Estimate

numbers = st.lists(st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=3, max_size=8)
p_values = st.lists(st.floats(0, 1), max_size=8)


def test_an_interval_is_students():
    # The 97.5 % quantile of t with 2 degrees of freedom is 4.30265.
    found = estimate([1.0, 2.0, 3.0])
    assert found is not None and found.mean == 2
    assert found.low == pytest.approx(2 - 4.30265 / math.sqrt(3), abs=1e-4)
    assert found.high == pytest.approx(2 + 4.30265 / math.sqrt(3), abs=1e-4)
    assert estimate([5.0]) == Estimate(mean=5.0, low=None, high=None)
    assert estimate([]) is None


def test_p_is_that_of_the_paired_t_test():
    first, second = [0.61, 0.64, 0.58, 0.66, 0.60], [0.63, 0.64, 0.61, 0.69, 0.60]
    differences = [b - a for a, b in zip(first, second, strict=True)]
    assert p_value(differences) == pytest.approx(float(ttest_rel(second, first).pvalue))
    assert p_value([0.1]) is None
    assert (p_value([0.1, 0.1]), p_value([0.0, 0.0])) == (0.0, 1.0)


def test_holms_correction_of_a_known_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(p_values)
def test_a_correction_keeps_the_order_and_never_lowers_a_p(given):
    corrected = holm(given)
    for own, found in zip(given, corrected, strict=True):
        assert own <= found <= 1
    pairs = sorted(zip(given, corrected, strict=True))
    assert [found for _, found in pairs] == sorted(corrected)


@given(numbers)
def test_the_ceiling_is_the_whole_of_itself(whole):
    if statistics.fmean(whole) == 0:
        assert share(whole, whole) is None
        return
    found = share(whole, whole)
    assert found.mean == 1
    if found.low is not None:
        assert found.low == pytest.approx(1) and found.high == pytest.approx(1)


def test_the_interval_of_a_share_covers_it_as_often_as_it_says():
    rng, covered = random.Random(0), 0
    for _ in range(400):
        noise = [rng.gauss(0, 0.03) for _ in range(5)]
        whole = [0.4 + n + rng.gauss(0, 0.03) for n in noise]
        found = share([0.2 + n + rng.gauss(0, 0.03) for n in noise], whole)
        covered += found.low <= 0.5 <= found.high
    assert 0.92 <= covered / 400 <= 0.98


def test_a_share_of_what_may_be_nothing_has_no_interval():
    found = share([0.1, 0.2, 0.1], [0.3, -0.2, 0.1])
    assert found.mean == pytest.approx(2) and found.low is None
    assert share([], []) is None


def test_power_is_that_of_the_tables():
    # Cohen's d of 0.5 needs 34 pairs for a power of 0.8, d of 1 needs 10 (G*Power).
    assert seeds_needed(0.5, 1.0) == 34
    assert seeds_needed(-1.0, 1.0) == 10
    assert power(0.5, 1.0, 34) == pytest.approx(0.8, abs=0.01)
    assert power(0.0, 1.0, 10) == pytest.approx(0.05, abs=1e-6)
    assert (seeds_needed(0.0, 1.0), seeds_needed(1e-6, 1.0)) == (None, None)
    assert (power(0.1, 0.0, 3), power(0.1, 1.0, 1)) == (1.0, 0.0)
    assert power(5.0, 0.01, 5) == pytest.approx(1.0)
    assert spread([1.0, 3.0]) == pytest.approx(math.sqrt(2)) and spread([1.0]) is None
