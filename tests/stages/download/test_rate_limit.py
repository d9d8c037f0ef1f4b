from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from stages.download.rate_limit import Bucket

moments = st.lists(st.floats(0, 100), max_size=60).map(sorted)


@given(
    moments=moments,
    interval=st.sampled_from([0.01, 0.1, 1.0, 7.5]),
    burst=st.integers(1, 8),
    pauses=st.dictionaries(st.integers(0, 59), st.floats(0, 30), max_size=3),
)
def test_no_span_of_time_gets_more_than_its_burst_and_rate(
    moments: list[float], interval: float, burst: int, pauses: dict[int, float]
) -> None:
    bucket = Bucket(interval, burst)
    taken = []
    closed_until = 0.0
    for index, now in enumerate(moments):
        if index in pauses:
            closed_until = max(closed_until, now + pauses[index])
            bucket.pause(closed_until)
        if bucket.take(now) == 0:
            assert now >= closed_until - 1e-6
            taken.append(now)
    for first, last in itertools.combinations(range(len(taken)), 2):
        span = taken[last] - taken[first]
        assert last - first + 1 <= burst + span / interval + 1e-6


@given(moments=moments, burst=st.integers(1, 4))
def test_whoever_waits_as_long_as_told_gets_a_token(moments: list[float], burst: int) -> None:
    bucket = Bucket(2.0, burst)
    for now in moments:
        wait = bucket.take(now)
        assert 0 <= wait <= 2.0 + 1e-9
        if wait:
            assert bucket.take(now + wait + 1e-9) == 0
            return


def test_a_bucket_starts_with_its_burst_and_fills_up_to_it_again() -> None:
    bucket = Bucket(1.0, 3)
    assert [bucket.take(5.0) for _ in range(4)] == [0, 0, 0, 1.0]
    assert [bucket.take(6.0) for _ in range(2)] == [0, 1.0]
    assert [bucket.take(99.0) for _ in range(4)] == [0, 0, 0, 1.0]


def test_a_bucket_made_slower_gives_one_by_one_and_never_gets_faster() -> None:
    bucket = Bucket(0.1, 20)
    assert bucket.take(0.0) == 0
    bucket.slow(10.0)
    bucket.slow(2.0)
    assert [bucket.take(now) for now in (1.0, 2.0, 11.0)] == [0, 9.0, 0]


def test_without_a_limit_a_bucket_gives_and_can_still_be_paused() -> None:
    bucket = Bucket(0.0, 1)
    assert [bucket.take(1.0) for _ in range(1000)] == [0] * 1000
    bucket.pause(4.0)
    assert (bucket.take(3.0), bucket.take(4.0), bucket.take(4.0)) == (1.0, 0, 0)
