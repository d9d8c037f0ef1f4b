from __future__ import annotations

import contextlib
import gzip
import itertools
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from email.message import Message
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.address import is_public
from stages.coding import Inflater
from stages.fetch import FETCH_REASONS, Fetcher, FetchError, retry_after
from stages.pace import Frontier, Pace, Steps, Wait

Answer = Callable[[socket.socket, str], None]


class Server:
    """A server on loopback that answers each path with bytes or by a function of the socket."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.answers: dict[str, bytes | Answer] = {}
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
            sock.settimeout(20)
            if self._context is not None:
                sock = self._context.wrap_socket(sock, server_side=True)
                stack.callback(sock.close)
            while request := self._request(sock):
                self.requests.append(request)
                path = request.split(b" ")[1].decode("ascii")
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


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def fetcher(**changes: Any) -> Fetcher:
    given = {"user_agent": "capfilt-test/1", "timeout": 5.0, "allow_private_addresses": True}
    return Fetcher(**{**given, **changes})


def outcome(one: Fetcher, url: str) -> str:
    try:
        one.fetch(url)
    except FetchError as error:
        assert error.reason in FETCH_REASONS
        return error.reason
    return "success"


def reason(url: str, **changes: Any) -> str:
    with contextlib.closing(fetcher(**changes)) as one:
        return outcome(one, url)


def test_the_bytes_of_a_url_arrive_and_the_request_is_honest(server: Server) -> None:
    server.answers["/a%20b.jpg?x=%C3%A9"] = ok(b"image")
    got = fetcher(user_agent="capfilt-test/1 (+mailto:us@example.org)").fetch(
        server.url("/a b.jpg?x=é#part")
    )
    assert got.content == b"image"
    assert b"User-Agent: capfilt-test/1 (+mailto:us@example.org)\r\n" in server.requests[0]
    assert f"Host: 127.0.0.1:{server.port}\r\n".encode() in server.requests[0]


def test_chunked_and_unannounced_bodies_arrive_whole(server: Server) -> None:
    server.answers["/chunked"] = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n"
    )
    server.answers["/closed"] = lambda sock, path: sock.sendall(b"HTTP/1.0 200 OK\r\n\r\nabcdefg")
    one = fetcher()
    assert one.fetch(server.url("/chunked")).content == b"abcdefg"
    assert one.fetch(server.url("/closed")).content == b"abcdefg"


def test_a_connection_is_used_again_and_replaced_when_the_server_closed_it(server: Server) -> None:
    server.answers["/a"] = ok(b"a")
    server.answers["/404"] = status(404)
    server.answers["/last"] = lambda sock, path: sock.sendall(ok(b"last"))
    one = fetcher()
    assert one.fetch(server.url("/a")).content == b"a"
    with pytest.raises(FetchError, match="http_404"):
        one.fetch(server.url("/404"))
    assert one.fetch(server.url("/last")).content == b"last"
    assert server.connections == 1
    assert one.fetch(server.url("/a")).content == b"a"
    assert server.connections == 2


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (403, "http_403"),
        (404, "http_404"),
        (410, "http_410"),
        (429, "http_429"),
        (418, "http_4xx"),
        (500, "http_5xx"),
        (503, "http_5xx"),
        (204, "bad_response"),
        (302, "bad_response"),
        (304, "bad_response"),
        (999, "bad_response"),
    ],
)
def test_a_status_has_its_reason(server: Server, code: int, expected: str) -> None:
    server.answers["/"] = status(code)
    assert reason(server.url("/")) == expected


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
        pytest.param(lambda sock, path: time.sleep(3), id="silence"),
    ],
)
def test_a_server_that_drips_or_is_silent_does_not_outlast_the_deadline(
    server: Server, answer: Answer
) -> None:
    server.answers["/"] = answer
    assert reason(server.url("/"), timeout=0.4) == "timeout"


def test_a_server_that_drips_an_error_page_keeps_its_status(server: Server) -> None:
    server.answers["/"] = drip(b"HTTP/1.1 404 No\r\nContent-Length: 999\r\n\r\n", b"x")
    assert reason(server.url("/"), timeout=1.5) == "http_404"


def test_a_host_without_an_answer_from_its_name_server_does_not_outlast_the_deadline() -> None:
    answered = threading.Event()

    def resolve(host: str) -> list[str]:
        answered.wait(20)
        return []

    assert reason("http://slow.test/", timeout=0.3, resolve=resolve) == "timeout"
    answered.set()


def test_a_body_over_the_cap_is_not_read(server: Server) -> None:
    sent = 0

    def endless(sock: socket.socket, path: str) -> None:
        nonlocal sent
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(4000):
            sock.sendall(b"x" * 65_536)
            sent += 65_536

    server.answers["/endless"] = endless
    server.answers["/announced"] = b"HTTP/1.1 200 OK\r\nContent-Length: 100001\r\n\r\n"
    assert reason(server.url("/endless"), max_bytes=100_000) == "too_large"
    assert reason(server.url("/announced"), max_bytes=100_000) == "too_large"
    assert sent < 100_000_000
    server.answers["/just"] = ok(b"x" * 100_000)
    assert len(fetcher(max_bytes=100_000).fetch(server.url("/just")).content) == 100_000


def test_a_body_that_ends_before_its_announced_end_is_incomplete(server: Server) -> None:
    server.answers["/length"] = lambda sock, path: sock.sendall(
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"
    )
    server.answers["/chunked"] = lambda sock, path: sock.sendall(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc"
    )
    assert reason(server.url("/length")) == "incomplete"
    assert reason(server.url("/chunked")) == "incomplete"


def test_an_empty_body_is_empty(server: Server) -> None:
    server.answers["/"] = ok(b"")
    assert reason(server.url("/")) == "empty"


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


def _nowhere(address: tuple[str, int], timeout: float) -> socket.socket:
    raise ConnectionRefusedError


def _resolve_to_loopback(host: str) -> list[str]:
    return ["127.0.0.1"]


HEADS = [
    b"",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: ",
    b"HTTP/1.1 301 Moved\r\nContent-Length: 0\r\nLocation: ",
]


def test_no_answer_of_a_server_raises_anything_but_a_reason(server: Server) -> None:
    def dial(address: tuple[str, int], timeout: float) -> socket.socket:
        if address != ("127.0.0.1", server.port):
            raise ConnectionRefusedError
        return socket.create_connection(address, timeout)

    one = fetcher(resolve=_resolve_to_loopback, dial=dial)

    @settings(max_examples=100, deadline=None)
    @given(head=st.sampled_from(HEADS), junk=st.binary(max_size=60))
    def answers(head: bytes, junk: bytes) -> None:
        server.answers["/"] = lambda sock, path: sock.sendall(head + junk + b"\r\n\r\n")
        outcome(one, server.url("/"))

    answers()


def test_no_text_raises_anything_but_a_reason() -> None:
    one = fetcher(resolve=_resolve_to_loopback, dial=_nowhere)

    @settings(max_examples=200, deadline=None)
    @given(url=st.text(max_size=80) | st.text(max_size=60).map("http://".__add__))
    def texts(url: str) -> None:
        assert outcome(one, url) in ("bad_url", "connect", "dns", "blocked_address")

    texts()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "cat.jpg",
        "//example.org/cat.jpg",
        "ftp://example.org/cat.jpg",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
        "http://",
        "http:///cat.jpg",
        "http://[::1/cat.jpg",
        "http://exa mple.org/",
        "http://example.org\r\nX-Injected: 1/",
        "http://example.org:99999/",
        "http://" + "a" * 70 + ".org/",
        "http://example.org/" + "a" * 9000,
        "http://example.org/\ud800",
    ],
)
def test_what_is_not_a_web_address_is_a_bad_url(url: str) -> None:
    def never(*args: object) -> Any:
        raise AssertionError("nothing may be looked up or connected to")

    assert reason(url, resolve=never, dial=never) == "bad_url"


def test_no_request_carries_a_header_from_a_url(server: Server) -> None:
    server.answers["/a%0D%0AX-Injected:%201"] = ok(b"a")
    fetcher().fetch(server.url("/a%0D%0AX-Injected: 1"))
    assert server.requests[0].count(b"\r\n") == 6


def test_redirects_are_followed_and_counted(server: Server) -> None:
    for index in range(7):
        server.answers[f"/{index}"] = status(302, f"Location: {index + 1}")
    server.answers["/7"] = ok(b"there")
    server.answers["/loop"] = status(301, "Location: /loop")
    server.answers["/ftp"] = status(301, "Location: ftp://127.0.0.1/a")
    got = fetcher(max_redirects=5).fetch(server.url("/2"))
    assert (got.content, got.url) == (b"there", server.url("/7"))
    assert reason(server.url("/1"), max_redirects=5) == "redirect_loop"
    assert reason(server.url("/loop")) == "redirect_loop"
    assert reason(server.url("/ftp")) == "bad_url"


def test_a_redirect_in_raw_utf8_is_followed(server: Server) -> None:
    server.answers["/"] = "HTTP/1.1 302 F\r\nContent-Length: 0\r\nLocation: /é\r\n\r\n".encode()
    server.answers["/%C3%A9"] = ok(b"there")
    assert fetcher().fetch(server.url("/")).content == b"there"


def test_the_opt_out_is_asked_before_the_body_is_read(server: Server) -> None:
    asked = threading.Event()

    def answer(sock: socket.socket, path: str) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Robots-Tag: noai\r\n\r\n")
        asked.wait(20)

    def opted_out(headers: Message) -> bool:
        return headers.get_all("X-Robots-Tag") == ["noai"]

    server.answers["/"] = answer
    assert reason(server.url("/"), opted_out=opted_out) == "opted_out"
    asked.set()


def test_only_what_may_pass_is_tried_again(server: Server) -> None:
    busy = iter([status(503), status(429), ok(b"at last")])

    def answer(sock: socket.socket, path: str) -> None:
        sock.sendall(next(busy))

    server.answers["/busy"] = answer
    server.answers["/404"] = status(404)
    assert fetcher(retries=2).fetch(server.url("/busy")).content == b"at last"
    before = len(server.requests)
    assert reason(server.url("/404"), retries=2) == "http_404"
    assert len(server.requests) == before + 1


def test_a_server_that_says_when_to_come_back_is_asked_then_and_by_nobody_before(
    server: Server,
) -> None:
    busy = iter([status(429, "Retry-After: 1"), ok(b"at last")])
    server.answers["/busy"] = lambda sock, path: sock.sendall(next(busy))
    server.answers["/other"] = ok(b"other")
    one = fetcher(retries=1)
    began = time.monotonic()
    thread = threading.Thread(target=one.fetch, args=(server.url("/busy"),))
    thread.start()
    while not server.requests:
        time.sleep(0.005)
    time.sleep(0.2)
    assert one.fetch(server.url("/other")).content == b"other"
    assert time.monotonic() - began >= 1.0
    thread.join(5)
    assert len(server.requests) == 3


@pytest.mark.parametrize("value", ["3600", formatdate(time.time() + 3600, usegmt=True), "9" * 400])
def test_a_server_that_says_to_come_back_too_late_is_not_waited_for(
    server: Server, value: str
) -> None:
    server.answers["/"] = status(429, f"Retry-After: {value}")
    with contextlib.closing(fetcher(retries=3, pace=Pace(max_wait=60.0))) as one:
        assert outcome(one, server.url("/")) == "http_429"
        assert outcome(one, server.url("/")) == "no_turn"
    assert len(server.requests) == 1


@given(value=st.none() | st.text() | st.dates().map(lambda day: day.strftime("%a, %d %b %Y")))
def test_no_retry_after_raises_or_is_negative(value: str | None) -> None:
    seconds = retry_after(value, 1.7e9)
    assert seconds is None or seconds >= 0


@given(seconds=st.integers(0, 10**9))
def test_retry_after_is_seconds_or_a_date(seconds: int) -> None:
    assert retry_after(f" {seconds} ", 0.0) == seconds
    assert retry_after(formatdate(seconds, usegmt=True), 0.0) == seconds
    assert retry_after(formatdate(seconds, usegmt=True), seconds + 1.0) == 0


@pytest.mark.parametrize("value", [None, "", "soon", "-5", "1.5", "\u0661", "Thu, 99 Foo 1970"])
def test_nonsense_asks_for_no_wait(value: str | None) -> None:
    assert retry_after(value, 0.0) is None


BODY = bytes(range(256)) * 500


def raw_deflate(body: bytes) -> bytes:
    deflate = zlib.compressobj(wbits=-15)
    return deflate.compress(body) + deflate.flush()


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(BODY)),
        ("X-GZIP", gzip.compress(BODY)),
        ("gzip", gzip.compress(BODY[:1000]) + gzip.compress(BODY[1000:])),
        ("gzip", gzip.compress(BODY) + b"\0" * 100),
        ("gzip", BODY),
        ("deflate", zlib.compress(BODY)),
        ("deflate", raw_deflate(BODY)),
        ("identity", BODY),
        ("UTF-8", BODY),
        ("", BODY),
    ],
)
def test_a_body_sent_compressed_arrives_as_it_was(server: Server, coding: str, body: bytes) -> None:
    server.answers["/"] = ok(body, f"Content-Encoding: {coding}")
    assert fetcher(max_bytes=len(BODY)).fetch(server.url("/")).content == BODY


@pytest.mark.parametrize(
    ("coding", "body", "expected"),
    [
        ("gzip", gzip.compress(bytes(50_000_000)), "too_large"),
        ("deflate", zlib.compress(bytes(50_000_000)), "too_large"),
        ("gzip", gzip.compress(BODY)[:-20], "incomplete"),
        ("gzip", gzip.compress(BODY)[:40] + b"\xff" * 400, "bad_response"),
        ("deflate", b"\xff" * 400, "bad_response"),
        ("gzip", gzip.compress(b""), "empty"),
        ("br", BODY, "bad_response"),
        ("zstd", BODY, "bad_response"),
        ("gzip, gzip", gzip.compress(gzip.compress(BODY)), "bad_response"),
    ],
)
def test_a_compressed_body_has_the_same_cap_and_reasons(
    server: Server, coding: str, body: bytes, expected: str
) -> None:
    server.answers["/"] = ok(body, f"Content-Encoding: {coding}")
    assert reason(server.url("/"), max_bytes=1_000_000) == expected


@given(body=st.binary(max_size=200), coding=st.sampled_from(["gzip", "deflate"]))
def test_no_compressed_bytes_raise_anything_but_their_own_error(body: bytes, coding: str) -> None:
    with contextlib.suppress(zlib.error):
        assert len(Inflater(coding).feed(body, 1000)) <= 1000


ROBOTS = b"User-agent: capfilt-test\nDisallow: /private\n"


def robots_asked(server: Server) -> int:
    return sum(b" /robots.txt " in request for request in server.requests)


def test_a_robots_txt_is_read_once_and_kept_to(server: Server) -> None:
    server.answers.update({"/robots.txt": ok(ROBOTS), "/a": ok(b"a"), "/private/a": ok(b"p")})
    server.answers["/there"] = status(302, "Location: /private/a")
    with contextlib.closing(fetcher(robots="capfilt-test")) as one:
        assert one.fetch(server.url("/a")).content == b"a"
        assert outcome(one, server.url("/private/a?b")) == "robots"
        assert outcome(one, server.url("/%70rivate/a")) == "robots"
        assert outcome(one, server.url("/there")) == "robots"
    assert robots_asked(server) == 1
    assert not any(b"/private" in request for request in server.requests)
    assert outcome(fetcher(robots="another"), server.url("/private/a")) == "success"
    assert outcome(fetcher(), server.url("/private/a")) == "success"
    assert robots_asked(server) == 2


def test_many_who_need_a_robots_txt_ask_for_it_once(server: Server) -> None:
    asked = threading.Event()

    def slow(sock: socket.socket, path: str) -> None:
        asked.wait(10)
        sock.sendall(ok(ROBOTS, "Connection: close"))

    server.answers.update({"/robots.txt": slow, "/a": ok(b"a")})
    one = fetcher(robots="capfilt-test")
    frontier: Frontier[Any] = Frontier(one.pace)
    for index in range(20):
        frontier.add(index, one.steps(server.url("/a")))

    def wait_for_robots() -> Steps[None]:  # one thread is left for what needs no robots.txt
        while not robots_asked(server):
            yield Wait(until=time.monotonic() + 0.01)
        asked.set()

    frontier.add("last", wait_for_robots())
    ended: list[Any] = []

    def work() -> None:
        while (found := frontier.next()) is not None:
            ended.append(found)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(ended) == 21
    assert not [found for found in ended if isinstance(found[1], Exception)]
    assert robots_asked(server) == 1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (status(404), "success"),
        (status(401), "success"),
        (status(429), "success"),
        (status(204), "success"),
        (status(500), "robots"),
        (status(503), "robots"),
        (b"SSH-2.0\r\n", "robots"),
        (ok(b""), "success"),
        (ok(b"<html><body>not found</body></html>"), "success"),
        (ok(b"User-agent: *\nDisallow: /"), "robots"),
        (ok(gzip.compress(b"User-agent: *\nDisallow: /"), "Content-Encoding: gzip"), "robots"),
        (status(301, "Location: /moved.txt"), "robots"),
        (status(301, "Location: /robots.txt"), "success"),
        (ok(b"User-agent: *\nDisallow: /i\n" + b"#" * 600_000 + b"\nAllow: /image"), "robots"),
        (lambda sock, path: sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"),
         "robots"),
        (lambda sock, path: None, "connect"),
        (lambda sock, path: time.sleep(3), "timeout"),
        (drip(b"HTTP/1.1 200 OK\r\n\r\n", b"#"), "timeout"),
    ],
)  # fmt: skip
def test_what_a_robots_txt_answers_decides_as_rfc_9309_says(
    server: Server, answer: bytes | Answer, expected: str
) -> None:
    server.answers.update({"/robots.txt": answer, "/image": ok(b"image")})
    server.answers["/moved.txt"] = ok(b"User-agent: *\nDisallow: /image")
    assert reason(server.url("/image"), robots="capfilt-test", timeout=1.0) == expected
    assert any(b" /image " in request for request in server.requests) is (expected == "success")


def test_a_robots_txt_that_never_ends_is_read_to_its_cap(server: Server) -> None:
    def endless(sock: socket.socket, path: str) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\nUser-agent: *\nDisallow: /private\n")
        for _ in range(4000):
            sock.sendall(b"#" * 65_535 + b"\n")

    server.answers.update({"/robots.txt": endless, "/a": ok(b"a"), "/private": ok(b"p")})
    with contextlib.closing(fetcher(robots="capfilt-test")) as one:
        assert outcome(one, server.url("/a")) == "success"
        assert outcome(one, server.url("/private")) == "robots"


def test_a_host_without_a_robots_txt_to_be_had_is_asked_for_nothing_else(server: Server) -> None:
    server.answers["/robots.txt"] = lambda sock, path: time.sleep(2)
    with contextlib.closing(fetcher(robots="capfilt-test", timeout=0.3, retries=1)) as one:
        assert [outcome(one, server.url(f"/{index}")) for index in range(5)] == ["timeout"] * 5
    assert len(server.requests) == 2


def test_a_crawl_delay_sets_the_pace(server: Server) -> None:
    server.answers["/robots.txt"] = ok(b"User-agent: *\nCrawl-delay: 0.4\n")
    server.answers["/a"] = ok(b"a")
    with contextlib.closing(fetcher(robots="capfilt-test")) as one:
        one.fetch(server.url("/a"))
        began = time.monotonic()
        for _ in range(2):
            one.fetch(server.url("/a"))
        assert time.monotonic() - began >= 0.7
    with contextlib.closing(fetcher(robots="capfilt-test", pace=Pace(max_wait=0.1))) as one:
        one.fetch(server.url("/a"))
        assert outcome(one, server.url("/a")) == "no_turn"


@pytest.mark.parametrize("location", ["http://127.0.0.1/", "http://inside.test/robots.txt"])
def test_a_robots_txt_leads_to_no_private_address(server: Server, location: str) -> None:
    server.answers["/robots.txt"] = status(302, f"Location: {location}")
    internet = Internet(
        server, {"outside.test": [["93.184.216.34"]], "inside.test": [["192.168.0.7"]]}
    )
    one = internet.fetcher(robots="capfilt-test")
    assert outcome(one, "http://outside.test/a") == "blocked_address"
    assert internet.dialled == ["93.184.216.34"]


def test_one_host_is_asked_no_faster_than_its_pace(server: Server) -> None:
    server.answers["/a"] = ok(b"a")
    with contextlib.closing(fetcher(pace=Pace(rate=20.0, burst=2))) as one:
        began = time.monotonic()
        for _ in range(8):
            one.fetch(server.url("/a"))
        assert time.monotonic() - began >= 6 / 20.0 - 0.01


SPELLINGS = [
    *["127.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "0", "0.0.0.0"],
    *["localhost", "LOCALHOST", "10.0.0.1", "169.254.169.254", "\uff11\uff12\uff17.0.0.1"],
    *["[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[fe80::1]"],
    *["user@127.0.0.1", "example.org@127.0.0.1", "example.org%40127.0.0.1@127.0.0.1"],
    *[
        "127.0.0.1.",
        "localhost.",
        "0x7f.0.0.0x1",
        "017700000001",
        "[::7f00:1]",
        "[64:ff9b::7f00:1]",
    ],
    *["[2002:7f00:1::]", "[::1%25lo]", "\u2460\u2461\u2466.0.0.1", "127\u30020\u30020\u30021"],
]


@pytest.mark.parametrize("host", SPELLINGS)
def test_no_spelling_of_a_private_address_is_connected_to(server: Server, host: str) -> None:
    url = f"http://{host}:{server.port}/"
    assert reason(url, allow_private_addresses=False) in ("blocked_address", "dns", "bad_url")
    assert server.connections == 0


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

    def dial(self, address: tuple[str, int], timeout: float) -> socket.socket:
        self.dialled.append(address[0])
        assert is_public(address[0])
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def fetcher(self, **changes: Any) -> Fetcher:
        given = {"allow_private_addresses": False, "resolve": self.resolve, "dial": self.dial}
        return fetcher(**given, **changes)


def test_the_address_that_was_checked_is_the_one_connected_to(server: Server) -> None:
    server.answers["/"] = lambda sock, path: sock.sendall(ok(b"a"))
    internet = Internet(server, {"rebind.test": [["93.184.216.34"], ["127.0.0.1"]]})
    assert internet.fetcher().fetch("http://rebind.test/").content == b"a"
    assert internet.dialled == ["93.184.216.34"]
    assert b"Host: rebind.test\r\n" in server.requests[0]


def test_a_private_address_among_public_ones_is_left_out(server: Server) -> None:
    server.answers["/"] = ok(b"a")
    internet = Internet(server, {"both.test": [["10.0.0.1", "93.184.216.34"]]})
    internet.fetcher().fetch("http://both.test/")
    assert internet.dialled == ["93.184.216.34"]


@pytest.mark.parametrize(
    "location",
    ["http://127.0.0.1/", "http://inside.test/", "http://169.254.169.254/latest/", "//[::1]/"],
)
def test_a_redirect_to_a_private_address_is_blocked(server: Server, location: str) -> None:
    server.answers["/"] = status(302, f"Location: {location}")
    internet = Internet(
        server, {"outside.test": [["93.184.216.34"]], "inside.test": [["192.168.0.7"]]}
    )
    with pytest.raises(FetchError, match="blocked_address"):
        internet.fetcher().fetch("http://outside.test/")
    assert internet.dialled == ["93.184.216.34"]


def test_a_name_without_an_address_has_its_reason(server: Server) -> None:
    with pytest.raises(FetchError, match="dns"):
        Internet(server, {}).fetcher().fetch("http://nowhere.test/")


def test_the_next_address_is_tried_when_one_refuses(server: Server) -> None:
    server.answers["/"] = ok(b"a")

    def dial(address: tuple[str, int], timeout: float) -> socket.socket:
        if address[0] == "192.0.2.1":
            raise ConnectionRefusedError
        return socket.create_connection(address, timeout)

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


def test_https_with_a_trusted_certificate_arrives(
    safe_server: Server, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    safe_server.answers["/"] = ok(b"image")
    one = fetcher(resolve=_resolve_to_loopback)
    for _ in range(3):
        assert one.fetch(safe_server.url("/", "safe.test")).content == b"image"
    assert safe_server.connections == 1


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
    ready.wait(5)
    assert reason(f"https://127.0.0.1:{port[0]}/") == "tls"
    thread.join(5)


def test_a_handshake_that_hangs_does_not_outlast_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/"
        assert reason(url, timeout=0.3) == "timeout"


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


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (drip(b"HTTP/1.1 200 OK\r\n\r\n", b"x"), "timeout"),
        (lambda sock, path: time.sleep(2), "timeout"),
        (ok(b"x" * 100_001), "too_large"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000, "bad_response"),
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
    def dial(address: tuple[str, int], timeout: float) -> socket.socket:
        if address[0] != "127.0.0.1":
            raise ConnectionRefusedError
        return socket.create_connection(address, timeout)

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    safe_server.answers["/"] = answer
    given = {"resolve": _resolve_to_loopback, "dial": dial, "timeout": 0.8, "max_bytes": 100_000}
    assert reason(safe_server.url("/", "safe.test"), **given) == expected


def test_a_name_that_is_slowly_looked_up_occupies_one_thread(server: Server) -> None:
    others_done = threading.Event()

    def resolve(host: str) -> list[str]:
        if host == "slow.test":
            others_done.wait(20)
        return ["127.0.0.1"]

    server.answers["/"] = ok(b"a")
    one = fetcher(resolve=resolve, timeout=20.0)
    frontier: Frontier[Any] = Frontier(one.pace)
    for index in range(10):
        frontier.add(index, one.steps(server.url("/", "slow.test")))
    frontier.add("quick", one.steps(server.url("/", "quick.test")))
    ended: list[Any] = []

    def work() -> None:
        while (found := frontier.next()) is not None:
            ended.append(found)
            if found[0] == "quick":
                others_done.set()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert ended[0][0] == "quick"
    assert len(ended) == 11
    assert not [found for found in ended if isinstance(found[1], Exception)]
