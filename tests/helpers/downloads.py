"""The download stage over files on loopback."""

from __future__ import annotations

import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from stages import sources
from stages.download import DownloadConfig, DownloadStage
from stages.schema import uid_of


class Web(ThreadingHTTPServer):
    """Files by path on loopback; a path in `held` is answered once all others have been."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.statuses: dict[str, int] = {}
        self.held: set[str] = set()
        self.asked: set[str] = set()
        self.agents: set[str] = set()
        self.others_asked = threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    server: Web

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        web, path = self.server, self.path.lstrip("/")
        web.agents.add(self.headers["User-Agent"])
        web.asked.add(path)
        if web.asked >= web.files.keys() - web.held:
            web.others_asked.set()
        if path in web.held:
            web.others_asked.wait(600)
        body = web.files.get(path)
        self.send_response(404 if body is None else web.statuses.get(path, 200))
        for name, value in web.headers.get(path, {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")


def encode(image: Image.Image, kind: str = "JPEG", **settings: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **settings)
    return stream.getvalue()


def photo(width: int = 640, height: int = 480, seed: int = 0) -> Image.Image:
    """A smooth picture: what a codec keeps."""
    corners = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC)


def stage(**settings: Any) -> DownloadStage:
    given = {
        "source": "list.csv",
        "retries": 0,
        "allow_private_addresses": True,
        "threads": 4,
        "requests_per_second": None,  # one host, our own
        "connections_per_host": None,
    }
    one = DownloadStage(DownloadConfig(**{**given, **settings}))
    one.load()
    return one


def listed(urls: list[str], files: list[str] | None = None) -> pa.Table:
    nothing = [None] * len(urls)
    return pa.table(
        {
            "uid": [uid_of(url, None) for url in urls],
            "source": ["web"] * len(urls),
            "source_uid": nothing,
            "url": urls,
            "caption": nothing,
            "repeats": [0] * len(urls),
            "file": files or nothing,
            "offset": nothing,
            "length": nothing,
            "row": nothing,
            "fault": nothing,
        },
        schema=sources.LIST,
    )


def measured(
    one: DownloadStage, urls: list[str], files: list[str] | None = None
) -> list[dict[str, Any]]:
    table = one.annotate(listed(urls, files))
    assert table.schema == one.writes
    assert table["url"].to_pylist() == urls
    rows: list[dict[str, Any]] = table.to_pylist()
    for row in rows:
        assert (row["status"] == "success") == (row["error"] is None) == (row["image"] is not None)
        assert row["error"] is None or row["error"] in one.reasons
    return rows


def only(web: Web, content: bytes, **settings: Any) -> dict[str, Any]:
    """The row of one file."""
    web.files["file"] = content
    (row,) = measured(stage(**settings), [web.url("file")])
    return row
