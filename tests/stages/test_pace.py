from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.pace import Bucket, Frontier, Pace, Steps, Wait

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


def ended(frontier: Frontier[Any], threads: int = 1) -> list[tuple[Any, Any]]:
    """What comes of all the work, in the order in which it ends."""
    found: list[tuple[Any, Any]] = []

    def work() -> None:
        while (one := frontier.next()) is not None:
            found.append(one)

    with ThreadPoolExecutor(threads) as pool:
        for one in [pool.submit(work) for _ in range(threads)]:
            one.result()
    return found


def visit(host: str, meanwhile: Callable[[], object] = lambda: None) -> Steps[bool | None]:
    granted = yield Wait(host=host)
    if granted:
        meanwhile()
    return granted


def test_what_waits_for_one_host_holds_up_no_other() -> None:
    frontier: Frontier[bool | None] = Frontier(Pace(rate=1.0, max_wait=1.5))
    for index in range(40):
        frontier.add(("slow", index), visit("slow.test"))
    for index in range(40):
        frontier.add(("other", index), visit(f"{index}.test"))
    found = ended(frontier)
    turns = {key for key, granted in found if granted}
    first = {("slow", 0), *(("other", index) for index in range(40))}
    assert {key for key, _ in found[:41]} == first
    assert turns == first | {("slow", 1)}
    assert len(found) == 80


def test_a_host_has_no_more_turns_at_once_than_connections() -> None:
    lock = threading.Lock()
    now, most = 0, 0

    def meanwhile() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.002)
        with lock:
            now -= 1

    frontier: Frontier[bool | None] = Frontier(Pace(connections=3))
    for index in range(60):
        frontier.add(index, visit("one.test", meanwhile))
    assert all(granted for _, granted in ended(frontier, threads=12))
    assert most == 3


def test_a_host_that_is_paused_for_too_long_is_given_up_at_once() -> None:
    pace = Pace(max_wait=30.0)
    pace.pause("away.test", 3600.0)
    frontier: Frontier[bool | None] = Frontier(pace)
    for index in range(3):
        frontier.add(index, visit("away.test"))
    assert ended(frontier) == [(0, False), (1, False), (2, False)]


def test_busy_threads_use_up_no_patience() -> None:
    frontier: Frontier[bool | None] = Frontier(Pace(rate=50.0, max_wait=0.2))
    for index in range(20):
        frontier.add(index, visit("one.test", lambda: time.sleep(0.03)))
    assert [granted for _, granted in ended(frontier)] == [True] * 20


def test_a_result_or_a_moment_lets_work_go_on_just_once() -> None:
    future: Future[str] = Future()

    def waiter(until: float) -> Steps[str]:
        yield Wait(future=future, until=time.monotonic() + until)
        found = future.result() if future.done() else "too late"
        yield Wait(until=time.monotonic() + 0.2)  # an old reason must not end this one
        return found

    def finder() -> Steps[str]:
        yield Wait(until=time.monotonic() + 0.1)
        future.set_result("found")
        return "finder"

    frontier: Frontier[str] = Frontier(Pace())
    frontier.add("patient", waiter(60))
    frontier.add("just", waiter(0.15))
    frontier.add("hasty", waiter(0))
    frontier.add("finder", finder())
    assert dict(ended(frontier, threads=2)) == {
        "patient": "found",
        "just": "found",
        "hasty": "too late",
        "finder": "finder",
    }


def test_what_fails_ends_with_its_error() -> None:
    def broken() -> Steps[None]:
        yield Wait(host="a.test")
        raise OSError("no")

    frontier: Frontier[None] = Frontier(Pace(connections=1))
    frontier.add(0, broken())
    frontier.add(1, broken())
    assert [(key, str(error)) for key, error in ended(frontier)] == [(0, "no"), (1, "no")]


@pytest.mark.parametrize("threads", [1, 4])
def test_a_closed_frontier_lets_its_threads_go(threads: int) -> None:
    frontier: Frontier[None] = Frontier(Pace())
    frontier.add(0, iter_forever())
    with ThreadPoolExecutor(threads) as pool:
        waiting = [pool.submit(frontier.next) for _ in range(threads)]
        frontier.close()
        assert [one.result(10) for one in waiting] == [None] * threads


def iter_forever() -> Steps[None]:
    yield Wait(until=time.monotonic() + 3600)


hosts = st.lists(st.sampled_from(["a", "b", "", "c"]), max_size=4)


@settings(max_examples=40, deadline=None)
@given(
    works=st.lists(hosts, max_size=25),
    threads=st.integers(1, 4),
    rate=st.sampled_from([None, 500.0]),
    connections=st.sampled_from([None, 1, 2]),
)
def test_all_work_ends_once(
    works: list[list[str]], threads: int, rate: float | None, connections: int | None
) -> None:
    def steps(stops: list[str]) -> Steps[int]:
        for stop in stops:
            yield Wait(host=stop) if stop else Wait(until=time.monotonic())
        return len(stops)

    frontier: Frontier[int] = Frontier(Pace(rate=rate, burst=2, connections=connections))
    for index, stops in enumerate(works):
        frontier.add(index, steps(stops))
    assert sorted(ended(frontier, threads)) == [(i, len(one)) for i, one in enumerate(works)]
