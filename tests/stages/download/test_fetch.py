"""What an answer of a server becomes: bytes, another URL, another try, or a reason."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from email.utils import formatdate
from typing import get_args

import pytest
from helpers.hosts import (
    Server,
    _resolve_to_loopback,
    fetcher,
    ok,
    outcome,
    outcomes,
    reason,
    status,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.download.fetch import FETCH_REASONS, FetchReason, retry_after
from stages.download.rate_limit import RateLimit
from stages.download.transfers import Headers


def test_every_reason_is_explained() -> None:
    assert set(FETCH_REASONS) == set(get_args(FetchReason))


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


HEADS = [
    b"",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: ",
    b"HTTP/1.1 301 Moved\r\nContent-Length: 0\r\nLocation: ",
]


def test_no_answer_of_a_server_raises_anything_but_a_reason(server: Server) -> None:
    def dial(address: tuple[str, int]) -> socket.socket:
        if address != ("127.0.0.1", server.port):
            raise ConnectionRefusedError
        return socket.create_connection(address, 5)

    one = fetcher(resolve=_resolve_to_loopback, dial=dial)

    @settings(max_examples=100, deadline=None)
    @given(head=st.sampled_from(HEADS), junk=st.binary(max_size=60))
    def answers(head: bytes, junk: bytes) -> None:
        server.answers["/"] = lambda sock, path: sock.sendall(head + junk + b"\r\n\r\n")
        outcome(one, server.url("/"))

    answers()


def test_an_unforeseen_error_costs_its_url_and_one_at_most_urls_ends_all(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """A judge of headers with a fault of its own stands for what nobody foresaw."""

    def opted_out(headers: Headers) -> bool:
        if "X-Poison" in headers:
            raise ZeroDivisionError
        return False

    for index in range(100):
        poison = ["X-Poison: 1"] if index % 10 == 0 else []
        server.answers[f"/{index}"] = ok(b"a", *poison)
        server.answers[f"/bad/{index}"] = ok(b"a", "X-Poison: 1")
    with contextlib.closing(fetcher(opted_out=opted_out)) as one:
        found = outcomes(one, {index: server.url(f"/{index}") for index in range(100)})
    assert found == {i: "bad_response" if i % 10 == 0 else b"a" for i in range(100)}
    assert f"an unforeseen error at {server.url('/30')}" in caplog.text
    one = fetcher(opted_out=opted_out)
    with pytest.raises(ZeroDivisionError):
        outcomes(one, {index: server.url(f"/bad/{index}") for index in range(100)})


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
        asked.wait(600)

    def opted_out(headers: Headers) -> bool:
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
    server.answers["/other"] = ok(b"other")  # asked before or after the pause, not in it
    one = fetcher(retries=1)
    began = time.monotonic()
    urls = {name: server.url(f"/{name}") for name in ("busy", "other")}
    assert outcomes(one, urls) == {"busy": b"at last", "other": b"other"}
    assert time.monotonic() - began >= 1.0
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "value",
    ["3600", formatdate(time.time() + 3600, usegmt=True), "9" * 400],
    ids=["seconds", "date", "many digits"],
)
def test_a_server_that_says_to_come_back_too_late_is_not_waited_for(
    server: Server, value: str
) -> None:
    server.answers["/"] = status(429, f"Retry-After: {value}")
    with contextlib.closing(fetcher(retries=3, limit=RateLimit(max_wait=60.0))) as one:
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
