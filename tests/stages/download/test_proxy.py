"""Proxies: those that the manifest names, and no others."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest
from helpers.hosts import Server, fetcher, ok, outcome


class Proxy:
    """A proxy of HTTP on loopback: it passes on GETs and tunnels, all to one server."""

    def __init__(self, server: Server) -> None:
        self.asked: list[bytes] = []
        self._target = ("127.0.0.1", server.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.settimeout(600)
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += client.recv(65_536)
            self.asked.append(head)
            with socket.create_connection(self._target, 600) as server:
                if head.startswith(b"CONNECT "):
                    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                else:
                    method, url, rest = head.split(b" ", 2)
                    path = b"/" + url.split(b"/", 3)[3]
                    server.sendall(b" ".join([method, path, rest]))
                back = threading.Thread(target=_pipe, args=(server, client), daemon=True)
                back.start()
                _pipe(client, server)
                back.join(600)


def _pipe(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while part := source.recv(65_536):
            target.sendall(part)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    one = Proxy(server)
    yield one
    one.close()


@pytest.fixture
def nobody() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


def test_proxies_of_the_environment_are_passed_over(
    server: Server, nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, nobody)
    server.answers["/a"] = ok(b"a")
    with contextlib.closing(fetcher()) as one:
        assert one.fetch(server.url("/a")).content == b"a"


def test_a_proxy_of_the_manifest_makes_the_connections(server: Server, proxy: Proxy) -> None:
    server.answers["/a"] = ok(b"a")
    given = {"proxy": f"http://127.0.0.1:{proxy.port}", "allow_private_addresses": False}
    with contextlib.closing(fetcher(**given)) as one:
        assert one.fetch("http://somewhere.test/a").content == b"a"
        assert proxy.asked[0].startswith(b"GET http://somewhere.test/a HTTP/1.1\r\n")
        for url in ("http://127.0.0.1/a", "http://[::1]/a", "http://169.254.169.254/a"):
            assert outcome(one, url) == "blocked_address"
    assert len(proxy.asked) == 1


@pytest.mark.slow
def test_https_goes_through_it_in_a_tunnel(tls_server: Server) -> None:
    tls_server.answers["/a"] = ok(b"a")
    proxy = Proxy(tls_server)
    with contextlib.closing(fetcher(proxy=f"http://127.0.0.1:{proxy.port}")) as one:
        assert one.fetch("https://127.0.0.1/a").content == b"a"
    assert proxy.asked[0].startswith(b"CONNECT 127.0.0.1:443 HTTP/1.1\r\n")
    proxy.close()


def test_the_environment_is_asked_where_the_manifest_says_so(
    server: Server, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://user:secret@127.0.0.1:{proxy.port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server.answers["/a"] = ok(b"a")
    with contextlib.closing(fetcher(proxy="environment")) as one:
        assert one.fetch("http://somewhere.test/a").content == b"a"
        assert one.fetch(server.url("/a")).content == b"a"
        assert len(proxy.asked) == 1
    with contextlib.closing(fetcher(proxy="environment", allow_private_addresses=False)) as one:
        assert outcome(one, "http://localhost:1/a") in ("success", "connect")  # by the proxy
        monkeypatch.setenv("no_proxy", "localhost")
        assert outcome(one, "http://localhost:1/a") == "blocked_address"  # by ourselves


def test_a_proxy_that_does_not_answer_has_its_reason(nobody: str) -> None:
    with contextlib.closing(fetcher(proxy=nobody)) as one:
        assert outcome(one, "http://somewhere.test/a") == "connect"
