import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.frequent_texts import Frequent
from pipeline.report.health import variety
from pipeline.results.sampling import Smallest


def test_variety_counts_distinct_texts_words_and_stammers():
    found = variety(["dai dai dai", "A dog.", "a dog", "the cat"])
    assert found["unique"] == 3 / 4
    assert found["repeated"] == 1 / 4
    assert found["distinct_1"] == 5 / 9
    assert found["words"] == 9 / 4


def test_the_smallest_ranks_win_in_whatever_order_they_come():
    ranks = np.random.default_rng(0).permutation(1000).astype(np.uint64)
    whole, parts = Smallest(7), Smallest(7)
    whole.offer(ranks, lambda n: int(ranks[n]))
    for start in (500, 0, 250, 750):
        part = ranks[start : start + 250]
        parts.offer(part, lambda n, part=part: int(part[n]))
    assert whole.values == parts.values == list(range(7))


def test_what_is_nearest_comes_first_whatever_its_rank():
    found = Smallest(2)
    for part in ([3, 0, 4], [2, 1, 5]):
        ranks = np.array(part, np.uint64)
        found.offer(ranks, lambda n, part=part: part[n], abs(np.array(part, float) - 3.4))
    assert found.values == [3, 4]


@given(st.lists(st.lists(st.sampled_from("abcdefghijkl")), max_size=8), st.integers(1, 6))
def test_frequent_texts_are_found_in_bounded_memory(parts, size):
    found = Frequent(size)
    for part in parts:
        found.add(pa.array(part, pa.string()))
    whole = [text for part in parts for text in part]
    counts = {text: whole.count(text) for text in whole}
    assert found.missed <= len(whole) / (size + 1)
    if len(counts) <= 2 * size:
        assert found.missed == 0
    told = dict(found.most(len(counts)))
    assert len(told) <= 2 * size
    for text, number in counts.items():
        assert number - found.missed <= told.get(text, 1) or number <= found.missed + 1
        assert told.get(text, 0) <= number
    numbers = [number for _, number in found.most(3)]
    assert numbers == sorted(numbers, reverse=True)
