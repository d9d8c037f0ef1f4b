"""Visits to hosts, by a clock that tests turn."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.download.frontier import Frontier, Steps, Wait
from stages.download.rate_limit import RateLimit


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def ended(frontier: Frontier[Any, Any], clock: Clock, busy: float = 0.0) -> list[tuple[Any, Any]]:
    """What comes of all visits, in the order in which they end; each step takes `busy` seconds."""
    return list(_ended(frontier, clock, busy))


def _ended(frontier: Frontier[Any, Any], clock: Clock, busy: float) -> Iterator[tuple[Any, Any]]:
    while len(frontier):
        visit = frontier.next()
        if visit is None:
            seconds = frontier.seconds()
            assert seconds is not None, "nothing will ever be due"
            clock.now += seconds
            frontier.idle += seconds
            continue
        try:
            wait = visit.steps.send(visit.answer)
        except StopIteration as stop:
            frontier.leave(visit)
            yield visit.key, stop.value
        else:
            frontier.park(visit, wait)
        clock.now += busy


def visit(host: str) -> Steps[bool]:
    granted: bool = yield Wait(host=host)
    return granted


def test_what_waits_for_one_host_holds_up_no_other(clock: Clock) -> None:
    frontier: Frontier[tuple[str, int], bool] = Frontier(RateLimit(rate=1.0, max_wait=1.5))
    for index in range(40):
        frontier.add(("slow", index), "a URL", visit("slow.test"))
    for index in range(40):
        frontier.add(("other", index), "a URL", visit(f"{index}.test"))
    found = ended(frontier, clock)
    turns = {key for key, granted in found if granted}
    first = {("slow", 0), *(("other", index) for index in range(40))}
    assert {key for key, _ in found[:41]} == first
    assert turns == first | {("slow", 1)}
    assert len(found) == 80


def test_a_host_has_no_more_turns_at_once_than_connections(clock: Clock) -> None:
    most, now = 0, 0

    def stay() -> Steps[bool]:
        nonlocal most, now
        granted: bool = yield Wait(host="one.test")
        now += 1
        most = max(most, now)
        future: Future[None] = Future()
        held.append(future)
        # A turn is had until the next wait; a request, which this stands for, is none.
        yield from pending(future)
        now -= 1
        return granted

    def pending(future: Future[None]) -> Steps[None]:
        while not future.done():
            yield "request"  # type: ignore[misc]

    held: list[Future[None]] = []
    frontier: Frontier[int, bool] = Frontier(RateLimit(connections=3))
    for index in range(12):
        frontier.add(index, "a URL", stay())
    done, under_way = [], []
    while len(frontier):
        while (one := frontier.next()) is not None:
            wanted = one.steps.send(one.answer)
            if isinstance(wanted, Wait):
                frontier.park(one, wanted)
            else:
                under_way.append(one)
        assert len(under_way) == min(3, len(frontier))
        one = under_way.pop()
        for future in held:
            if not future.done():
                future.set_result(None)
                break
        for other in [one, *under_way]:
            try:
                other.steps.send(None)
            except StopIteration as stop:
                frontier.leave(other)
                done.append((other.key, stop.value))
                under_way = [each for each in [one, *under_way] if each is not other]
                break
    assert sorted(done) == [(index, True) for index in range(12)]
    assert most == 3


def test_a_host_that_is_paused_for_too_long_is_given_up_at_once(clock: Clock) -> None:
    limit = RateLimit(max_wait=30.0)
    limit.pause("away.test", 3600.0)
    frontier: Frontier[int, bool] = Frontier(limit)
    for index in range(3):
        frontier.add(index, "a URL", visit("away.test"))
    assert ended(frontier, clock) == [(0, False), (1, False), (2, False)]
    assert clock.now == 1000.0


def test_busy_seconds_use_up_no_patience(clock: Clock) -> None:
    frontier: Frontier[int, bool] = Frontier(RateLimit(rate=50.0, max_wait=0.2))
    for index in range(20):
        frontier.add(index, "a URL", visit("one.test"))
    assert [granted for _, granted in ended(frontier, clock, busy=0.03)] == [True] * 20


def test_a_result_or_a_time_lets_a_visit_go_on_just_once(clock: Clock) -> None:
    future: Future[str] = Future()

    def waiter(until: float) -> Steps[str]:
        yield Wait(future=future, until=clock.now + until)
        found = future.result() if future.done() else "too late"
        yield Wait(until=clock.now + 0.2)  # an old reason must not end this one
        assert clock.now - 0.2 >= started + min(until, 0.1) - 1e-9
        return found

    def finder() -> Steps[str]:
        yield Wait(until=clock.now + 0.1)
        future.set_result("found")
        return "finder"

    started = clock.now
    frontier: Frontier[str, str] = Frontier(RateLimit())
    frontier.add("patient", "a URL", waiter(60))
    frontier.add("just", "a URL", waiter(0.15))
    frontier.add("hasty", "a URL", waiter(0))
    frontier.add("finder", "a URL", finder())
    assert dict(ended(frontier, clock)) == {
        "patient": "found",
        "just": "found",
        "hasty": "too late",
        "finder": "finder",
    }


hosts = st.lists(st.sampled_from(["a", "b", "", "c"]), max_size=4)


@settings(max_examples=60, deadline=None)
@given(
    works=st.lists(hosts, max_size=25),
    rate=st.sampled_from([None, 500.0]),
    connections=st.sampled_from([None, 1, 2]),
)
def test_all_visits_end_once(
    works: list[list[str]], rate: float | None, connections: int | None
) -> None:
    def steps(stops: list[str]) -> Steps[int]:
        for stop in stops:
            yield Wait(host=stop) if stop else Wait(until=clock.now)
        return len(stops)

    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", clock)
        frontier: Frontier[int, int] = Frontier(
            RateLimit(rate=rate, burst=2, connections=connections)
        )
        for index, one in enumerate(works):
            frontier.add(index, "a URL", steps(one))
        found = ended(frontier, clock)
    assert sorted(found) == [(index, len(one)) for index, one in enumerate(works)]
