"""Answers with lines among their headers that libcurl refuses and browsers pass over."""

from __future__ import annotations

import contextlib
import gzip
import socket
import time

import pytest
from helpers.hosts import Server, _resolve_to_loopback, drip, fetcher, ok, outcome, reason, status
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.download.transfers import Headers

ODD = ["Powered by hand", "X-A: a\0b", "\u041f\u043e\u0434\u043f\u0438\u0441\u044c"]
BODY = bytes(range(256)) * 300


def odd(answer: bytes, line: str = ODD[0]) -> bytes:
    """The answer with a malformed line after its first."""
    first, end, rest = answer.partition(b"\r\n")
    return first + end + line.encode() + b"\r\n" + rest


@pytest.mark.parametrize("line", ODD)
def test_an_opt_out_after_a_malformed_line_is_seen_and_without_one_the_image_arrives(
    server: Server, line: str
) -> None:
    def opted_out(headers: Headers) -> bool:
        return headers.get_all("X-Robots-Tag") == ["noai"]

    server.answers["/out"] = odd(ok(BODY, "X-Robots-Tag: noai"), line)
    server.answers["/in"] = odd(ok(BODY), line)
    with contextlib.closing(fetcher(opted_out=opted_out)) as one:
        assert outcome(one, server.url("/out")) == "opted_out"
        assert one.fetch(server.url("/in")).content == BODY
    assert server.requests[-1].startswith(b"GET /in HTTP/1.0\r\nHost: 127.0.0.1:")
    assert b"User-Agent: capfilt-test/1\r\n" in server.requests[-1]


def test_it_has_the_same_reasons_as_any_answer(server: Server) -> None:
    def close(answer: bytes):
        return lambda sock, path: sock.sendall(answer)

    server.answers.update(
        {
            "/404": odd(status(404)),
            "/there": odd(status(302, "Location: /in")),
            "/in": odd(ok(b"in")),
            "/empty": odd(ok(b"")),
            "/large": odd(ok(b"x" * 100_001)),
            "/endless": drip(odd(b"HTTP/1.1 200 OK\r\n\r\n"), b"x"),
            "/cut": close(odd(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")),
            "/closed": close(odd(b"HTTP/1.1 200 OK\r\n\r\nabc")),
            "/gzip": odd(ok(gzip.compress(BODY), "Content-Encoding: gzip")),
            "/chunked": odd(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
            ),
            "/long": odd(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 2000),
        }
    )
    with contextlib.closing(fetcher(timeout=1.0, max_bytes=100_000)) as one:
        assert [outcome(one, server.url(path)) for path in ("/endless", "/long")] == ["timeout"] * 2
    with contextlib.closing(fetcher(max_bytes=100_000)) as one:
        expected = {
            "/404": "http_404",
            "/empty": "empty",
            "/large": "too_large",
            "/cut": "incomplete",
            "/chunked": "bad_response",
        }
        assert {path: outcome(one, server.url(path)) for path in expected} == expected
        assert one.fetch(server.url("/there")).content == b"in"
        assert one.fetch(server.url("/closed")).content == b"abc"
        assert one.fetch(server.url("/gzip")).content == BODY


@pytest.mark.slow
def test_it_works_over_tls(tls_server: Server) -> None:
    tls_server.answers["/"] = odd(ok(BODY))
    with contextlib.closing(fetcher()) as one:
        assert one.fetch(tls_server.url("/")).content == BODY


def test_private_addresses_are_refused_here_too(server: Server) -> None:
    server.answers["/"] = odd(ok(BODY))
    assert reason(server.url("/"), allow_private_addresses=False) == "blocked_address"
    assert not server.requests


def test_no_bytes_raise_anything_but_a_reason(server: Server) -> None:
    one = fetcher(timeout=0.3, resolve=_resolve_to_loopback)

    @settings(max_examples=100, deadline=None)
    @given(junk=st.binary(max_size=80), end=st.sampled_from([b"", b"\r\n\r\n", b"\n\n"]))
    def answers(junk: bytes, end: bytes) -> None:
        def send(sock: socket.socket, path: str) -> None:
            sock.sendall(b"HTTP/1.1 200 OK\r\nPowered by hand\r\n" + junk + end)
            if not junk:
                time.sleep(0.01)

        server.answers["/"] = send
        outcome(one, server.url("/"))

    answers()
