import numpy as np
import pyarrow as pa
from helpers.runs import with_nulls
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.frequent import Frequent
from pipeline.report.health import variety
from pipeline.report.thresholds import CLEAN, DEDUP, thresholds
from pipeline.results.sampling import Smallest
from stages.clean import CleanConfig, CleanStage
from stages.dedup import DedupStage


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


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 900)), min_size=1, max_size=30))
def test_a_border_lies_between_what_a_rule_rejects_and_what_it_keeps(measures):
    stage = CleanStage(CleanConfig(preset="flamingo", languages=()))
    words, sides = zip(*measures, strict=True)
    table = with_nulls(
        stage.writes,
        len(words),
        text=["a text"] * len(words),
        text_words=list(words),
        image_width=list(sides),
        image_height=[1000] * len(words),
        image_aspect=[1.0] * len(words),
    )
    bits = stage.fired(table)
    for border in thresholds(stage, table):
        fired = bits >> list(stage.reasons).index(border.reason) & 1 == 1
        assert not np.isnan(border.values[fired]).any()
        if border.limit is None or not fired.any():
            continue
        is_least = border.name.startswith("min")
        over = (
            border.values[fired] < border.limit if is_least else border.values[fired] > border.limit
        )
        assert over.all()


def test_every_reason_with_a_border_is_one_of_its_stage():
    assert set(CLEAN) <= set(CleanStage.reasons)
    assert set(DEDUP) <= set(DedupStage.reasons)
    for field, *columns in CLEAN.values():
        assert field in CleanConfig().limits
        for column in columns:
            assert column.format(counts="text") in CleanStage.writes.names
    for field, column in DEDUP.values():
        assert hasattr(DedupStage.config_type, field)
        assert column in DedupStage.summary.names


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
