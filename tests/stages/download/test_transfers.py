"""Connections to servers that refuse, drip, hang, break off or speak TLS."""

from __future__ import annotations

import contextlib
import gzip
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.hosts import (
    ROBOTS,
    Answer,
    Server,
    _resolve_to_loopback,
    drip,
    fetcher,
    ok,
    outcome,
    reason,
    robots_asked,
    silence,
    status,
)
from hypothesis import given, settings
from hypothesis import strategies as st


def test_a_connection_serves_one_request_where_answers_are_not_numbered(server: Server) -> None:
    for name in "abc":
        server.answers[f"/{name}"] = ok(name.encode()) + ok(b"the picture of another")
    one = fetcher()
    for name in "abc":
        assert one.fetch(server.url(f"/{name}")).content == name.encode()
    assert server.connections == 3


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(drip(b"HTTP/1.1 200 OK\r\nX-A: ", b"a"), id="header line"),
        pytest.param(drip(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"), id="headers"),
        pytest.param(drip(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 C\r\n\r\n"), id="100s"),
        pytest.param(drip(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"x"), id="body"),
        pytest.param(drip(b"HTTP/1.1 200 OK\r\n\r\n", b"x"), id="unannounced body"),
        pytest.param(
            drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
            id="chunks",
        ),
        pytest.param(silence, id="silence"),
    ],
)
def test_a_server_that_drips_or_is_silent_does_not_outlast_the_deadline(
    server: Server, answer: Answer
) -> None:
    server.answers["/"] = answer
    assert reason(server.url("/"), timeout=0.4) == "timeout"


def test_a_server_that_drips_an_error_page_keeps_its_status(server: Server) -> None:
    server.answers["/"] = drip(b"HTTP/1.1 404 No\r\nContent-Length: 999\r\n\r\n", b"x")
    for timeout in (1.0, 10.0, 100.0):  # a busy machine may need longer for the status
        if (found := reason(server.url("/"), timeout=timeout)) != "timeout":
            break
    assert found == "http_404"


def test_connections_that_are_refused_or_closed_have_their_reason(server: Server) -> None:
    server.answers["/closed"] = lambda sock, path: None
    assert reason(server.url("/closed")) == "connect"
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    assert reason(f"http://127.0.0.1:{port}/") == "connect"


def test_headers_without_end_are_refused(server: Server) -> None:
    def many(sock: socket.socket, path: str) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 10_000)

    def long(sock: socket.socket, path: str) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\nA: " + b"b" * 1_000_000)

    server.answers.update({"/many": many, "/long": long})
    assert reason(server.url("/many")) == "bad_response"
    assert reason(server.url("/long")) == "bad_response"


def test_what_is_not_http_is_a_bad_response(server: Server) -> None:
    server.answers["/"] = b"SSH-2.0-OpenSSH_9.6\r\n"
    assert reason(server.url("/")) == "bad_response"


def _nowhere(address: tuple[str, int]) -> socket.socket:
    raise ConnectionRefusedError


def test_no_text_raises_anything_but_a_reason() -> None:
    one = fetcher(resolve=_resolve_to_loopback, dial=_nowhere)

    @settings(max_examples=200, deadline=None)
    @given(url=st.text(max_size=80) | st.text(max_size=60).map("http://".__add__))
    def texts(url: str) -> None:
        assert outcome(one, url) in ("bad_url", "no_scheme", "connect", "dns", "blocked_address")

    texts()


def test_no_request_carries_a_header_from_a_url(server: Server) -> None:
    server.answers["/a%0D%0AX-Injected:%201"] = ok(b"a")
    fetcher().fetch(server.url("/a%0D%0AX-Injected: 1"))
    assert b"X-Injected" not in server.requests[0].replace(b"%0D%0AX-Injected", b"")
    assert server.requests[0].count(b"\r\n") == len(server.requests[0].splitlines())
    assert len(server.requests[0].splitlines()) == 6


def test_the_next_address_is_tried_when_one_refuses(server: Server) -> None:
    server.answers["/"] = ok(b"a")

    def dial(address: tuple[str, int]) -> socket.socket:
        if address[0] == "192.0.2.1":
            raise ConnectionRefusedError
        return socket.create_connection(address, 600)

    one = fetcher(resolve=lambda host: ["192.0.2.1", "127.0.0.1"], dial=dial)
    assert one.fetch(server.url("/", "two.test")).content == b"a"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for safe.test, its own authority, with its key in the same file."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    key, cert, both = folder / "key.pem", folder / "cert.pem", folder / "both.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    names = ["-subj", "/CN=safe.test", "-addext", "subjectAltName=DNS:safe.test"]
    files = ["-keyout", str(key), "-out", str(cert)]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    both.write_bytes(key.read_bytes() + cert.read_bytes())
    return both


@pytest.fixture
def safe_server(certificate: Path) -> Iterator[Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = Server(context)
    yield server
    server.close()


@pytest.mark.slow
def test_https_with_a_trusted_certificate_arrives(
    safe_server: Server, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    safe_server.answers["/"] = ok(b"image")
    one = fetcher(resolve=_resolve_to_loopback)
    for _ in range(3):
        assert one.fetch(safe_server.url("/", "safe.test")).content == b"image"


@pytest.mark.slow
def test_a_certificate_that_is_untrusted_or_of_another_name_has_its_reason(
    safe_server: Server, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reason(safe_server.url("/", "safe.test"), resolve=_resolve_to_loopback) == "tls"
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert reason(safe_server.url("/", "other.test"), resolve=_resolve_to_loopback) == "tls"


def test_https_to_a_server_that_speaks_none_has_its_reason(server: Server) -> None:
    server.answers["/"] = ok(b"a")

    def plain() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port.append(listener.getsockname()[1])
            ready.set()
            sock, _ = listener.accept()
            with sock:
                sock.recv(4096)
                sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    port: list[int] = []
    ready = threading.Event()
    thread = threading.Thread(target=plain, daemon=True)
    thread.start()
    ready.wait(600)
    assert reason(f"https://127.0.0.1:{port[0]}/") == "tls"
    thread.join(600)


def test_a_handshake_that_hangs_does_not_outlast_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/"
        assert reason(url, timeout=0.3) == "timeout"


@pytest.mark.slow
def test_robots_and_codings_work_over_https(
    safe_server: Server, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    safe_server.answers["/robots.txt"] = ok(ROBOTS)
    safe_server.answers["/a"] = ok(gzip.compress(b"image"), "Content-Encoding: gzip")
    safe_server.answers["/private"] = ok(b"private")
    busy = iter([status(503, "Retry-After: 0"), ok(b"at last")])
    safe_server.answers["/busy"] = lambda sock, path: sock.sendall(next(busy))
    one = fetcher(resolve=_resolve_to_loopback, robots="capfilt-test", retries=1)
    assert one.fetch(safe_server.url("/a", "safe.test")).content == b"image"
    assert outcome(one, safe_server.url("/private", "safe.test")) == "robots"
    assert one.fetch(safe_server.url("/busy", "safe.test")).content == b"at last"
    assert robots_asked(safe_server) == 1
    with contextlib.closing(fetcher(resolve=_resolve_to_loopback, robots="capfilt-test")) as other:
        assert outcome(other, safe_server.url("/a", "other.test")) == "tls"


def reset(sock: socket.socket) -> None:
    """Close a connection with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_a_connection_that_is_reset_has_its_reason(server: Server) -> None:
    def midway(sock: socket.socket, path: str) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nabc")
        time.sleep(0.1)
        reset(sock)

    server.answers.update({"/at-once": lambda sock, path: reset(sock), "/midway": midway})
    assert reason(server.url("/at-once")) == "connect"
    assert reason(server.url("/midway")) == "incomplete"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (drip(b"HTTP/1.1 200 OK\r\n\r\n", b"x"), "timeout"),
        (silence, "timeout"),
        (ok(b"x" * 100_001), "too_large"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 400_000, "bad_response"),
        (lambda sock, path: sock.sendall(ok(b"abc").replace(b": 3", b": 9")), "incomplete"),
        (status(302, "Location: /"), "redirect_loop"),
        (status(302, "Location: http://10.0.0.1/"), "connect"),
        (status(404), "http_404"),
        (status(503), "http_5xx"),
    ],
)
def test_faults_have_the_same_reasons_over_https(
    safe_server: Server,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: bytes | Answer,
    expected: str,
) -> None:
    def dial(address: tuple[str, int]) -> socket.socket:
        if address[0] != "127.0.0.1":
            raise ConnectionRefusedError
        return socket.create_connection(address, 600)

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    safe_server.answers["/"] = answer
    given = {"resolve": _resolve_to_loopback, "dial": dial, "max_bytes": 100_000}
    timeout = 0.8 if expected == "timeout" else 120.0
    assert reason(safe_server.url("/", "safe.test"), timeout=timeout, **given) == expected
