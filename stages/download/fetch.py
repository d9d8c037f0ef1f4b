"""Fetches URLs: follows redirects, obeys robots.txt and rate limits, retries, and names failures.

Each try has a total deadline and a size cap, and connects only to public addresses. No request is
sent that a robots.txt forbids or a rate limit does not allow yet. libcurl sends the requests
(`transfers`).
"""

from __future__ import annotations

import itertools
import logging
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC
from email.utils import parsedate_to_datetime
from socket import socket
from typing import Any, Literal, TypeVar, cast

from stages.download.addresses import is_public
from stages.download.frontier import Frontier, Steps, Visit, Wait
from stages.download.host_rules import HostRules
from stages.download.rate_limit import RateLimit
from stages.download.robots import MAX_BYTES, Robots, RobotsCache
from stages.download.transfers import Body, Headers, Request, Response, Transfers
from stages.download.urls import SchemeError, Target, join
from stages.redaction import redacted

K = TypeVar("K")

__all__ = [
    "FETCH_REASONS",
    "FetchError",
    "FetchReason",
    "Fetched",
    "Fetcher",
    "retry_after",
]

logger = logging.getLogger(__name__)

FetchReason = Literal[
    "bad_url",
    "no_scheme",
    "denied_host",
    "dns",
    "blocked_address",
    "connect",
    "tls",
    "timeout",
    "http_403",
    "http_404",
    "http_410",
    "http_429",
    "http_4xx",
    "http_5xx",
    "bad_response",
    "redirect_loop",
    "robots",
    "no_turn",
    "opted_out",
    "too_large",
    "incomplete",
    "empty",
]

FETCH_REASONS: dict[str, str] = {
    "bad_url": "It is not an http or https URL with a host, or redirects to a URL that is not.",
    "no_scheme": "It does not begin with http:// or https://.",
    "denied_host": "`deny_hosts` names its host, or `allow_hosts` does not.",
    "dns": "The host name has no address.",
    "blocked_address": "The host has a private, local or otherwise non-public address.",
    "connect": "The connection was refused, or closed before any response.",
    "tls": "The certificate is not trusted, or no secure connection could be made.",
    "timeout": "The response did not arrive in full within `timeout`.",
    "http_403": "403: the server forbids access.",
    "http_404": "404: the server has no such file.",
    "http_410": "410: the server has removed the file.",
    "http_429": "429: the server asks for fewer requests.",
    "http_4xx": "Another status from 400 to 499.",
    "http_5xx": "A status from 500 to 599.",
    "bad_response": "The response is not HTTP, has too many headers, or an unusable status or "
    "content encoding.",
    "redirect_loop": "The redirects return to a URL already visited, or are too many.",
    "robots": "The host's robots.txt forbids it, or the host answers but its robots.txt cannot be "
    "read.",
    "no_turn": "The rate limit of its host did not allow a request within `max_wait`.",
    "opted_out": "An X-Robots-Tag or tdm-reservation header asks not to use the image.",
    "too_large": "It has more bytes than `max_bytes`.",
    "incomplete": "The connection closed before the end of the file.",
    "empty": "The file has no bytes.",
}

# Failures that a retry may fix.
_TRANSIENT = frozenset({"connect", "timeout", "http_429", "http_5xx", "incomplete"})
_BACK_OFF = 0.5  # seconds after the first try, doubled after each further one
_MAX_BACK_OFF = 30.0

# A missing robots.txt forbids nothing (RFC 9309, section 2.3.1.3).
_NO_ROBOTS = frozenset(
    {"http_403", "http_404", "http_410", "http_429", "http_4xx", "redirect_loop", "empty"}
)
# If a host cannot be reached for its robots.txt, its images get the same reason.
_UNREACHABLE = frozenset(
    {"bad_url", "dns", "blocked_address", "connect", "tls", "timeout", "no_turn", "denied_host"}
)

# Failures that apply to all URLs of a host.
_HOST_FAILURES = frozenset({"dns", "blocked_address"})

_WANTED = (200, 203)
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_UNFORESEEN = 8  # more unforeseen errors than this, for most URLs, mean a bug here
_LONGEST_WAIT = 0.5  # seconds
_BUSY_SECONDS = 0.005  # seconds between checks for room for more requests


class FetchError(Exception):
    """A URL that could not be fetched.

    Attributes:
        reason: One of `FETCH_REASONS`.
        may_pass: Whether a retry may succeed.
    """

    def __init__(
        self, reason: FetchReason, detail: str = "", *, may_pass: bool | None = None
    ) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason: FetchReason = reason
        self.may_pass = reason in _TRANSIENT if may_pass is None else may_pass


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """The file behind a URL.

    Attributes:
        content: The body of the response.
        url: The URL after redirects.
    """

    content: bytes
    url: str


class Fetcher:
    """Fetches many URLs at once in one thread; a worker has one fetcher.

    It keeps the open connections, the robots.txt of each origin, and the rate limit of each host.

    Args:
        user_agent: User-Agent of each request.
        connections: Concurrent requests.
        timeout: Seconds for one try, including redirects and name look-ups, excluding the wait for
            the rate limit.
        retries: Further tries after a timeout, a failed connection, 408, 429 or 5xx. The pause
            before each is twice as long as the one before, or what Retry-After says; a Retry-After
            longer than the limit's `max_wait` ends the tries.
        max_bytes: Maximum size of a body, as sent and as decoded.
        max_redirects: Maximum number of redirects.
        allow_private_addresses: Also connect to addresses that are not public.
        proxy: URL of a proxy; None for none.
        robots: Our product token in robots.txt files; None does not read them.
        limit: Rate limits of hosts; None for none.
        hosts: Allowed hosts; None for all.
        opted_out: Whether response headers ask not to use the content.
        resolve: Resolves a host name to addresses in place of the system; raises OSError if it has
            none.
        dial: Connects a socket to an (address, port) in place of the system.
    """

    def __init__(
        self,
        *,
        user_agent: str,
        connections: int = 32,
        timeout: float = 10.0,
        retries: int = 0,
        max_bytes: int = 20_000_000,
        max_redirects: int = 5,
        allow_private_addresses: bool = False,
        proxy: str | None = None,
        robots: str | None = None,
        limit: RateLimit | None = None,
        hosts: HostRules | None = None,
        opted_out: Callable[[Headers], bool] = lambda headers: False,
        resolve: Callable[[str], Sequence[str]] | None = None,
        dial: Callable[[tuple[str, int]], socket] | None = None,
    ) -> None:
        self.connections = connections
        self.timeout = timeout
        self.retries = retries
        self.max_bytes = max_bytes
        self.max_redirects = max_redirects
        self.robots = robots
        self.limit = limit or RateLimit()
        self.hosts = hosts or HostRules()
        self.opted_out = opted_out
        self._is_guarded = not allow_private_addresses
        self._transfers: Transfers[Visit[Any, Fetched]] = Transfers(
            user_agent=user_agent,
            allow_private_addresses=allow_private_addresses,
            proxy=proxy,
            resolve=resolve,
            dial=dial,
        )
        self._robots = RobotsCache[FetchError]()
        self._ended = self._unforeseen = 0

    def fetch(self, url: str) -> Fetched:
        """Fetch one URL.

        Raises:
            FetchError: It cannot be fetched; its `reason` says why.
        """
        ((_, result),) = self.fetch_all([(url, url)])
        if isinstance(result, FetchError):
            raise result
        return result

    def fetch_all(
        self,
        urls: Iterable[tuple[K, str]],
        has_room: Callable[[int], bool] = lambda active: True,
    ) -> Iterator[tuple[K, Fetched | FetchError]]:
        """Fetch many URLs, in the order in which they arrive.

        Args:
            urls: URLs, each with a unique key.
            has_room: Whether another request may be sent, given the number of active ones. It is
                called at least twice a second; an exception it raises ends all requests.

        Yields:
            Each key once, with the file or the failure.
        """
        frontier: Frontier[K, Fetched] = Frontier(self.limit)
        for key, url in urls:
            frontier.add(key, url, self._persist(url, is_robots=False))
        try:
            while len(frontier):
                is_full = False
                while not is_full and (visit := frontier.next()) is not None:
                    yield from self._advance(frontier, visit)
                    active = len(self._transfers)
                    is_full = active >= self.connections or not has_room(active)
                if not len(frontier):
                    return
                began = time.monotonic()
                for visit, response in self._transfers.wait(self._patience(frontier, is_full)):
                    visit.answer = response
                    yield from self._advance(frontier, visit)
                if not is_full:
                    frontier.idle += time.monotonic() - began
        finally:
            self._transfers.stop()

    def close(self) -> None:
        """Close the connections kept open."""
        self._transfers.close()

    def _patience(self, frontier: Frontier[K, Fetched], is_full: bool) -> float:
        """Return the longest time to wait for a response, in seconds."""
        if is_full and len(self._transfers) < self.connections:
            return _BUSY_SECONDS
        seconds = None if is_full else frontier.seconds()
        return _LONGEST_WAIT if seconds is None else min(seconds, _LONGEST_WAIT)

    def _advance(
        self, frontier: Frontier[K, Fetched], visit: Visit[K, Fetched]
    ) -> Iterator[tuple[K, Fetched | FetchError]]:
        """Run the next step of a visit; yields its result if that was the last step."""
        result: Fetched | FetchError
        try:
            wanted = visit.steps.send(visit.answer)
            if isinstance(wanted, Wait):
                frontier.park(visit, wanted)
            else:
                self._transfers.start(visit, wanted)
            return
        except StopIteration as stop:
            result = stop.value
        except FetchError as error:
            result = error
        except Exception as error:  # an unforeseen error costs this URL alone
            self._unforeseen += 1
            if self._unforeseen > max(_MAX_UNFORESEEN, self._ended / 2):
                raise
            logger.exception("download: an unforeseen error at %s", redacted(visit.name))
            result = FetchError("bad_response", repr(error))
        self._ended += 1
        frontier.leave(visit)
        yield visit.key, result

    def _persist(self, url: str, *, is_robots: bool) -> Steps[Fetched]:
        """Try a URL, and retry as long as a retry may succeed."""
        failure: FetchError | None = None
        for attempt in itertools.count():
            try:
                return (yield from self._try(url, is_robots=is_robots))
            except FetchError as error:
                if failure is not None and error.reason == "no_turn":
                    raise failure from error
                if attempt >= self.retries or not error.may_pass:
                    raise
                failure = error
            yield Wait(until=time.monotonic() + _back_off(url, attempt))
        raise AssertionError("unreachable")

    def _try(self, url: str, *, is_robots: bool) -> Steps[Fetched]:
        left = self.timeout
        seen: set[str] = set()
        while True:
            target = self._target(url)
            if target.url in seen:
                raise FetchError("redirect_loop", target.url)
            if len(seen) > self.max_redirects:
                raise FetchError("redirect_loop", f"more than {self.max_redirects} redirects")
            seen.add(target.url)
            if is_robots:
                response, began = yield from self._ask(target, left, is_robots=True)
            elif self.robots is not None:
                yield from self._ask_robots(target, self.robots)
                response, began = yield from self._ask(target, left)
            else:
                response, began = yield from self._ask_after_first(target, left)
            left -= time.monotonic() - began
            if response.status not in _REDIRECTS:
                return self._answer(target, response, is_robots=is_robots)
            url = _location(target, response)

    def _target(self, url: str) -> Target:
        """Parse a URL and check that requests to it are allowed."""
        try:
            target = Target.of(url)
        except SchemeError as error:
            raise FetchError("no_scheme", str(error)) from error
        except ValueError as error:
            raise FetchError("bad_url", str(error)) from error
        if not self.hosts.allows(target.host):
            raise FetchError("denied_host", target.host)
        if self._is_guarded and target.is_address and not is_public(target.host):
            raise FetchError("blocked_address", target.host)
        return target

    def _ask(
        self, target: Target, left: float, *, is_robots: bool = False
    ) -> Steps[tuple[Response, float]]:
        """Wait for the rate limit and send a request; returns the response and the start time."""
        if left <= 0:
            raise FetchError("timeout", "no time is left after the redirects")
        if not (yield Wait(host=target.host)):
            raise FetchError("no_turn", target.host)
        began = time.monotonic()
        request = Request(
            url=target.url,
            seconds=left,
            max_bytes=MAX_BYTES if is_robots else self.max_bytes,
            is_cut=is_robots,
            accept="text/plain, */*;q=0.5" if is_robots else "image/*",
            judge=_wants_robots if is_robots else self._wants,
        )
        response: Response = yield request
        deadline = began + left
        if response.is_miscoded and (left := deadline - time.monotonic()) > 0:
            # Some servers declare a Content-Encoding for files they send uncompressed.
            response = yield replace(request, seconds=left, is_plain=True)
        if response.is_malformed and (left := deadline - time.monotonic()) > 0:
            response = yield replace(request, seconds=left, is_lenient=True)
        return response, began

    def _ask_after_first(self, target: Target, left: float) -> Steps[tuple[Response, float]]:
        """Send a request, after the first one to its origin has ended.

        If the first one shows that the host has no public address, the others fail without a
        request. This is used if robots.txt is not read, which has the same effect.
        """
        future, is_first = self._robots.claim(target.origin)
        if not is_first:
            if not future.done():
                yield Wait(future=future)
            verdict = future.result()
            if isinstance(verdict, FetchError):
                raise FetchError(verdict.reason, str(verdict), may_pass=verdict.may_pass)
            return (yield from self._ask(target, left))
        try:
            response, began = yield from self._ask(target, left)
        except FetchError as error:
            self._robots.give_up(target.origin, error)
            raise
        except BaseException:
            self._robots.give_up(target.origin, FetchError("connect", "not asked"))
            raise
        failure = response.failure if response.failure in _HOST_FAILURES else None
        self._robots.keep(target.origin, FetchError(failure) if failure else Robots())
        return response, began

    def _wants(self, status: int, headers: Headers) -> Body:
        if status not in _WANTED:
            return Body.DROP
        return Body.STOP if self.opted_out(headers) else Body.KEEP

    def _ask_robots(self, target: Target, token: str) -> Steps[None]:
        """Check a URL against the robots.txt of its origin, which the first URL fetches.

        Raises:
            FetchError: The robots.txt forbids the URL, or cannot be read.
        """
        future, is_first = self._robots.claim(target.origin)
        if is_first:
            try:
                result = yield from self._read_robots(target, token)
            except BaseException:
                self._robots.give_up(target.origin, FetchError("robots", "not read"))
                raise
            self._robots.keep(target.origin, result)
        elif not future.done():
            yield Wait(future=future)
        verdict = future.result()
        if isinstance(verdict, FetchError):
            raise FetchError(verdict.reason, "robots.txt", may_pass=False)
        if not verdict.allows(target.url):
            raise FetchError("robots", target.path)

    def _read_robots(self, target: Target, token: str) -> Steps[Robots | FetchError]:
        """Fetch a robots.txt; returns an error if RFC 9309 then forbids everything."""
        try:
            fetched = yield from self._persist(f"{target.root}/robots.txt", is_robots=True)
        except FetchError as error:
            if error.reason in _NO_ROBOTS:
                return Robots()
            return error if error.reason in _UNREACHABLE else FetchError("robots", str(error))
        robots = Robots(fetched.content, token)
        if robots.crawl_delay is not None:
            self.limit.slow(target.host, robots.crawl_delay)
        return robots

    def _answer(self, target: Target, response: Response, *, is_robots: bool) -> Fetched:
        """Return the content of a response.

        Raises:
            FetchError: The response is a failure or has no content.
        """
        status = response.status
        if status in (429, 503):
            seconds = retry_after(response.headers.get("Retry-After"), time.time())
            if seconds is not None:
                self.limit.pause(target.host, seconds)
                reason: FetchReason = "http_429" if status == 429 else "http_5xx"
                raise FetchError(reason, may_pass=seconds <= self.limit.max_wait)
        if status and status not in _WANTED and not (is_robots and 200 <= status < 300):
            raise _status_error(status)
        if status and not is_robots and self.opted_out(response.headers):
            raise FetchError("opted_out")
        if response.failure is not None:
            raise FetchError(response.failure, response.detail)
        if not response.content:
            raise FetchError("empty")
        return Fetched(content=response.content, url=target.url)


def retry_after(value: str | None, now: float) -> float | None:
    """Parse a Retry-After header: seconds or a date.

    Args:
        value: The header, or None.
        now: Seconds since the epoch.

    Returns:
        The seconds to wait; None if the header is missing or invalid.
    """
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:12])
    try:
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, moment.timestamp() - now)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _wants_robots(status: int, headers: Headers) -> Body:
    return Body.KEEP if 200 <= status < 300 else Body.DROP


def _back_off(url: str, attempt: int) -> float:
    """Return the seconds before a retry: from half to all of a time that doubles.

    The exact value depends on the URL, so that retries are spread.
    """
    longest = min(_BACK_OFF * 2.0**attempt, _MAX_BACK_OFF)
    share = zlib.crc32(f"{attempt} {url}".encode(errors="replace")) / 2**32
    return longest * (1 + share) / 2


def _location(target: Target, response: Response) -> str:
    """Return the absolute URL of a redirect."""
    location = response.headers.get("Location")
    if not location:
        raise FetchError("bad_response", "a redirect without a location")
    try:
        return join(target.url, location)
    except ValueError as error:
        raise FetchError("bad_url", str(error)) from error


def _status_error(status: int) -> FetchError:
    if status in (403, 404, 410, 429):
        return FetchError(cast(FetchReason, f"http_{status}"))
    if status == 408:  # says something about the connection, not about the URL
        return FetchError("http_4xx", str(status), may_pass=True)
    if 400 <= status < 600:
        return FetchError("http_4xx" if status < 500 else "http_5xx", str(status))
    return FetchError("bad_response", f"status {status}")
