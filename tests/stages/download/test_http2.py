"""Servers of HTTP/2, whose connections many requests share."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.hosts import fetcher, outcomes
from helpers.web import certificate, free_port
from hypercorn.asyncio import serve
from hypercorn.config import Config

pytestmark = pytest.mark.slow


class Site:
    """An application of ASGI that answers /N with what is told from N, late for some."""

    def __init__(self) -> None:
        self.versions: list[str] = []
        self.clients: set[Any] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.versions.append(scope["http_version"])
        self.clients.add(scope["client"])
        number = int(scope["path"].strip("/"))
        await asyncio.sleep(number % 5 / 200)
        headers = [(b"x-robots-tag", b"noai")] if number % 7 == 0 else []
        status = 404 if number % 11 == 0 else 200
        await send({"type": "http.response.start", "status": status, "headers": headers})
        body = content(number)
        for start in range(0, len(body), 5000):
            part = body[start : start + 5000]
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def content(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest() * (1 + number % 500)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Site, str]]:
    both, port, one = certificate(tmp_path), free_port(), Site()
    monkeypatch.setenv("SSL_CERT_FILE", str(both))
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.certfile = config.keyfile = str(both)
    config.loglevel = "ERROR"
    loop = asyncio.new_event_loop()
    stopped = asyncio.Event()
    thread = threading.Thread(
        target=loop.run_until_complete,
        args=(serve(one, config, shutdown_trigger=stopped.wait),),  # type: ignore[arg-type]
    )
    thread.start()
    with contextlib.closing(fetcher()) as probe:
        end = time.monotonic() + 600
        while outcomes(probe, {0: f"https://127.0.0.1:{port}/1"})[0] == "connect":
            assert time.monotonic() < end
            time.sleep(0.02)
    one.versions.clear()
    one.clients.clear()
    yield one, f"https://127.0.0.1:{port}"
    loop.call_soon_threadsafe(stopped.set)
    thread.join(600)


def test_many_requests_share_a_connection_and_each_has_its_own_answer(
    site: tuple[Site, str],
) -> None:
    served, base = site
    numbers = [number for number in range(1, 600)]
    with contextlib.closing(
        fetcher(opted_out=lambda headers: "x-robots-tag" in headers, max_bytes=15_000)
    ) as one:
        found = outcomes(one, {number: f"{base}/{number}" for number in numbers})
    for number in numbers:
        expected: bytes | str = content(number)
        if number % 11 == 0:
            expected = "http_404"
        elif number % 7 == 0:
            expected = "opted_out"
        elif len(expected) > 15_000:
            expected = "too_large"
        assert found[number] == expected
    assert set(served.versions) == {"2"}
    assert len(served.clients) < len(numbers) / 4
