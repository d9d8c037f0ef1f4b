"""Connections to web servers, which end by a deadline whatever the server does.

What is connected to are the addresses given, never a name that is looked up again.
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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import quote, urlsplit

from stages.robots import Origin

__all__ = ["Connection", "Connections", "Target", "dial", "time_left"]

_MAX_URL = 8192
_MAX_IDLE = 64  # connections kept open
_DRAIN = 65_536  # bytes of an unwanted body that are read to keep its connection

_HOST = re.compile(r"[a-z0-9._-]{1,253}")
# What a URL may hold as it is; the rest is percent-encoded. "%" stays, so nothing is encoded twice.
_SAFE = "/%:=&?~+!$,;'@()*[]|"


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a URL leads: the scheme, host and port of a connection, and what to ask there."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def of(cls, url: str) -> Target:
        """Where a URL leads.

        Raises:
            ValueError: It is no http or https URL with a host, or too long.
        """
        parts = urlsplit(url.strip())
        host, port = parts.hostname or "", parts.port
        path = quote(parts.path or "/", safe=_SAFE)
        query = f"?{quote(parts.query, safe=_SAFE)}" if parts.query else ""
        if ":" not in host:
            host = host.encode("idna").decode("ascii").removesuffix(".")
        else:
            host = str(ipaddress.IPv6Address(host))
        if parts.scheme not in ("http", "https") or len(url) > _MAX_URL:
            raise ValueError("not http or https, or too long")
        if ":" not in host and not _HOST.fullmatch(host):
            raise ValueError("no usable host")
        default = 443 if parts.scheme == "https" else 80
        return cls(scheme=parts.scheme, host=host, port=port or default, path=path + query)

    @property
    def origin(self) -> Origin:
        """Scheme, host and port."""
        return self.scheme, self.host, self.port

    @property
    def authority(self) -> str:
        """What the Host header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (
            host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"
        )

    def request(self, user_agent: str) -> bytes:
        """The bytes that ask for it."""
        return (
            f"GET {self.path} HTTP/1.1\r\nHost: {self.authority}\r\nUser-Agent: {user_agent}\r\n"
            "Accept: image/*,*/*;q=0.5\r\nAccept-Encoding: identity\r\n\r\n"
        ).encode("latin-1")


def dial(address: tuple[str, int], timeout: float) -> socket.socket:
    """A socket connected to an (address, port) within so many seconds."""
    return socket.create_connection(address, timeout)


class Connection:
    """An open socket that gives `http.client.HTTPResponse` what it needs: `makefile`."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._deadline = 0.0

    def get(self, request: bytes, deadline: float) -> http.client.HTTPResponse:
        """Send a request and read the head of its answer.

        Args:
            request: Its bytes.
            deadline: By `time.monotonic`, for the body of the answer, too.

        Raises:
            TimeoutError: The deadline passed.
        """
        self._deadline = deadline
        self._socket.settimeout(time_left(deadline))
        self._socket.sendall(request)
        response = http.client.HTTPResponse(cast(socket.socket, self), method="GET")
        response.begin()
        return response

    def makefile(self, mode: str) -> io.BufferedReader:
        """What comes over the socket, as a file."""
        assert mode == "rb"
        return io.BufferedReader(_Reader(self), 65_536)

    def receive(self, buffer: Any) -> int:
        """Read some bytes into a buffer; their number, 0 at the end."""
        self._socket.settimeout(time_left(self._deadline))
        return self._socket.recv_into(buffer)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class _Reader(io.RawIOBase):
    """The receiving side of a connection, each read of which ends by the deadline."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._connection.receive(buffer)


class Connections:
    """Opens connections and keeps those that can serve again; threads share one.

    Args:
        dial: An (address, port) and seconds to a connected socket.
    """

    def __init__(self, dial: Callable[[tuple[str, int], float], socket.socket] = dial) -> None:
        self._dial = dial
        self._tls = ssl.create_default_context()
        self._lock = threading.Lock()
        self._idle: deque[tuple[Origin, Connection]] = deque()

    def ask(
        self, target: Target, addresses: list[str], request: bytes, deadline: float
    ) -> tuple[Connection, http.client.HTTPResponse]:
        """Send a request over an idle connection or a new one, and read the head of its answer.

        Args:
            target: Where to.
            addresses: Of its host, tried one after the other; at least one.
            request: Its bytes.
            deadline: By `time.monotonic`.

        Returns:
            The answer, and the connection to `put_back` when enough of it was read.

        Raises:
            OSError: There is no connection, or no answer.
            http.client.HTTPException: The answer is not HTTP.
        """
        connection = self._take(target)
        if connection is not None:
            try:
                return connection, connection.get(request, deadline)
            except (ConnectionError, ssl.SSLError):  # the server closed it while it was idle
                connection.close()
            except BaseException:
                connection.close()
                raise
        connection = self._connect(target, addresses, deadline)
        try:
            return connection, connection.get(request, deadline)
        except BaseException:
            connection.close()
            raise

    def put_back(
        self,
        target: Target,
        connection: Connection,
        response: http.client.HTTPResponse,
        is_wanted: bool,
    ) -> None:
        """Keep a connection whose answer was read to its end; close any other.

        The rest of a short answer that is not wanted is read first.
        """
        unwanted = not is_wanted and not response.isclosed()
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

    def close(self) -> None:
        """Close the connections that are kept."""
        with self._lock:
            while self._idle:
                self._idle.pop()[1].close()

    def _take(self, target: Target) -> Connection | None:
        with self._lock:
            for index in range(len(self._idle) - 1, -1, -1):
                origin, connection = self._idle[index]
                if origin == target.origin:
                    del self._idle[index]
                    return connection
        return None

    def _connect(self, target: Target, addresses: list[str], deadline: float) -> Connection:
        for index, address in enumerate(addresses):
            untried = len(addresses) - index
            try:
                sock = self._dial((address, target.port), time_left(deadline) / untried)
                break
            except OSError:
                if untried == 1:
                    raise
        if target.scheme == "http":
            return Connection(sock)
        try:
            sock.settimeout(time_left(deadline))
            return Connection(self._tls.wrap_socket(sock, server_hostname=target.host))
        except BaseException:
            sock.close()
            raise


def time_left(deadline: float) -> float:
    """Seconds until the deadline.

    Raises:
        TimeoutError: It has passed.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("past the deadline")
    return left
