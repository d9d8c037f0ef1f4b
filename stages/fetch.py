"""One URL to its bytes over HTTP, from servers that cannot be trusted.

A fetch ends by its deadline whatever the server does, keeps no more bytes than its cap, and
connects only to public addresses: the address that was checked is the one that is connected to.
Proxies of the environment are not used; SSL_CERT_FILE and SSL_CERT_DIR are.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from email.message import Message
from typing import Any, Literal, cast, get_args
from urllib.parse import quote, urljoin, urlsplit

__all__ = ["FETCH_REASONS", "FetchError", "FetchReason", "Fetched", "Fetcher", "is_public"]

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
    "bad_response": "The answer is not HTTP, has too many headers or a status of no use.",
    "redirect_loop": "The redirects come back to a URL seen before, or are too many.",
    "opted_out": "An X-Robots-Tag header asks that the image is not used.",
    "too_large": "It has more bytes than `max_bytes`.",
    "incomplete": "The connection closed before the announced end.",
    "empty": "It has no bytes.",
}
assert set(FETCH_REASONS) == set(get_args(FetchReason))

# What another try may change.
_PASSING = frozenset({"connect", "timeout", "http_429", "http_5xx", "incomplete"})

_WANTED = (200, 203)
_MAX_URL = 8192
_MAX_ADDRESSES = 4  # tried one after the other, each with its share of the time left
_MAX_IDLE = 64  # connections kept open
_DRAIN = 65_536  # bytes of an unwanted body that are read to keep its connection
_LOOKUP_SECONDS = 60.0
_MAX_LOOKUPS = 10_000

_HOST = re.compile(r"[a-z0-9._-]{1,253}")
# What a URL may hold as it is; the rest is percent-encoded. "%" stays, so nothing is encoded twice.
_SAFE = "/%:=&?~+!$,;'@()*[]|"

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_AZURE_METADATA = ipaddress.IPv4Address("168.63.129.16")  # the one metadata service in public space


class FetchError(Exception):
    """A URL whose bytes cannot be had.

    Attributes:
        reason: One of `FETCH_REASONS`.
    """

    def __init__(self, reason: FetchReason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason: FetchReason = reason


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What a URL answered.

    Attributes:
        content: The body.
        url: Where it came from, after redirects.
    """

    content: bytes
    url: str


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet.

    Loopback, private, link-local, shared, multicast, reserved and unspecified addresses and those
    of cloud metadata services are not, nor are IPv6 addresses that carry such an IPv4 address
    (mapped, 6to4, Teredo, NAT64).
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not ip.is_multicast and ip != _AZURE_METADATA
    carried = _carried(ip)
    if carried:
        return all(is_public(str(inner)) for inner in carried)
    return ip.is_global and ip in _GLOBAL_UNICAST


def _carried(ip: ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """The IPv4 addresses that packets to an IPv6 address may be passed on to."""
    if ip.ipv4_mapped is not None:
        return [ip.ipv4_mapped]
    if ip.sixtofour is not None:
        return [ip.sixtofour]
    if ip.teredo is not None:
        return list(ip.teredo)
    if ip in _NAT64:
        return [ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)]
    return []


def _resolve(host: str) -> list[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _dial(address: tuple[str, int], timeout: float) -> socket.socket:
    return socket.create_connection(address, timeout)


@dataclass(frozen=True, kw_only=True)
class _Target:
    """Where a URL leads: the scheme, host and port of a connection, and what to ask there."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def of(cls, url: str) -> _Target:
        try:
            parts = urlsplit(url.strip())
            host, port = parts.hostname or "", parts.port
            path = quote(parts.path or "/", safe=_SAFE)
            query = f"?{quote(parts.query, safe=_SAFE)}" if parts.query else ""
            if ":" not in host:
                host = host.encode("idna").decode("ascii")
            else:
                host = str(ipaddress.IPv6Address(host))
        except ValueError as error:  # UnicodeError is one
            raise FetchError("bad_url", str(error)) from error
        if parts.scheme not in ("http", "https") or len(url) > _MAX_URL:
            raise FetchError("bad_url", "not http or https, or too long")
        if ":" not in host and not _HOST.fullmatch(host):
            raise FetchError("bad_url", "no usable host")
        default = 443 if parts.scheme == "https" else 80
        return cls(scheme=parts.scheme, host=host, port=port or default, path=path + query)

    @property
    def origin(self) -> tuple[str, str, int]:
        return self.scheme, self.host, self.port

    def request(self, user_agent: str) -> bytes:
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.port != (443 if self.scheme == "https" else 80):
            host = f"{host}:{self.port}"
        return (
            f"GET {self.path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {user_agent}\r\n"
            "Accept: image/*,*/*;q=0.5\r\nAccept-Encoding: identity\r\n\r\n"
        ).encode("latin-1")


class _Reader(io.RawIOBase):
    """The receiving side of a connection, each read of which ends by the deadline."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._connection.receive(buffer)


class _Connection:
    """An open socket that gives `http.client.HTTPResponse` what it needs: `makefile`."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._deadline = 0.0

    def get(self, request: bytes, deadline: float) -> http.client.HTTPResponse:
        """Send a request and read the head of its answer."""
        self._deadline = deadline
        self._socket.settimeout(_left(deadline))
        self._socket.sendall(request)
        response = http.client.HTTPResponse(cast(socket.socket, self), method="GET")
        response.begin()
        return response

    def makefile(self, mode: str) -> io.BufferedReader:
        assert mode == "rb"
        return io.BufferedReader(_Reader(self), 65_536)

    def receive(self, buffer: Any) -> int:
        self._socket.settimeout(_left(self._deadline))
        return self._socket.recv_into(buffer)

    def close(self) -> None:
        self._socket.close()


def _left(deadline: float) -> float:
    """Seconds until the deadline.

    Raises:
        TimeoutError: It has passed.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("past the deadline")
    return left


class Fetcher:
    """Fetches URLs; one a worker, used by all its threads.

    It holds the TLS context, the connections kept open and the names looked up.

    Args:
        user_agent: Sent with each request.
        timeout: Seconds for one try, redirects and name look-ups included.
        retries: Further tries where another may end differently: time ran out, the connection
            failed, 429, 5xx.
        max_bytes: The cap on a body.
        max_redirects: How many redirects are followed.
        allow_private_addresses: Connect to addresses that are not public, too.
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
        opted_out: Callable[[Message], bool] = lambda headers: False,
        resolve: Callable[[str], Sequence[str]] = _resolve,
        dial: Callable[[tuple[str, int], float], socket.socket] = _dial,
    ) -> None:
        self.user_agent = user_agent
        self.timeout = timeout
        self.retries = retries
        self.max_bytes = max_bytes
        self.max_redirects = max_redirects
        self.allow_private_addresses = allow_private_addresses
        self.opted_out = opted_out
        self._resolve = resolve
        self._dial = dial
        self._tls = ssl.create_default_context()
        self._lock = threading.Lock()
        self._idle: deque[tuple[tuple[str, str, int], _Connection]] = deque()
        self._lookups: dict[str, tuple[float, Future[Sequence[str]]]] = {}
        # A look-up knows no timeout, so it waits in a thread of its own.
        self._resolver = ThreadPoolExecutor(32, thread_name_prefix="resolve")

    def fetch(self, url: str) -> Fetched:
        """The bytes behind a URL.

        Raises:
            FetchError: They cannot be had; its `reason` says why.
        """
        for attempt in range(self.retries + 1):
            try:
                return self._try(url, time.monotonic() + self.timeout)
            except FetchError as error:
                if attempt == self.retries or error.reason not in _PASSING:
                    raise
            time.sleep(min(0.25 * 2**attempt, self.timeout))
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Close the connections kept open."""
        with self._lock:
            while self._idle:
                self._idle.pop()[1].close()
        self._resolver.shutdown(wait=False, cancel_futures=True)

    def _try(self, url: str, deadline: float) -> Fetched:
        seen: set[str] = set()
        while url not in seen:
            if len(seen) > self.max_redirects:
                raise FetchError("redirect_loop", f"more than {self.max_redirects} redirects")
            seen.add(url)
            try:
                answer = self._follow(url, deadline)
            except TimeoutError as error:
                raise FetchError("timeout", str(error)) from error
            except ssl.SSLError as error:
                raise FetchError("tls", str(error)) from error
            except http.client.IncompleteRead as error:
                raise FetchError("incomplete", str(error)) from error
            except OSError as error:
                raise FetchError("connect", str(error)) from error
            except http.client.HTTPException as error:
                raise FetchError("bad_response", type(error).__name__) from error
            if isinstance(answer, Fetched):
                return answer
            url = answer
        raise FetchError("redirect_loop", url)

    def _follow(self, url: str, deadline: float) -> Fetched | str:
        """The answer to one request: the content, or the URL that it redirects to."""
        target = _Target.of(url)
        connection, response = self._exchange(target, deadline)
        try:
            if response.status in (301, 302, 303, 307, 308):
                return _redirect(url, response.headers["Location"])
            _check_status(response.status)
            if self.opted_out(response.headers):
                raise FetchError("opted_out")
            content = self._body(response)
            return Fetched(content=content, url=url)
        finally:
            self._put_back(target, connection, response)

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        if (response.length or 0) > self.max_bytes:
            raise FetchError("too_large", f"{response.length} bytes announced")
        parts, size = [], 0
        try:
            while part := response.read(65_536):
                parts.append(part)
                size += len(part)
                if size > self.max_bytes:
                    raise FetchError("too_large", f"over {self.max_bytes} bytes")
        except ConnectionError as error:
            raise FetchError("incomplete", str(error)) from error
        if response.length:
            raise FetchError("incomplete", f"{response.length} bytes are missing")
        if not size:
            raise FetchError("empty")
        return b"".join(parts)

    def _exchange(
        self, target: _Target, deadline: float
    ) -> tuple[_Connection, http.client.HTTPResponse]:
        request = target.request(self.user_agent)
        connection = self._take(target)
        if connection is not None:
            try:
                return connection, connection.get(request, deadline)
            except (ConnectionError, ssl.SSLError):  # the server closed it while it was idle
                connection.close()
            except BaseException:
                connection.close()
                raise
        connection = self._connect(target, deadline)
        try:
            return connection, connection.get(request, deadline)
        except BaseException:
            connection.close()
            raise

    def _connect(self, target: _Target, deadline: float) -> _Connection:
        addresses = self._addresses(target.host, deadline)
        for index, address in enumerate(addresses):
            untried = len(addresses) - index
            try:
                sock = self._dial((address, target.port), _left(deadline) / untried)
                break
            except OSError:
                if untried == 1:
                    raise
        if target.scheme == "http":
            return _Connection(sock)
        try:
            sock.settimeout(_left(deadline))
            return _Connection(self._tls.wrap_socket(sock, server_hostname=target.host))
        except BaseException:
            sock.close()
            raise

    def _addresses(self, host: str, deadline: float) -> list[str]:
        """The addresses of a host that may be connected to."""
        try:
            found: Sequence[str] = [str(ipaddress.ip_address(host))]
        except ValueError:
            found = self._look_up(host, deadline)
        if not self.allow_private_addresses:
            public = [address for address in found if is_public(address)]
            if found and not public:
                raise FetchError("blocked_address", f"{host} is at {found[0]}")
            found = public
        if not found:
            raise FetchError("dns", host)
        return list(found[:_MAX_ADDRESSES])

    def _look_up(self, host: str, deadline: float) -> Sequence[str]:
        now = time.monotonic()
        with self._lock:
            since, future = self._lookups.get(host, (0.0, None))
            if future is None or now - since > _LOOKUP_SECONDS:
                if len(self._lookups) >= _MAX_LOOKUPS:
                    self._lookups.clear()
                future = self._resolver.submit(self._resolve, host)
                self._lookups[host] = now, future
        try:
            return future.result(_left(deadline))
        except TimeoutError:
            raise
        except (OSError, UnicodeError) as error:
            raise FetchError("dns", str(error)) from error

    def _take(self, target: _Target) -> _Connection | None:
        with self._lock:
            for index in range(len(self._idle) - 1, -1, -1):
                origin, connection = self._idle[index]
                if origin == target.origin:
                    del self._idle[index]
                    return connection
        return None

    def _put_back(
        self, target: _Target, connection: _Connection, response: http.client.HTTPResponse
    ) -> None:
        """Keep a connection whose answer was read to its end; close any other."""
        unwanted = response.status not in _WANTED and not response.isclosed()
        if unwanted and response.length is not None and response.length <= _DRAIN:
            with contextlib.suppress(OSError, http.client.HTTPException):
                response.read()
        if response.will_close or not response.isclosed():
            connection.close()
            return
        with self._lock:
            self._idle.append((target.origin, connection))
            if len(self._idle) > _MAX_IDLE:
                self._idle.popleft()[1].close()


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
