"""What a robots.txt allows, and how fast a host is asked."""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
import time

import pytest
from helpers.hosts import (
    ROBOTS,
    Answer,
    Server,
    drip,
    fetcher,
    ok,
    outcome,
    outcomes,
    reason,
    robots_asked,
    silence,
    status,
)

from stages.download.rate_limit import RateLimit


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
    other = threading.Event()

    def slow(sock: socket.socket, path: str) -> None:
        other.wait(600)
        sock.sendall(ok(ROBOTS, "Connection: close"))

    def elsewhere(sock: socket.socket, path: str) -> None:
        other.set()
        sock.sendall(ok(b"b"))

    server.answers.update({"/robots.txt": slow, "/a": ok(b"a")})
    second = Server()
    second.answers["/b"] = elsewhere
    urls = {str(index): server.url("/a") for index in range(20)} | {"b": second.url("/b")}
    with contextlib.closing(fetcher(robots="capfilt-test", connections=2)) as one:
        found = outcomes(one, urls)
    second.close()
    assert found == {str(index): b"a" for index in range(20)} | {"b": b"b"}
    assert next(iter(found)) == "b"  # what waits for the robots.txt takes up no connection
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
        (silence, "timeout"),
        (drip(b"HTTP/1.1 200 OK\r\n\r\n", b"#"), "timeout"),
    ],
)  # fmt: skip
def test_what_a_robots_txt_answers_decides_as_rfc_9309_says(
    server: Server, answer: bytes | Answer, expected: str
) -> None:
    server.answers.update({"/robots.txt": answer, "/image": ok(b"image")})
    server.answers["/moved.txt"] = ok(b"User-agent: *\nDisallow: /image")
    timeout = 1.0 if expected == "timeout" else 120.0
    assert reason(server.url("/image"), robots="capfilt-test", timeout=timeout) == expected
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
    server.answers["/robots.txt"] = silence
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
    with contextlib.closing(fetcher(robots="capfilt-test", limit=RateLimit(max_wait=0.1))) as one:
        one.fetch(server.url("/a"))
        assert outcome(one, server.url("/a")) == "no_turn"


def test_one_host_is_asked_no_faster_than_its_pace(server: Server) -> None:
    server.answers["/a"] = ok(b"a")
    with contextlib.closing(fetcher(limit=RateLimit(rate=20.0, burst=2))) as one:
        began = time.monotonic()
        for _ in range(8):
            one.fetch(server.url("/a"))
        assert time.monotonic() - began >= 6 / 20.0 - 0.01
