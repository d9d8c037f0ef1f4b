"""Schedules visits to URLs under the rate limit of each host."""

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
    """What a visit waits for: its turn at a host, or else a future or a time.

    A turn is the permission to send requests to a host.

    Attributes:
        host: Host at which a turn is wanted. The visit receives whether it got the turn, and keeps
            it until it waits again or ends.
        future: The visit continues when this future is done.
        until: Time of the monotonic clock at which the visit continues at the latest.
    """

    host: str | None = None
    future: Future[Any] | None = None
    until: float = math.inf


Steps: TypeAlias = Generator[Wait | Request, Any, T]
"""The steps of a visit: a generator that yields waits and requests, and receives their results."""


class Visit(Generic[K, T]):
    """The fetching of one URL.

    Attributes:
        key: The key it was added with.
        name: Its name in logs.
        steps: Its remaining steps.
        answer: The value to send to its next step.
    """

    def __init__(self, key: K, name: str, steps: Steps[T]) -> None:
        self.key = key
        self.name = name
        self.steps = steps
        self.answer: Any = None
        self.queue: _HostQueue[K, T] | None = None  # the host at which it has a turn
        self.waits = 0  # number of finished waits; the first of two wake-ups ends a wait
        self.until = math.inf  # idle seconds at which it is refused a turn


class _HostQueue(Generic[K, T]):
    """The visits that wait for their turn at one host, first come, first served."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.waiting: deque[Visit[K, T]] = deque()
        self.open = 0  # turns in use
        self.is_scheduled = False


class Frontier(Generic[K, T]):
    """Chooses the visit that continues next; a slow host does not delay visits to others.

    Visits that have begun come before those that have not. Not thread-safe.

    Args:
        limit: The rate limits of hosts.

    Attributes:
        idle: Seconds in which a visit could have continued but none was due, counted by the
            caller. `RateLimit.max_wait` is measured in these.
    """

    def __init__(self, limit: RateLimit) -> None:
        self.idle = 0.0
        self._limit = limit
        self._fresh: deque[Visit[K, T]] = deque()
        self._queues: dict[str, _HostQueue[K, T]] = {}
        self._times: list[tuple[float, int, _HostQueue[K, T] | tuple[Visit[K, T], int]]] = []
        self._order = itertools.count()
        self._unfinished = 0

    def __len__(self) -> int:
        """Number of visits that have not ended."""
        return self._unfinished

    def add(self, key: K, name: str, steps: Steps[T]) -> None:
        """Add a visit."""
        self._fresh.append(Visit(key, name, steps))
        self._unfinished += 1

    def next(self) -> Visit[K, T] | None:
        """Return a visit that may continue, or None if none is due."""
        visit = self._due(time.monotonic())
        if visit is None and self._fresh:
            visit = self._fresh.popleft()
        if visit is not None and visit.until == math.inf:
            visit.until = self.idle + self._limit.max_wait
        return visit

    def seconds(self) -> float | None:
        """Return the seconds until a visit may be due; None if it depends on a response."""
        if self._fresh:
            return 0.0
        return max(0.0, self._times[0][0] - time.monotonic()) if self._times else None

    def park(self, visit: Visit[K, T], wait: Wait) -> None:
        """Make a visit wait."""
        self._release(visit)
        visit.answer = None
        if wait.host is not None:
            queue = self._queues.setdefault(wait.host, _HostQueue(wait.host))
            queue.waiting.append(visit)
            self._schedule(queue, 0.0)
            return
        waits = visit.waits
        self._push(wait.until, (visit, waits))
        if wait.future is not None:
            wait.future.add_done_callback(lambda _: self._push(0.0, (visit, waits)))

    def leave(self, visit: Visit[K, T]) -> None:
        """End a visit."""
        self._release(visit)
        self._unfinished -= 1

    def _due(self, now: float) -> Visit[K, T] | None:
        while self._times and self._times[0][0] <= now:
            _, _, entry = heapq.heappop(self._times)
            if isinstance(entry, _HostQueue):
                entry.is_scheduled = False
                if (visit := self._first(entry, now)) is not None:
                    return visit
            elif entry[0].waits == entry[1]:
                entry[0].waits += 1
                return entry[0]
        return None

    def _first(self, queue: _HostQueue[K, T], now: float) -> Visit[K, T] | None:
        """Return the first visit of a queue if it gets its turn, or cannot get it in time."""
        if not queue.waiting:
            return None
        visit = queue.waiting[0]
        granted = False
        patience = visit.until - self.idle
        if patience > 0:
            if queue.open >= self._limit.connections:
                return None
            wait = self._limit.take(queue.host)
            if 0 < wait <= patience:
                self._schedule(queue, now + wait)
                return None
            granted = wait <= 0
        queue.waiting.popleft()
        visit.answer = granted
        if granted:
            visit.queue = queue
            queue.open += 1
        if queue.waiting:
            self._schedule(queue, now)
        return visit

    def _release(self, visit: Visit[K, T]) -> None:
        """Release the turn of a visit."""
        queue, visit.queue = visit.queue, None
        if queue is not None:
            queue.open -= 1
            if queue.waiting:
                self._schedule(queue, 0.0)
            elif not queue.open:
                self._queues.pop(queue.host, None)

    def _schedule(self, queue: _HostQueue[K, T], moment: float) -> None:
        if not queue.is_scheduled:
            queue.is_scheduled = True
            self._push(moment, queue)

    def _push(self, moment: float, entry: _HostQueue[K, T] | tuple[Visit[K, T], int]) -> None:
        if moment < math.inf:
            heapq.heappush(self._times, (moment, next(self._order), entry))
