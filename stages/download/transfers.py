"""Sends concurrent HTTP requests to untrusted servers with libcurl, in one thread."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import socket
import ssl
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

import certifi
import pycurl

from stages.download.addresses import is_public
from stages.download.lenient_client import Exchange

__all__ = ["Body", "Failure", "Headers", "Request", "Response", "Transfers"]

K = TypeVar("K")

Failure = Literal[
    "bad_url",
    "dns",
    "blocked_address",
    "connect",
    "tls",
    "timeout",
    "bad_response",
    "too_large",
    "incomplete",
]

_MAX_IDLE = 64  # connections kept open
_MAX_ORIGINS = 10_000  # origins whose HTTP version is remembered
_HTTP_2 = 3  # CURL_HTTP_VERSION_2_0, the value of INFO_HTTP_VERSION
_MALFORMED = {"Header without colon", "NUL byte in header"}  # libcurl's messages
_TICK = 0.02  # seconds between polls of lenient requests
_STATUS = re.compile(rb"HTTP/[0-9](?:\.[0-9])?\s+([0-9]{3})")
_GZIP = b"\x1f\x8b"
_DRAIN = 65_536  # an unwanted body is read up to this size, so that its connection can be kept
_BUFFER = 131_072  # bytes per read from a socket
_DNS_SECONDS = 60  # how long an address is cached

_FAILURES: dict[int, Failure] = {
    pycurl.E_UNSUPPORTED_PROTOCOL: "bad_response",  # the response is not HTTP
    pycurl.E_URL_MALFORMAT: "bad_url",
    pycurl.E_COULDNT_RESOLVE_PROXY: "connect",
    pycurl.E_COULDNT_RESOLVE_HOST: "dns",
    pycurl.E_COULDNT_CONNECT: "connect",
    pycurl.E_PARTIAL_FILE: "incomplete",
    pycurl.E_OPERATION_TIMEDOUT: "timeout",
    pycurl.E_GOT_NOTHING: "connect",
    pycurl.E_SEND_ERROR: "connect",
    pycurl.E_FILESIZE_EXCEEDED: "too_large",
}
_TLS = {
    pycurl.E_SSL_CONNECT_ERROR,
    pycurl.E_SSL_ENGINE_NOTFOUND,
    pycurl.E_SSL_ENGINE_SETFAILED,
    pycurl.E_SSL_CERTPROBLEM,
    pycurl.E_SSL_CIPHER,
    pycurl.E_PEER_FAILED_VERIFICATION,
    pycurl.E_SSL_CACERT_BADFILE,
    pycurl.E_SSL_ISSUER_ERROR,
    pycurl.E_SSL_INVALIDCERTSTATUS,
}
# The connection broke: `connect` before the end of the headers, `incomplete` after it.
_HTTP2_STREAM = 92  # CURLE_HTTP2_STREAM, which pycurl does not name
_BROKEN = {pycurl.E_RECV_ERROR, pycurl.E_HTTP2, _HTTP2_STREAM}


class Body(Enum):
    """What to do with the body of a response."""

    KEEP = "keep"
    DROP = "drop"  # read it if it is short, so that the connection can be reused
    STOP = "stop"  # end the transfer now


class Headers:
    """The headers of one response, in order."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []

    def add(self, line: bytes) -> None:
        """Add a raw line; it is parsed only when it is needed."""
        self._lines.append(line)

    def get_all(self, name: str, default: list[str] | None = None) -> list[str]:
        """Return the values of a header; `name` may be in any case.

        As in browsers, lines without a colon and blanks around a name are ignored.
        """
        wanted = name.lower().encode()
        values = []
        for line in self._lines:
            stripped = line.lstrip()
            if stripped[: len(wanted)].lower() == wanted:
                rest = stripped[len(wanted) :].lstrip()
                if rest.startswith(b":"):
                    values.append(_text(rest[1:].strip()))
        return values or default or []

    def get(self, name: str) -> str | None:
        """Return the first value of a header, or None."""
        return next(iter(self.get_all(name)), None)

    def __contains__(self, name: str) -> bool:
        return bool(self.get_all(name))


def _read_all(status: int, headers: Headers) -> Body:
    return Body.KEEP


@dataclass(frozen=True, kw_only=True)
class Request:
    """A GET request for one URL.

    Attributes:
        url: An http or https URL in ASCII.
        seconds: Time limit for the whole response, including look-up and handshake.
        max_bytes: Maximum size of the body, as sent and as decoded.
        is_cut: Whether a longer body is cut; otherwise it fails.
        accept: The Accept header.
        judge: Decides from the status and the headers of the response what to do with its body.
        is_plain: Ignore the Content-Encoding: a body that starts like gzip is decompressed, any
            other is taken as sent.
        is_lenient: Ignore malformed header lines that libcurl refuses; implies `is_plain`.
    """

    url: str
    seconds: float
    max_bytes: int
    is_cut: bool = False
    accept: str = "image/*"
    judge: Callable[[int, Headers], Body] = _read_all
    is_plain: bool = False
    is_lenient: bool = False


@dataclass(frozen=True, kw_only=True)
class Response:
    """The result of a request.

    Attributes:
        status: Status of the final response; 0 if there was none.
        headers: Headers of the final response.
        content: Decoded body; empty unless the request's `judge` kept it.
        failure: Why the request failed, possibly after the headers; or None.
        detail: libcurl's message on the failure.
        is_miscoded: Whether the body does not have the declared Content-Encoding.
        is_malformed: Whether libcurl refused a header line that browsers ignore.
    """

    status: int
    headers: Headers
    content: bytes
    failure: Failure | None
    detail: str
    is_miscoded: bool
    is_malformed: bool


class Transfers(Generic[K]):
    """Sends concurrent requests, each with a key. Not thread-safe.

    An HTTP/1 connection serves one request only. HTTP/1 matches responses to requests by order
    alone, so one extra byte or an unrequested response would give a request the response of
    another. HTTP/2 numbers its streams, so its connections are kept open and shared.

    Args:
        user_agent: User-Agent of each request.
        allow_private_addresses: Also connect to addresses that are not public. Addresses are
            checked when the socket is opened, so a name server cannot bypass the check.
        proxy: URL of a proxy, or `environment` to use http_proxy, https_proxy and no_proxy. The
            proxy is trusted, wherever it is, and decides which addresses it connects to.
        resolve: Resolves a host name to addresses in place of the system; raises OSError if it has
            none.
        dial: Connects a socket to an (address, port) in place of the system; raises OSError.
    """

    def __init__(
        self,
        *,
        user_agent: str,
        allow_private_addresses: bool = False,
        proxy: str | None = None,
        resolve: Callable[[str], Sequence[str]] | None = None,
        dial: Callable[[tuple[str, int]], socket.socket] | None = None,
    ) -> None:
        self._allow_private_addresses = allow_private_addresses
        self._proxy = proxy
        self._resolve = resolve
        self._dial = dial
        self._user_agent = user_agent
        self._running: dict[pycurl.Curl, tuple[K, _Transfer]] = {}
        self._idle: list[_Transfer] = []
        self._exchanges: set[pycurl.Curl] = set()
        self._versions: dict[str, int] = {}  # HTTP versions by origin
        self._selector = selectors.DefaultSelector()
        self._timer: float | None = None
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_MAXCONNECTS, _MAX_IDLE)
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._set_timer)

    def __len__(self) -> int:
        """Number of active requests."""
        return len(self._running)

    def start(self, key: K, request: Request) -> None:
        """Start a request; `wait` returns its result."""
        is_new = request.is_lenient or not self._idle
        transfer = self._new_transfer() if is_new else self._idle.pop()
        if self._resolve is not None:
            _set_addresses(transfer.handle, request.url, self._resolve)
        proxy = _environment_proxy(request.url) if self._proxy == "environment" else self._proxy
        transfer.begin(request, proxy or "", self._versions.get(_origin(request.url)))
        self._running[transfer.handle] = key, transfer
        self._multi.add_handle(transfer.handle)

    def wait(self, seconds: float | None) -> list[tuple[K, Response]]:
        """Run all requests until one ends or `seconds` have passed.

        Returns:
            The key and the response of each request that ended.
        """
        if self._timer is not None:
            left = max(0.0, self._timer - time.monotonic())
            seconds = left if seconds is None else min(seconds, left)
        if self._exchanges:
            seconds = _TICK if seconds is None else min(seconds, _TICK)
        for key, mask in self._selector.select(seconds):
            readable = pycurl.CSELECT_IN if mask & selectors.EVENT_READ else 0
            writable = pycurl.CSELECT_OUT if mask & selectors.EVENT_WRITE else 0
            self._multi.socket_action(key.fd, readable | writable)
        if self._timer is not None and self._timer <= time.monotonic():
            self._timer = None
            self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
        return self._exchanged() + self._ended()

    def stop(self) -> None:
        """Cancel all requests."""
        self._exchanges.clear()
        for _, transfer in self._running.values():
            self._multi.remove_handle(transfer.handle)
            transfer.handle.close()
        self._running.clear()

    def close(self) -> None:
        """Cancel all requests and close all connections."""
        self.stop()
        for transfer in self._idle:
            transfer.handle.close()
        self._idle.clear()
        self._multi.close()
        self._selector.close()

    def _ended(self) -> list[tuple[K, Response]]:
        ended: list[tuple[K, Response]] = []
        more = 1
        while more:
            more, good, bad = self._multi.info_read()
            finished = [(handle, 0, "") for handle in good] + list(bad)
            for handle, code, message in finished:
                key, transfer = self._running[handle]
                if transfer.request.is_lenient and code == pycurl.E_OK:
                    transfer.begin_exchange(self._user_agent)
                    self._exchanges.add(handle)
                    continue
                del self._running[handle]
                self._multi.remove_handle(handle)
                version = handle.getinfo(pycurl.INFO_HTTP_VERSION)
                if version:
                    if len(self._versions) >= _MAX_ORIGINS:
                        self._versions.clear()
                    self._versions[_origin(transfer.request.url)] = version
                if version != _HTTP_2 and transfer.has_shared:
                    transfer.begin(transfer.request, transfer.proxy, version)
                    self._running[handle] = key, transfer
                    self._multi.add_handle(handle)
                    continue
                ended.append((key, transfer.end(code, message)))
                self._idle.append(transfer)
        return ended

    def _exchanged(self) -> list[tuple[K, Response]]:
        """Run the lenient requests; returns those that end."""
        ended = []
        for handle in list(self._exchanges):
            key, transfer = self._running[handle]
            response = transfer.advance()
            if response is None:
                continue
            ended.append((key, response))
            self._exchanges.remove(handle)
            del self._running[handle]
            self._multi.remove_handle(handle)
            handle.close()
        return ended

    def _watch(self, event: int, fd: int, multi: Any, data: Any) -> None:
        if event == pycurl.POLL_REMOVE:
            self._selector.unregister(fd)
            return
        wanted = (selectors.EVENT_READ if event & pycurl.POLL_IN else 0) | (
            selectors.EVENT_WRITE if event & pycurl.POLL_OUT else 0
        )
        if fd in self._selector.get_map():
            self._selector.modify(fd, wanted)
        else:
            self._selector.register(fd, wanted)

    def _set_timer(self, milliseconds: int) -> None:
        self._timer = None if milliseconds < 0 else time.monotonic() + milliseconds / 1000

    def _new_transfer(self) -> _Transfer:
        handle = pycurl.Curl()
        handle.setopt(pycurl.NOSIGNAL, 1)
        handle.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
        handle.setopt(pycurl.FOLLOWLOCATION, 0)
        handle.setopt(pycurl.PATH_AS_IS, 1)
        handle.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2TLS)
        handle.setopt(pycurl.USERAGENT, self._user_agent)
        handle.setopt(pycurl.BUFFERSIZE, _BUFFER)
        handle.setopt(pycurl.DNS_CACHE_TIMEOUT, _DNS_SECONDS)
        _trust(handle)
        if self._dial is not None:
            handle.setopt(pycurl.SOCKOPTFUNCTION, lambda *_: pycurl.SOCKOPT_ALREADY_CONNECTED)
        return _Transfer(handle, self._allow_private_addresses, self._dial)


class _Transfer:
    """A libcurl handle and the response it is receiving; reused for one request after another."""

    def __init__(
        self,
        handle: pycurl.Curl,
        allow_private_addresses: bool,
        dial: Callable[[tuple[str, int]], socket.socket] | None,
    ) -> None:
        self.handle = handle
        self._allow_private_addresses = allow_private_addresses
        self._dial = dial
        handle.setopt(pycurl.OPENSOCKETFUNCTION, self._open)
        handle.setopt(pycurl.HEADERFUNCTION, self._read_header)
        handle.setopt(pycurl.WRITEFUNCTION, self._read_body)

    def begin(self, request: Request, proxy: str, version: int | None) -> None:
        """Set up the handle for a request.

        Args:
            request: The request.
            proxy: URL of the proxy; empty for none.
            version: HTTP version of the server, if it is known.
        """
        self.request = request
        self.proxy = proxy
        self._began = time.monotonic()
        self._code = 0  # status of the response being read, possibly a 1xx
        self._status = 0
        self._headers = Headers()
        self._use = Body.KEEP
        self._parts: list[bytes] = []
        self._size = 0
        self._is_full = False  # whether the body is longer than the request allows
        self._blocked: str | None = None
        self._has_dialled = False
        self._sockets: list[socket.socket] = []
        handle = self.handle
        handle.setopt(pycurl.URL, request.url)
        handle.setopt(pycurl.PROXY, proxy)  # "" also switches off proxies of the environment
        handle.setopt(pycurl.TIMEOUT_MS, max(1, round(request.seconds * 1000)))
        handle.setopt(pycurl.HTTPHEADER, [f"Accept: {request.accept}"])
        is_known = version is not None or request.url.startswith("http:")
        serves_once = version != _HTTP_2
        handle.setopt(pycurl.FRESH_CONNECT, serves_once)
        handle.setopt(pycurl.FORBID_REUSE, is_known and serves_once and not request.is_lenient)
        if request.is_lenient:
            handle.setopt(pycurl.CONNECT_ONLY, 1)
            handle.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
        handle.setopt(pycurl.HTTP_CONTENT_DECODING, not request.is_plain)
        handle.setopt(pycurl.ACCEPT_ENCODING, "identity" if request.is_plain else "")  # "": all
        handle.setopt(pycurl.MAXFILESIZE_LARGE, 0 if request.is_cut else request.max_bytes)

    def begin_exchange(self, user_agent: str) -> None:
        """Send the request over the connection that libcurl has opened."""
        self._exchange = Exchange(
            self.handle,
            self.request.url,
            [f"User-Agent: {user_agent}", f"Accept: {self.request.accept}"],
            self.request.max_bytes,
            self._began + self.request.seconds,
        )

    def advance(self) -> Response | None:
        """Run the exchange; returns the response once it ends."""
        exchange = self._exchange
        exchange.advance()
        if exchange.code is None:
            return None
        if exchange.status:
            for line in (b"HTTP/1.0 %d" % exchange.status, *exchange.lines, b""):
                self._read_header(line)
            self._read_body(exchange.body)
        return self.end(exchange.code, "")

    @property
    def has_shared(self) -> bool:
        """Whether the response came over a connection that had served another request."""
        return self._code > 0 and not self.handle.getinfo(pycurl.NUM_CONNECTS)

    def end(self, code: int, message: str) -> Response:
        """Return the response, given the code and message that libcurl ended with."""
        for opened in self._sockets:
            opened.close()
        content, failure = b"".join(self._parts), self._failure(code, message)
        is_plain = self.request.is_plain or self.request.is_lenient
        if is_plain and failure is None and content.startswith(_GZIP):
            content, failure = _gunzip(content, self.request.max_bytes)
        return Response(
            status=self._status,
            headers=self._headers,
            content=content,
            failure=failure,
            detail=f"{self._blocked} is not public" if self._blocked else message,
            is_miscoded=failure == "bad_response" and "Content-Encoding" in self._headers,
            is_malformed=message in _MALFORMED and not self.proxy,
        )

    def _failure(self, code: int, message: str) -> Failure | None:
        if code == pycurl.E_OK:
            return None
        if self._is_full:
            return None if self.request.is_cut else "too_large"
        if code in (pycurl.E_WRITE_ERROR, pycurl.E_ABORTED_BY_CALLBACK) and (
            self._use is not Body.KEEP
        ):
            return None
        if code == pycurl.E_COULDNT_CONNECT and self._blocked and not self._has_dialled:
            return "blocked_address"
        if code in _BROKEN:
            if "chunk" in message:
                return "bad_response"
            return "incomplete" if self._status else "connect"
        if code in _TLS:
            return "tls"
        return _FAILURES.get(code, "bad_response")

    def _open(self, purpose: int, address: tuple[int, int, int, Any]) -> Any:
        """Open a socket for libcurl, unless the address is not allowed."""
        family, kind, protocol, (host, port, *_) = address
        if not (self._allow_private_addresses or self.proxy or is_public(host)):
            self._blocked = str(host)
            return pycurl.SOCKET_BAD
        self._has_dialled = True
        try:
            if self._dial is not None:
                opened = self._dial((host, port))
            else:
                opened = socket.socket(family, kind, protocol)
        except OSError:
            return pycurl.SOCKET_BAD
        self._sockets.append(opened)  # libcurl duplicates it; `end` closes this one
        return opened

    def _read_header(self, line: bytes) -> int | None:
        if status := _STATUS.match(line):  # including each 1xx before the final response
            self._headers = Headers()
            self._code = int(status[1])
            return None
        if line.strip(b"\r\n"):
            self._headers.add(line)
            return None
        if self._code >= 200 and not self._status:  # trailers also end with an empty line
            self._status = self._code
            self._use = self.request.judge(self._code, self._headers)
            if self._use is Body.STOP:
                return -1
        return None

    def _read_body(self, part: bytes) -> int | None:
        self._size += len(part)
        if self._use is not Body.KEEP:
            return None if self._size <= _DRAIN else -1
        if self._size > self.request.max_bytes:
            self._is_full = True
            if self.request.is_cut:
                self._parts.append(part)
            return -1
        self._parts.append(part)
        return None


def _trust(handle: pycurl.Curl) -> None:
    """Trust the same certificates as Python: SSL_CERT_FILE, SSL_CERT_DIR or the system's."""
    paths = ssl.get_default_verify_paths()
    file = paths.cafile or (None if paths.capath else certifi.where())
    if file is not None:
        handle.setopt(pycurl.CAINFO, file)
    else:
        handle.unsetopt(pycurl.CAINFO)
    # With a folder as well, libcurl would read the file again for each connection.
    if paths.capath and (file is None or os.environ.get("SSL_CERT_DIR")):
        handle.setopt(pycurl.CAPATH, paths.capath)


def _set_addresses(handle: pycurl.Curl, url: str, resolve: Callable[[str], Sequence[str]]) -> None:
    """Make a handle use the addresses that `resolve` gives for the host of a URL."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    name = f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
    entries = [f"-{name}"]
    with contextlib.suppress(OSError):
        addresses = resolve(parts.hostname)
        bracketed = [f"[{address}]" if ":" in address else address for address in addresses]
        entries.append(f"{name}:{','.join(bracketed)}")
    handle.setopt(pycurl.RESOLVE, entries)


def _environment_proxy(url: str) -> str | None:
    parts = urlsplit(url)
    if proxy_bypass(parts.hostname or ""):
        return None
    proxies = getproxies_environment()
    return proxies.get(parts.scheme) or proxies.get("all")


def _origin(url: str) -> str:
    return "/".join(url.split("/", 3)[:3])


def _gunzip(content: bytes, max_bytes: int) -> tuple[bytes, Failure | None]:
    """Decompress gzip with one or more members; returns the content, or the failure."""
    unpacked = b""
    while content.startswith(_GZIP):
        inflate = zlib.decompressobj(wbits=31)
        try:
            unpacked += inflate.decompress(content, max_bytes + 1 - len(unpacked))
        except zlib.error:
            return b"", "bad_response"
        if len(unpacked) > max_bytes:
            return b"", "too_large"
        if not inflate.eof:
            return b"", "incomplete"
        content = inflate.unused_data
    return unpacked, None


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
