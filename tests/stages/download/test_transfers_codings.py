"""Bodies that are sent compressed."""

from __future__ import annotations

import gzip
import zlib

import pytest
from helpers.hosts import Server, fetcher, ok, reason

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
        ("br", BODY),
        ("zstd", BODY),
        ("gzip, gzip", gzip.compress(gzip.compress(BODY))),
        ("deflate", zlib.compress(BODY)),
        ("deflate", BODY),
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
        ("gzip", gzip.compress(BODY)[:40] + b"\xff" * 400, "bad_response"),
        ("gzip", gzip.compress(b"", mtime=0), "empty"),
        ("br", gzip.compress(BODY)[:-20], "incomplete"),
        ("gzip, gzip", gzip.compress(gzip.compress(bytes(50_000_000))), "too_large"),
    ],
)
def test_a_compressed_body_has_the_same_cap_and_reasons(
    server: Server, coding: str, body: bytes, expected: str
) -> None:
    server.answers["/"] = ok(body, f"Content-Encoding: {coding}")
    assert reason(server.url("/"), max_bytes=1_000_000) == expected
