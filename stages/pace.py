"""When a host may be asked again, and much waiting on few threads.

What waits for one host never holds up what waits for another: it waits outside the threads.
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

__all__ = ["Bucket", "Frontier", "Pace", "Steps", "Wait"]

_MAX_BUCKETS = 10_000

T = TypeVar("T")


class Bucket:
    """A token bucket, as the generic cell rate algorithm keeps it (ITU-T I.371).

    Any span of `s` seconds gives out at most `burst` + `s` / `interval` tokens. Moments are those
    of one monotonic clock.

    Args:
        interval: Seconds in which a token comes; 0 for no limit.
        burst: The tokens it holds, and has at first.
    """

    def __init__(self, interval: float, burst: int) -> None:
        self.interval = interval
        self.burst = burst
        self._full = -math.inf  # the moment from which it holds `burst` tokens

    def take(self, now: float) -> float:
        """Take a token; or, if there is none, the seconds until there is one."""
        wait = self._full - (self.burst - 1) * self.interval - now
        if wait > 0:
            return wait
        self._full = max(self._full, now) + self.interval
        return 0.0

    def pause(self, until: float) -> None:
        """Give out nothing before a moment, and no burst after it."""
        self._full = max(self._full, until + (self.burst - 1) * self.interval)

    def slow(self, interval: float) -> None:
        """Give out tokens one by one, and no faster than this."""
        self._full -= (self.burst - 1) * self.interval  # the next token comes when it would have
        self.interval, self.burst = max(self.interval, interval), 1

    def is_full(self, now: float) -> bool:
        """Whether it is as good as new."""
        return self._full <= now


class Pace:
    """How fast each host is asked; one a worker, used by all its threads.

    Args:
        rate: Requests a second to one host; None for no limit.
        burst: Requests that a host may get at once after a rest.
        connections: Requests to one host at the same time; None for no limit.
        max_wait: Seconds that work waits for its turn before it is told that there is none for it.
            Only those count in which a thread has nothing else to do.
    """

    def __init__(
        self,
        *,
        rate: float | None = None,
        burst: int = 1,
        connections: int | None = None,
        max_wait: float = 300.0,
    ) -> None:
        self.connections = math.inf if connections is None else connections
        self.max_wait = max_wait
        self._interval = 1 / rate if rate else 0.0
        self._burst = burst
        self._lock = threading.Lock()
        self._buckets: dict[str, Bucket] = {}

    def take(self, host: str) -> float:
        """Take a turn at a host; or the seconds until there may be one."""
        now = time.monotonic()
        with self._lock:
            return self._bucket(host, now).take(now)

    def pause(self, host: str, seconds: float) -> None:
        """Ask a host nothing for some time."""
        now = time.monotonic()
        with self._lock:
            self._bucket(host, now).pause(now + seconds)

    def slow(self, host: str, seconds: float) -> None:
        """Leave at least so much time between two requests to a host."""
        now = time.monotonic()
        with self._lock:
            self._bucket(host, now).slow(seconds)

    def _bucket(self, host: str, now: float) -> Bucket:
        bucket = self._buckets.get(host)
        if bucket is None:
            if len(self._buckets) >= _MAX_BUCKETS:
                self._buckets = {
                    name: one
                    for name, one in self._buckets.items()
                    if one.interval > self._interval or not one.is_full(now)
                }
            bucket = self._buckets[host] = Bucket(self._interval, self._burst)
        return bucket


@dataclass(frozen=True, kw_only=True)
class Wait:
    """What must come before some work goes on: a turn at a host, or else a result or a moment.

    Attributes:
        host: Where a turn is wanted. The work is told whether it got it, and has it until it waits
            again or ends.
        future: Its end lets the work go on.
        until: The moment of the monotonic clock that lets it go on at the latest.
    """

    host: str | None = None
    future: Future[Any] | None = None
    until: float = math.inf


Steps: TypeAlias = Generator[Wait, bool | None, T]
"""Work in steps, with a `Wait` after each but the last; the answer to it is whether it was had."""


class _Line:
    """The work that waits for its turn at one host, in the order in which it came."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.waiting: deque[_Work] = deque()
        self.open = 0  # turns that are had
        self.is_scheduled = False


class _Work:
    def __init__(self, key: Any, steps: Steps[Any]) -> None:
        self.key = key
        self.steps = steps
        self.granted: bool | None = None
        self.line: _Line | None = None  # where it has a turn
        self.waits = 0  # how often it has waited: of two reasons to go on, the first counts
        self.until = math.inf  # the idle seconds at which it is told that there is no turn


class Frontier(Generic[T]):
    """Work in steps that threads take turns at: none of them waits for one piece of it.

    What has begun goes before what has not.

    Args:
        pace: How fast each host is asked.
    """

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._changed = threading.Condition()
        self._fresh: deque[_Work] = deque()
        self._lines: dict[str, _Line] = {}
        self._moments: list[tuple[float, int, _Line | tuple[_Work, int]]] = []
        self._order = itertools.count()
        self._unfinished = 0
        self._is_closed = False
        self._idlers = 0
        self._idle_since = 0.0
        self._idle = 0.0  # seconds in which a thread had nothing to do, the present ones left out

    def add(self, key: Any, steps: Steps[T]) -> None:
        """Add work under a name that `next` gives back."""
        with self._changed:
            self._fresh.append(_Work(key, steps))
            self._unfinished += 1
            self._changed.notify()

    def next(self) -> tuple[Any, T | Exception] | None:
        """Go on with whatever can go on, until a piece of work ends.

        Returns:
            Its name, and its result or what it raised; None if there is no more work.
        """
        while (work := self._take()) is not None:
            try:
                wait = work.steps.send(work.granted)
            except StopIteration as stop:
                self._leave(work)
                return work.key, stop.value
            except Exception as error:
                self._leave(work)
                return work.key, error
            self._park(work, wait)
        return None

    def close(self) -> None:
        """Give out no more work."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _take(self) -> _Work | None:
        with self._changed:
            while self._unfinished and not self._is_closed:
                now = time.monotonic()
                work = self._due(now) or (self._fresh.popleft() if self._fresh else None)
                if work is not None:
                    if work.until == math.inf:
                        work.until = self._idled(now) + self._pace.max_wait
                    return work
                self._idle, self._idle_since = self._idled(now), now
                self._idlers += 1
                self._changed.wait(self._moments[0][0] - now if self._moments else None)
                now = time.monotonic()
                self._idle, self._idle_since = self._idled(now), now
                self._idlers -= 1
            return None

    def _idled(self, now: float) -> float:
        """Seconds in which at least one thread had nothing to do."""
        return self._idle + (now - self._idle_since if self._idlers else 0.0)

    def _due(self, now: float) -> _Work | None:
        while self._moments and self._moments[0][0] <= now:
            _, _, what = heapq.heappop(self._moments)
            if isinstance(what, _Line):
                what.is_scheduled = False
                if (work := self._first(what, now)) is not None:
                    return work
            elif what[0].waits == what[1]:
                what[0].waits += 1
                what[0].granted = None
                return what[0]
        return None

    def _first(self, line: _Line, now: float) -> _Work | None:
        """The first of a line, if it has its turn or none will come for it in time."""
        if not line.waiting:
            return None
        work = line.waiting[0]
        work.granted = False
        patience = work.until - self._idled(now)
        if patience > 0:
            if line.open >= self._pace.connections:
                return None
            wait = self._pace.take(line.host)
            if 0 < wait <= patience:
                self._schedule(line, now + wait)
                return None
            work.granted = wait <= 0
        line.waiting.popleft()
        if work.granted:
            work.line = line
            line.open += 1
        if line.waiting:
            self._schedule(line, now)
        return work

    def _park(self, work: _Work, wait: Wait) -> None:
        with self._changed:
            self._let_go(work)
            if wait.host is not None:
                line = self._lines.setdefault(wait.host, _Line(wait.host))
                line.waiting.append(work)
                self._schedule(line, 0.0)
                return
            waits = work.waits
            self._push(wait.until, (work, waits))
        if wait.future is not None:
            wait.future.add_done_callback(lambda _: self._wake(work, waits))

    def _wake(self, work: _Work, waits: int) -> None:
        with self._changed:
            self._push(0.0, (work, waits))

    def _leave(self, work: _Work) -> None:
        with self._changed:
            self._let_go(work)
            self._unfinished -= 1
            if not self._unfinished:
                self._changed.notify_all()

    def _let_go(self, work: _Work) -> None:
        """Give back the turn that work has."""
        line, work.line = work.line, None
        if line is not None:
            line.open -= 1
            if line.waiting:
                self._schedule(line, 0.0)
            elif not line.open:
                self._lines.pop(line.host, None)

    def _schedule(self, line: _Line, moment: float) -> None:
        if not line.is_scheduled:
            line.is_scheduled = True
            self._push(moment, line)

    def _push(self, moment: float, what: _Line | tuple[_Work, int]) -> None:
        if moment < math.inf:
            heapq.heappush(self._moments, (moment, next(self._order), what))
            self._changed.notify()
