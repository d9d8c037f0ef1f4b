"""The URLs that wait to be asked, in the order in which they may be."""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from stages.download.rate_limit import RateLimit
from stages.download.transfers import Request

__all__ = ["Frontier", "Steps", "Visit", "Wait"]

K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Wait:
    """What a visit waits for: its turn at a host, or else a result or a time.

    Attributes:
        host: Where a turn is wanted. The visit is told whether it got it, and has it until it
            waits again or ends.
        future: Its end lets the visit go on.
        until: The time of the monotonic clock at which it goes on at the latest.
    """

    host: str | None = None
    future: Future[Any] | None = None
    until: float = math.inf


Steps: TypeAlias = Generator[Wait | Request, Any, T]
"""A visit in steps: each ends with what it waits for, or with a request whose response is sent."""


class Visit(Generic[K, T]):
    """One URL on its way.

    Attributes:
        key: What it was added under.
        name: What it is called in a log.
        steps: The rest of its way.
        answer: What its next step is told.
    """

    def __init__(self, key: K, name: str, steps: Steps[T]) -> None:
        self.key = key
        self.name = name
        self.steps = steps
        self.answer: Any = None
        self.line: _Line[K, T] | None = None  # where it has a turn
        self.waits = 0  # how often it has waited: of two reasons to go on, the first counts
        self.until = math.inf  # the idle seconds at which it is told that there is no turn


class _Line(Generic[K, T]):
    """The visits that wait for their turn at one host, in the order in which they came."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.waiting: deque[Visit[K, T]] = deque()
        self.open = 0  # turns that are had
        self.is_scheduled = False


class Frontier(Generic[K, T]):
    """Says which visit goes on next; what waits for one host holds up no other.

    A visit that has begun goes before one that has not. For one thread.

    Args:
        limit: How fast each host may be asked.

    Attributes:
        idle: Seconds in which a visit could have gone on and none was due, as its user counts
            them. The patience of a visit (`RateLimit.max_wait`) is counted in these.
    """

    def __init__(self, limit: RateLimit) -> None:
        self.idle = 0.0
        self._limit = limit
        self._fresh: deque[Visit[K, T]] = deque()
        self._lines: dict[str, _Line[K, T]] = {}
        self._times: list[tuple[float, int, _Line[K, T] | tuple[Visit[K, T], int]]] = []
        self._order = itertools.count()
        self._unfinished = 0

    def __len__(self) -> int:
        """How many visits have not ended."""
        return self._unfinished

    def add(self, key: K, name: str, steps: Steps[T]) -> None:
        """Add a visit."""
        self._fresh.append(Visit(key, name, steps))
        self._unfinished += 1

    def next(self) -> Visit[K, T] | None:
        """The visit that may go on, or None if none is due."""
        visit = self._due(time.monotonic())
        if visit is None and self._fresh:
            visit = self._fresh.popleft()
        if visit is not None and visit.until == math.inf:
            visit.until = self.idle + self._limit.max_wait
        return visit

    def seconds(self) -> float | None:
        """Seconds until a visit may be due; None if only a response or a result makes one so."""
        if self._fresh:
            return 0.0
        return max(0.0, self._times[0][0] - time.monotonic()) if self._times else None

    def park(self, visit: Visit[K, T], wait: Wait) -> None:
        """Let a visit wait."""
        self._let_go(visit)
        visit.answer = None
        if wait.host is not None:
            line = self._lines.setdefault(wait.host, _Line(wait.host))
            line.waiting.append(visit)
            self._schedule(line, 0.0)
            return
        waits = visit.waits
        self._push(wait.until, (visit, waits))
        if wait.future is not None:
            wait.future.add_done_callback(lambda _: self._push(0.0, (visit, waits)))

    def leave(self, visit: Visit[K, T]) -> None:
        """Take note that a visit has ended."""
        self._let_go(visit)
        self._unfinished -= 1

    def _due(self, now: float) -> Visit[K, T] | None:
        while self._times and self._times[0][0] <= now:
            _, _, what = heapq.heappop(self._times)
            if isinstance(what, _Line):
                what.is_scheduled = False
                if (visit := self._first(what, now)) is not None:
                    return visit
            elif what[0].waits == what[1]:
                what[0].waits += 1
                return what[0]
        return None

    def _first(self, line: _Line[K, T], now: float) -> Visit[K, T] | None:
        """The first of a line, if it has its turn or none will come for it in time."""
        if not line.waiting:
            return None
        visit = line.waiting[0]
        granted = False
        patience = visit.until - self.idle
        if patience > 0:
            if line.open >= self._limit.connections:
                return None
            wait = self._limit.take(line.host)
            if 0 < wait <= patience:
                self._schedule(line, now + wait)
                return None
            granted = wait <= 0
        line.waiting.popleft()
        visit.answer = granted
        if granted:
            visit.line = line
            line.open += 1
        if line.waiting:
            self._schedule(line, now)
        return visit

    def _let_go(self, visit: Visit[K, T]) -> None:
        """Give back the turn that a visit has."""
        line, visit.line = visit.line, None
        if line is not None:
            line.open -= 1
            if line.waiting:
                self._schedule(line, 0.0)
            elif not line.open:
                self._lines.pop(line.host, None)

    def _schedule(self, line: _Line[K, T], moment: float) -> None:
        if not line.is_scheduled:
            line.is_scheduled = True
            self._push(moment, line)

    def _push(self, moment: float, what: _Line[K, T] | tuple[Visit[K, T], int]) -> None:
        if moment < math.inf:
            heapq.heappush(self._times, (moment, next(self._order), what))
