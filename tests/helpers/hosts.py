"""Hosts on loopback that answer as a test likes, and what fetches from them."""

from __future__ import annotations

import contextlib
import itertools
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from stages.download.addresses import is_public
from stages.download.fetch import FETCH_REASONS, Fetched, Fetcher, FetchError

K = TypeVar("K")

Answer = Callable[[socket.socket, str], None]


class Server:
    """A server on loopback that answers each path with bytes or by a function of the socket."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.answers: dict[str, bytes | Answer] = {}
        self.keep_alive: dict[str, Answer] = {}  # those after which the connection goes on
        self.requests: list[bytes] = []
        self.connections = 0
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.closing = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"{'https' if self._context else 'http'}://{host}:{self.port}{path}"

    def close(self) -> None:
        self.closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while not self.closing.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.callback(sock.close)
            sock.settimeout(600)
            if self._context is not None:
                sock = self._context.wrap_socket(sock, server_side=True)
                stack.callback(sock.close)
            while request := self._request(sock):
                self.requests.append(request)
                path = request.split(b" ")[1].decode("ascii")
                if path in self.keep_alive:
                    self.keep_alive[path](sock, path)
                    continue
                answer = self.answers.get(path, status(404))
                if callable(answer):
                    answer(sock, path)
                    return
                sock.sendall(answer)

    def _request(self, sock: socket.socket) -> bytes:
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            part = sock.recv(65_536)
            if not part:
                return b""
            request += part
        return request


def ok(body: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def status(code: int, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {code} Word", "Content-Length: 0", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1")


def drip(first: bytes, more: bytes) -> Answer:
    """Send the first bytes at once, then one of the others every 20 ms, for ever."""

    def answer(sock: socket.socket, path: str) -> None:
        sock.sendall(first)
        for index in itertools.count():
            sock.sendall(more[index % len(more) : index % len(more) + 1])
            time.sleep(0.02)

    return answer


def silence(sock: socket.socket, path: str) -> None:
    """Send nothing until the client hangs up."""
    sock.recv(1)


def fetcher(**changes: Any) -> Fetcher:
    given = {"user_agent": "capfilt-test/1", "timeout": 120.0, "allow_private_addresses": True}
    return Fetcher(**{**given, **changes})


def outcome(one: Fetcher, url: str) -> str:
    try:
        one.fetch(url)
    except FetchError as error:
        assert error.reason in FETCH_REASONS
        return error.reason
    return "success"


def outcomes(one: Fetcher, urls: dict[K, str]) -> dict[K, bytes | str]:
    """What is fetched all at once, under the same names: the bytes or the reason."""
    return {
        key: found.content if isinstance(found, Fetched) else found.reason
        for key, found in one.fetch_all(urls.items())
    }


def reason(url: str, **changes: Any) -> str:
    with contextlib.closing(fetcher(**changes)) as one:
        return outcome(one, url)


def _resolve_to_loopback(host: str) -> list[str]:
    return ["127.0.0.1"]


ROBOTS = b"User-agent: capfilt-test\nDisallow: /private\n"


def robots_asked(server: Server) -> int:
    return sum(b" /robots.txt " in request for request in server.requests)


class Internet:
    """Names and public addresses that lead to a server on loopback."""

    def __init__(self, server: Server, names: dict[str, list[list[str]]]) -> None:
        self.port = server.port
        self.names = {name: iter(answers) for name, answers in names.items()}
        self.dialled: list[str] = []

    def resolve(self, host: str) -> list[str]:
        if host not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "no such host")
        return next(self.names[host])

    def dial(self, address: tuple[str, int]) -> socket.socket:
        self.dialled.append(address[0])
        assert is_public(address[0])
        return socket.create_connection(("127.0.0.1", self.port), 600)

    def fetcher(self, **changes: Any) -> Fetcher:
        given = {"allow_private_addresses": False, "resolve": self.resolve, "dial": self.dial}
        return fetcher(**given, **changes)
