"""How fast each host may be asked."""

from __future__ import annotations

import math
import time

__all__ = ["Bucket", "RateLimit"]

_MAX_BUCKETS = 10_000


class Bucket:
    """A token bucket, kept by the generic cell rate algorithm (ITU-T I.371).

    Any span of `s` seconds gives out at most `burst` + `s` / `interval` tokens. Times are seconds
    of one monotonic clock.

    Args:
        interval: Seconds in which a token comes; 0 for no limit.
        burst: The tokens it holds, and has at first.
    """

    def __init__(self, interval: float, burst: int) -> None:
        self.interval = interval
        self.burst = burst
        self._full = -math.inf  # the time from which it holds `burst` tokens

    def take(self, now: float) -> float:
        """Take a token; or, if there is none, return the seconds until there is one."""
        wait = self._full - (self.burst - 1) * self.interval - now
        if wait > 0:
            return wait
        self._full = max(self._full, now) + self.interval
        return 0.0

    def pause(self, until: float) -> None:
        """Give out nothing before a time, and no burst after it."""
        self._full = max(self._full, until + (self.burst - 1) * self.interval)

    def slow(self, interval: float) -> None:
        """Give out tokens one by one, and no faster than this."""
        self._full -= (self.burst - 1) * self.interval  # the next token comes when it would have
        self.interval, self.burst = max(self.interval, interval), 1

    def is_full(self, now: float) -> bool:
        """Whether it is as good as new."""
        return self._full <= now


class RateLimit:
    """How fast each host may be asked by one worker.

    Args:
        rate: Requests a second to one host; None for no limit.
        burst: Requests that a host may get at once after a rest.
        connections: Requests to one host at the same time; None for no limit.
        max_wait: Seconds that a URL waits for its turn before it is given up. Only those count in
            which another request could be made.
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
        self._buckets: dict[str, Bucket] = {}

    def take(self, host: str) -> float:
        """Take a turn at a host; or return the seconds until there may be one."""
        now = time.monotonic()
        return self._bucket(host, now).take(now)

    def pause(self, host: str, seconds: float) -> None:
        """Ask a host nothing for some time."""
        now = time.monotonic()
        self._bucket(host, now).pause(now + seconds)

    def slow(self, host: str, seconds: float) -> None:
        """Leave at least so much time between two requests to a host."""
        now = time.monotonic()
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
