"""One URL to its bytes: redirects, robots.txt, the pace of hosts, tries and reasons.

A try ends by its deadline whatever the server does, keeps no more bytes than its cap, and connects
only to public addresses. No request is sent that a robots.txt forbids, and none before its host's
turn. libcurl does the rest (`transfers`).
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
    "bad_url": "It is not, or redirects to what is not, an http or https URL with a host.",
    "no_scheme": "It does not begin with http:// or https://.",
    "denied_host": "`deny_hosts` names its host, or `allow_hosts` does not.",
    "dns": "The name of the host has no address.",
    "blocked_address": "The host is at a private, local or otherwise not public address.",
    "connect": "The connection was refused, or closed before any answer.",
    "tls": "The certificate is not trusted, or no secure connection could be made.",
    "timeout": "The whole answer did not arrive in time.",
    "http_403": "403: the server forbids it.",
    "http_404": "404: the server has no such file.",
    "http_410": "410: the server has the file no more.",
    "http_429": "429: the server asks for fewer requests.",
    "http_4xx": "Another status from 400 to 499.",
    "http_5xx": "A status from 500 to 599.",
    "bad_response": "The answer is not HTTP, has too many headers, or a useless status or coding.",
    "redirect_loop": "The redirects come back to a URL seen before, or are too many.",
    "robots": "The host's robots.txt forbids it, or could not be had from a host that answers.",
    "no_turn": "Its turn at its host did not come within `max_wait`.",
    "opted_out": "An X-Robots-Tag or tdm-reservation header asks that the image is not used.",
    "too_large": "It has more bytes than `max_bytes`.",
    "incomplete": "The connection closed before the announced end.",
    "empty": "It has no bytes.",
}

# What another try may change.
_PASSING = frozenset({"connect", "timeout", "http_429", "http_5xx", "incomplete"})
_BACK_OFF = 0.5  # seconds after the first try, twice as many after each further one
_MAX_BACK_OFF = 30.0

# A robots.txt that is not there forbids nothing (RFC 9309, section 2.3.1.3).
_NO_ROBOTS = frozenset(
    {"http_403", "http_404", "http_410", "http_429", "http_4xx", "redirect_loop", "empty"}
)
# A host that cannot be reached for its robots.txt cannot be for an image either: the same reason.
_UNREACHED = frozenset(
    {"bad_url", "dns", "blocked_address", "connect", "tls", "timeout", "no_turn", "denied_host"}
)

# What is true of a host for all its URLs.
_NOWHERE = frozenset({"dns", "blocked_address"})

_WANTED = (200, 203)
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_UNFORESEEN = 8  # errors; if more, and of most URLs, the fault is here and not with them
_LONGEST_WAIT = 0.5  # seconds
_BUSY_SECONDS = 0.005  # how soon it is looked again whether there is room for more


class FetchError(Exception):
    """A URL whose bytes cannot be had.

    Attributes:
        reason: One of `FETCH_REASONS`.
        may_pass: Whether another try may end differently.
    """

    def __init__(
        self, reason: FetchReason, detail: str = "", *, may_pass: bool | None = None
    ) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason: FetchReason = reason
        self.may_pass = reason in _PASSING if may_pass is None else may_pass


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What a URL answered.

    Attributes:
        content: The body.
        url: Where it came from, after redirects.
    """

    content: bytes
    url: str


class Fetcher:
    """Fetches URLs, many at once in one thread; one a worker.

    It holds the connections kept open, what each robots.txt asks, and when each host may be asked
    again.

    Args:
        user_agent: Sent with each request.
        connections: Requests at once.
        timeout: Seconds for one try, redirects and name look-ups included, waiting for turns not.
        retries: Further tries where another may end differently: time ran out, the connection
            failed, 408, 429, 5xx. Before each comes a pause, twice as long each time, or as long
            as the server's Retry-After says; one longer than the limit's `max_wait` ends the tries.
        max_bytes: The cap on a body, as sent and as decoded.
        max_redirects: How many redirects are followed.
        allow_private_addresses: Connect to addresses that are not public, too.
        proxy: The URL of a proxy that makes the connections; None for none.
        robots: The product token by which a robots.txt may name us; None asks for none.
        limit: How fast each host is asked; None for as fast as can be.
        hosts: Which hosts are asked at all; None for every one.
        opted_out: Whether response headers ask that the content is not used.
        resolve: A host name to its addresses, in place of the system; raises OSError where it has
            none.
        dial: An (address, port) to a connected socket, in place of the system.
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
        """The bytes behind a URL.

        Raises:
            FetchError: They cannot be had; its `reason` says why.
        """
        ((_, found),) = self.fetch_all([(url, url)])
        if isinstance(found, FetchError):
            raise found
        return found

    def fetch_all(
        self,
        urls: Iterable[tuple[K, str]],
        has_room: Callable[[int], bool] = lambda active: True,
    ) -> Iterator[tuple[K, Fetched | FetchError]]:
        """The bytes behind many URLs, each as soon as they are there.

        Args:
            urls: Each under a key of its own.
            has_room: Whether a request may be sent beside so many; asked at least twice a second,
                what it raises ends all.

        Yields:
            Each key once, with the bytes, or with why there are none.
        """
        frontier: Frontier[K, Fetched] = Frontier(self.limit)
        for key, url in urls:
            frontier.add(key, url, self._persist(url, is_robots=False))
        try:
            while len(frontier):
                is_full = False
                while not is_full and (visit := frontier.next()) is not None:
                    yield from self._go_on(frontier, visit)
                    active = len(self._transfers)
                    is_full = active >= self.connections or not has_room(active)
                if not len(frontier):
                    return
                began = time.monotonic()
                for visit, response in self._transfers.wait(self._patience(frontier, is_full)):
                    visit.answer = response
                    yield from self._go_on(frontier, visit)
                if not is_full:
                    frontier.idle += time.monotonic() - began
        finally:
            self._transfers.stop()

    def close(self) -> None:
        """Close the connections kept open."""
        self._transfers.close()

    def _patience(self, frontier: Frontier[K, Fetched], is_full: bool) -> float:
        """How long to wait for a response at most."""
        if is_full and len(self._transfers) < self.connections:
            return _BUSY_SECONDS
        seconds = None if is_full else frontier.seconds()
        return _LONGEST_WAIT if seconds is None else min(seconds, _LONGEST_WAIT)

    def _go_on(
        self, frontier: Frontier[K, Fetched], visit: Visit[K, Fetched]
    ) -> Iterator[tuple[K, Fetched | FetchError]]:
        """Take the next step of a visit; yields what it found if that was the last one."""
        found: Fetched | FetchError
        try:
            wanted = visit.steps.send(visit.answer)
            if isinstance(wanted, Wait):
                frontier.park(visit, wanted)
            else:
                self._transfers.start(visit, wanted)
            return
        except StopIteration as stop:
            found = stop.value
        except FetchError as error:
            found = error
        except Exception as error:  # whatever it is, it costs this URL alone
            self._unforeseen += 1
            if self._unforeseen > max(_MAX_UNFORESEEN, self._ended / 2):
                raise
            logger.exception("download: an unforeseen error at %s", redacted(visit.name))
            found = FetchError("bad_response", repr(error))
        self._ended += 1
        frontier.leave(visit)
        yield visit.key, found

    def _persist(self, url: str, *, is_robots: bool) -> Steps[Fetched]:
        """Try as often as another try may end differently."""
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
        """Where a URL leads, if it may be asked."""
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
        """The response to one request, once it is the host's turn, and when that was."""
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
            # Servers that call every file compressed send the file.
            response = yield replace(request, seconds=left, is_plain=True)
        if response.is_malformed and (left := deadline - time.monotonic()) > 0:
            response = yield replace(request, seconds=left, is_lenient=True)
        return response, began

    def _ask_after_first(self, target: Target, left: float) -> Steps[tuple[Response, float]]:
        """As `_ask`, but a host without an address that may be asked costs all its URLs one turn.

        A robots.txt, where one is read, does the same.
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
        failure = response.failure if response.failure in _NOWHERE else None
        self._robots.keep(target.origin, FetchError(failure) if failure else Robots())
        return response, began

    def _wants(self, status: int, headers: Headers) -> Body:
        if status not in _WANTED:
            return Body.DROP
        return Body.STOP if self.opted_out(headers) else Body.KEEP

    def _ask_robots(self, target: Target, token: str) -> Steps[None]:
        """Go on if the robots.txt of an origin lets us; the first to ask reads it.

        Raises:
            FetchError: It does not.
        """
        future, is_first = self._robots.claim(target.origin)
        if is_first:
            try:
                found = yield from self._read_robots(target, token)
            except BaseException:
                self._robots.give_up(target.origin, FetchError("robots", "not read"))
                raise
            self._robots.keep(target.origin, found)
        elif not future.done():
            yield Wait(future=future)
        verdict = future.result()
        if isinstance(verdict, FetchError):
            raise FetchError(verdict.reason, "robots.txt", may_pass=False)
        if not verdict.allows(target.url):
            raise FetchError("robots", target.path)

    def _read_robots(self, target: Target, token: str) -> Steps[Robots | FetchError]:
        """What a robots.txt asks; an error where RFC 9309 takes everything for forbidden."""
        try:
            fetched = yield from self._persist(f"{target.root}/robots.txt", is_robots=True)
        except FetchError as error:
            if error.reason in _NO_ROBOTS:
                return Robots()
            return error if error.reason in _UNREACHED else FetchError("robots", str(error))
        robots = Robots(fetched.content, token)
        if robots.crawl_delay is not None:
            self.limit.slow(target.host, robots.crawl_delay)
        return robots

    def _answer(self, target: Target, response: Response, *, is_robots: bool) -> Fetched:
        """The content of a response.

        Raises:
            FetchError: It has none that counts.
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
    """The seconds that a Retry-After header asks to wait, given as such or as a date.

    Args:
        value: The header; None or nonsense asks nothing.
        now: Seconds since the epoch.
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
    """Seconds before another try: from half to the whole of a time that doubles.

    Where between the two hangs on the URL, so that not all come back at once.
    """
    longest = min(_BACK_OFF * 2.0**attempt, _MAX_BACK_OFF)
    share = zlib.crc32(f"{attempt} {url}".encode(errors="replace")) / 2**32
    return longest * (1 + share) / 2


def _location(target: Target, response: Response) -> str:
    """The absolute URL that a redirect leads to."""
    location = response.headers.get("Location")
    if not location:
        raise FetchError("bad_response", "a redirect to nowhere")
    try:
        return join(target.url, location)
    except ValueError as error:
        raise FetchError("bad_url", str(error)) from error


def _status_error(status: int) -> FetchError:
    if status in (403, 404, 410, 429):
        return FetchError(cast(FetchReason, f"http_{status}"))
    if status == 408:  # the server gave up on a connection, not on this URL
        return FetchError("http_4xx", str(status), may_pass=True)
    if 400 <= status < 600:
        return FetchError("http_4xx" if status < 500 else "http_5xx", str(status))
    return FetchError("bad_response", f"status {status}")
