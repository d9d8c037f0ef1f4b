"""One URL to its bytes over HTTP, from servers that cannot be trusted.

A try ends by its deadline whatever the server does, keeps no more bytes than its cap, and connects
only to public addresses: the address that was checked is the one that is connected to. No request
is sent that a robots.txt forbids, and none before its host's turn; what waits for either occupies
no thread. Proxies of the environment are not used; SSL_CERT_FILE and SSL_CERT_DIR are.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import itertools
import socket
import ssl
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Literal, cast, get_args
from urllib.parse import urljoin

from stages.address import Names, is_public, resolve
from stages.coding import Inflater, codings_of
from stages.connection import Connections, Target, dial, time_left
from stages.pace import Frontier, Pace, Steps, Wait
from stages.robots import MAX_BYTES, Robots, RobotsCache

__all__ = [
    "FETCH_REASONS",
    "FetchError",
    "FetchReason",
    "Fetched",
    "Fetcher",
    "retry_after",
]

FetchReason = Literal[
    "bad_url",
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
    "bad_url": "It is not, or leads to what is not, an http or https URL with a host.",
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
    "opted_out": "An X-Robots-Tag header asks that the image is not used.",
    "too_large": "It has more bytes than `max_bytes`.",
    "incomplete": "The connection closed before the announced end.",
    "empty": "It has no bytes.",
}
assert set(FETCH_REASONS) == set(get_args(FetchReason))

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
    {"bad_url", "dns", "blocked_address", "connect", "tls", "timeout", "no_turn"}
)

_WANTED = (200, 203)
_MAX_ADDRESSES = 4  # tried one after the other, each with its share of the time left


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
    """Fetches URLs; one a worker, used by all its threads.

    It holds the connections kept open, the names looked up, what each robots.txt asks, and when
    each host may be asked again.

    Args:
        user_agent: Sent with each request.
        timeout: Seconds for one try, redirects and name look-ups included, waiting for turns not.
        retries: Further tries where another may end differently: time ran out, the connection
            failed, 429, 5xx. Before each comes a pause, twice as long each time, or as long as
            the server's Retry-After says; one longer than the pace's `max_wait` ends the tries.
        max_bytes: The cap on a body, as sent and as decoded.
        max_redirects: How many redirects are followed.
        allow_private_addresses: Connect to addresses that are not public, too.
        robots: The product token by which a robots.txt may name us; None asks for none.
        pace: How fast each host is asked; None for as fast as can be.
        opted_out: Whether response headers ask that the content is not used.
        resolve: A host name to its addresses; raises OSError where it has none.
        dial: An (address, port) and seconds to a connected socket.
    """

    def __init__(
        self,
        *,
        user_agent: str,
        timeout: float = 10.0,
        retries: int = 0,
        max_bytes: int = 20_000_000,
        max_redirects: int = 5,
        allow_private_addresses: bool = False,
        robots: str | None = None,
        pace: Pace | None = None,
        opted_out: Callable[[Message], bool] = lambda headers: False,
        resolve: Callable[[str], Sequence[str]] = resolve,
        dial: Callable[[tuple[str, int], float], socket.socket] = dial,
    ) -> None:
        self.user_agent = user_agent
        self.timeout = timeout
        self.retries = retries
        self.max_bytes = max_bytes
        self.max_redirects = max_redirects
        self.allow_private_addresses = allow_private_addresses
        self.robots = robots
        self.pace = pace or Pace()
        self.opted_out = opted_out
        self._connections = Connections(dial)
        self._names = Names(resolve)
        self._robots = RobotsCache[FetchError]()

    def fetch(self, url: str) -> Fetched:
        """The bytes behind a URL, waited for.

        Raises:
            FetchError: They cannot be had; its `reason` says why.
        """
        frontier: Frontier[Fetched] = Frontier(self.pace)
        frontier.add(url, self.steps(url))
        ended = frontier.next()
        assert ended is not None
        if isinstance(ended[1], Exception):
            raise ended[1]
        return ended[1]

    def steps(self, url: str) -> Steps[Fetched]:
        """The bytes behind a URL, in steps that a `Frontier` of `pace` goes through.

        Raises:
            FetchError: They cannot be had; its `reason` says why.
        """
        return (yield from self._persist(url, is_robots=False))

    def close(self) -> None:
        """Close the connections kept open."""
        self._connections.close()
        self._names.close()

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
        while url not in seen:
            if len(seen) > self.max_redirects:
                raise FetchError("redirect_loop", f"more than {self.max_redirects} redirects")
            seen.add(url)
            try:
                target = Target.of(url)
            except ValueError as error:
                raise FetchError("bad_url", str(error)) from error
            began = time.monotonic()
            addresses = yield from self._addresses(target.host, began + left)
            left -= time.monotonic() - began
            if self.robots is not None and not is_robots:
                yield from self._ask_robots(target, self.robots)
            if not (yield Wait(host=target.host)):
                raise FetchError("no_turn", target.host)
            began = time.monotonic()
            with _reasons():
                request = target.request(self.user_agent)
                connection, response = self._connections.ask(
                    target, addresses, request, began + left
                )
                try:
                    answer = self._answer(url, target, response, is_robots=is_robots)
                finally:
                    is_wanted = response.status in _WANTED
                    self._connections.put_back(target, connection, response, is_wanted)
            if isinstance(answer, Fetched):
                return answer
            left -= time.monotonic() - began
            url = answer
        raise FetchError("redirect_loop", url)

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
        if not verdict.allows(target.path):
            raise FetchError("robots", target.path)

    def _read_robots(self, target: Target, token: str) -> Steps[Robots | FetchError]:
        """What a robots.txt asks; an error where RFC 9309 takes everything for forbidden."""
        try:
            url = f"{target.scheme}://{target.authority}/robots.txt"
            fetched = yield from self._persist(url, is_robots=True)
        except FetchError as error:
            if error.reason in _NO_ROBOTS:
                return Robots()
            return error if error.reason in _UNREACHED else FetchError("robots", str(error))
        robots = Robots.parse(fetched.content, token)
        if robots.crawl_delay is not None:
            self.pace.slow(target.host, robots.crawl_delay)
        return robots

    def _answer(
        self,
        url: str,
        target: Target,
        response: http.client.HTTPResponse,
        *,
        is_robots: bool,
    ) -> Fetched | str:
        """The content of a response, or the URL that it redirects to."""
        if response.status in (301, 302, 303, 307, 308):
            return _redirect(url, response.headers["Location"])
        if response.status in (429, 503):
            seconds = retry_after(response.headers["Retry-After"], time.time())
            if seconds is not None:
                self.pace.pause(target.host, seconds)
                reason: FetchReason = "http_429" if response.status == 429 else "http_5xx"
                raise FetchError(reason, may_pass=seconds <= self.pace.max_wait)
        if is_robots and 200 <= response.status < 300:
            return Fetched(content=self._body(response, MAX_BYTES, is_cut=True), url=url)
        _check_status(response.status)
        if self.opted_out(response.headers):
            raise FetchError("opted_out")
        return Fetched(content=self._body(response, self.max_bytes), url=url)

    def _body(self, response: http.client.HTTPResponse, cap: int, *, is_cut: bool = False) -> bytes:
        """A body, decoded; one over the cap is refused, or ends one byte after it."""
        if (response.length or 0) > cap and not is_cut:
            raise FetchError("too_large", f"{response.length} bytes announced")
        codings = codings_of(response.headers)
        if len(codings) > 1 or not Inflater.CODINGS.issuperset(codings):
            raise FetchError("bad_response", f"encoded as {', '.join(codings)}")
        inflater = Inflater(codings[0]) if codings else None
        parts, size = [], 0
        try:
            while size <= cap and (part := response.read(65_536)):
                if inflater is not None:
                    part = inflater.feed(part, cap + 1 - size)
                parts.append(part)
                size += len(part)
        except ConnectionError as error:
            raise FetchError("incomplete", str(error)) from error
        if size > cap:
            if is_cut:
                return b"".join(parts)
            raise FetchError("too_large", f"over {cap} bytes")
        if response.length or (inflater is not None and inflater.is_cut):
            raise FetchError("incomplete", "the end is missing")
        if not size:
            raise FetchError("empty")
        return b"".join(parts)

    def _addresses(self, host: str, deadline: float) -> Steps[list[str]]:
        """The addresses of a host that may be connected to.

        One thread waits for a look-up; what else needs it waits outside the threads.
        """
        found: Sequence[str]
        try:
            found = [str(ipaddress.ip_address(host))]
        except ValueError:
            future, is_first = self._names.look_up(host)
            if not (is_first or future.done()):
                yield Wait(future=future, until=deadline)
            try:
                found = future.result(time_left(deadline) if is_first else 0)
            except TimeoutError as error:
                raise FetchError("timeout", "the name server does not answer") from error
            except (OSError, UnicodeError) as error:
                raise FetchError("dns", str(error)) from error
        if not self.allow_private_addresses:
            public = [address for address in found if is_public(address)]
            if found and not public:
                raise FetchError("blocked_address", f"{host} is at {found[0]}")
            found = public
        if not found:
            raise FetchError("dns", host)
        return list(found[:_MAX_ADDRESSES])


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
    """What goes wrong with a connection, as the reason that it is for a row."""
    try:
        yield
    except TimeoutError as error:
        raise FetchError("timeout", str(error)) from error
    except ssl.SSLError as error:
        raise FetchError("tls", str(error)) from error
    except http.client.IncompleteRead as error:
        raise FetchError("incomplete", str(error)) from error
    except OSError as error:
        raise FetchError("connect", str(error)) from error
    except (http.client.HTTPException, zlib.error) as error:
        raise FetchError("bad_response", type(error).__name__) from error


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


def _back_off(url: str, attempt: int) -> float:
    """Seconds before another try: from half to the whole of a time that doubles.

    Where between the two hangs on the URL, so that not all come back at once.
    """
    longest = min(_BACK_OFF * 2.0**attempt, _MAX_BACK_OFF)
    share = zlib.crc32(f"{attempt} {url}".encode(errors="replace")) / 2**32
    return longest * (1 + share) / 2


def _redirect(url: str, location: str | None) -> str:
    """The absolute URL that a redirect leads to."""
    if not location:
        raise FetchError("bad_response", "a redirect to nowhere")
    with contextlib.suppress(UnicodeError):  # http.client reads every byte as Latin-1
        location = location.encode("latin-1").decode("utf-8")
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise FetchError("bad_url", str(error)) from error


def _check_status(status: int) -> None:
    if status in _WANTED:
        return
    if status in (403, 404, 410, 429):
        raise FetchError(cast(FetchReason, f"http_{status}"))
    if 400 <= status < 600:
        raise FetchError("http_4xx" if status < 500 else "http_5xx", str(status))
    raise FetchError("bad_response", f"status {status}")
