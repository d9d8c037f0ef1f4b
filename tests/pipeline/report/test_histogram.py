import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.report.histogram import MOST_BINS, GrowingHistogram

NUMBERS = st.floats(-1e12, 1e12).map(lambda value: round(value, 20)) | st.sampled_from([0.0, 0.5])


@given(st.lists(st.lists(NUMBERS, max_size=9), max_size=6), st.randoms())
def test_counts_are_exact_and_the_same_in_any_order(parts, rng):
    def counted(parts):
        found = GrowingHistogram("all", "even", is_whole=False)
        for part in parts:
            found.add("all", np.array(part, float))
            found.add("even", np.array(part, float)[::2])
        return found.histogram()

    whole = counted(parts)
    values = [value for part in parts for value in part]
    if not values:
        assert whole is None
        return
    assert 1 <= len(whole.edges) - 1 <= MOST_BINS
    assert whole.edges[0] <= min(values) and max(values) < whole.edges[-1]
    for (low, high), number in zip(
        itertools.pairwise(whole.edges), whole.series["all"], strict=True
    ):
        assert number == sum(low <= value < high for value in values)
    assert sum(whole.series["even"]) == sum(len(part[::2]) for part in parts)
    assert counted(rng.sample(parts, len(parts))) == whole


@given(st.lists(st.floats()))
@example([-5e-324, 39.0])
def test_any_number_but_the_very_largest_is_counted(values):
    found = GrowingHistogram("all", is_whole=False)
    for value in values:
        found.add("all", np.array([value]))
    number = sum(abs(value) < 2.0**1000 for value in values)
    whole = found.histogram()
    if whole is None:
        assert number == 0
        return
    assert whole.total == number
    assert len(set(whole.edges)) == len(whole.edges) <= MOST_BINS + 1


@pytest.mark.parametrize(
    ("values", "edges"),
    [
        ([3, 5], [3, 4, 5, 6]),
        ([0, 0], [0, 1]),
        ([-2, 1], [-2, -1, 0, 1, 2]),
    ],
)
def test_bins_of_whole_numbers_are_not_narrower_than_one(values, edges):
    found = GrowingHistogram("all", is_whole=True)
    found.add("all", np.array(values, float))
    assert found.histogram().edges == edges


def test_bins_grow_with_the_range():
    found = GrowingHistogram("all", is_whole=True)
    found.add("all", np.arange(40.0))
    assert np.diff(found.histogram().edges).tolist() == [1] * 40
    found.add("all", np.array([40.0]))
    assert np.diff(found.histogram().edges).tolist() == [2] * 21
    assert found.histogram().series["all"] == [2] * 20 + [1]
