"""Limits the rate of requests to each host."""

from __future__ import annotations

import math
import time

__all__ = ["Bucket", "RateLimit"]

_MAX_BUCKETS = 10_000


class Bucket:
    """A token bucket, implemented with the generic cell rate algorithm (ITU-T I.371).

    In any `s` seconds it gives out at most `burst` + `s` / `interval` tokens. Times are seconds of
    one monotonic clock.

    Args:
        interval: Seconds per token; 0 for no limit.
        burst: Capacity, in tokens; the bucket is full at first.
    """

    def __init__(self, interval: float, burst: int) -> None:
        self.interval = interval
        self.burst = burst
        self._full = -math.inf  # the time at which it is full

    def take(self, now: float) -> float:
        """Take a token and return 0, or return the seconds until there is one."""
        wait = self._full - (self.burst - 1) * self.interval - now
        if wait > 0:
            return wait
        self._full = max(self._full, now) + self.interval
        return 0.0

    def pause(self, until: float) -> None:
        """Give out no token before a time, and no burst after it."""
        self._full = max(self._full, until + (self.burst - 1) * self.interval)

    def slow(self, interval: float) -> None:
        """Give out tokens one by one, with at least `interval` seconds between them."""
        self._full -= (self.burst - 1) * self.interval  # keeps the time of the next token
        self.interval, self.burst = max(self.interval, interval), 1

    def is_full(self, now: float) -> bool:
        """Whether the bucket is full, as a new one is."""
        return self._full <= now


class RateLimit:
    """Limits of one worker's requests to each host.

    Args:
        rate: Requests per second to one host; None for no limit.
        burst: Requests that may be sent to an idle host at once.
        connections: Concurrent requests to one host; None for no limit.
        max_wait: Seconds that a URL waits for its host before it is given up. Only time in which
            the worker could have sent another request counts.
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
        """Reserve a request to a host and return 0, or return the seconds to wait for one."""
        now = time.monotonic()
        return self._bucket(host, now).take(now)

    def pause(self, host: str, seconds: float) -> None:
        """Send no requests to a host for some seconds."""
        now = time.monotonic()
        self._bucket(host, now).pause(now + seconds)

    def slow(self, host: str, seconds: float) -> None:
        """Leave at least `seconds` between two requests to a host."""
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
