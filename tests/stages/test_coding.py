"""Bodies that are sent compressed."""

from __future__ import annotations

import contextlib
import gzip
import zlib

import pytest
from hosts import Server, fetcher, ok, reason
from hypothesis import given
from hypothesis import strategies as st

from stages.coding import Inflater

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
