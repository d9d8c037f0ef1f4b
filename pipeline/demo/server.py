"""Serves the demo's web on loopback, with the faults of a real one."""

from __future__ import annotations

import logging
import mimetypes
import socket
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

__all__ = ["SiteServer"]

logger = logging.getLogger(__name__)

PAGE = b"<!doctype html><title>Just a moment</title><p>Enable cookies to continue.</p>"


class SiteServer:
    """A context manager that serves a folder on http://127.0.0.1.

    The first part of a path decides how the server responds:

    - `403/`, `404/`, `500/`: this status without a file;
    - `html/`: a web page in place of the image;
    - `noai/`: the file, with the header `X-Robots-Tag: noai, noimageai`;
    - `slow/`: one byte every `drip_seconds`;
    - `hang/`: no response, but the connection stays open;
    - `cut/`: the first half of the file, then the connection is closed;
    - any other: the file.

    Files outside the folder are not served, nor is any file without the token. Leaving the context
    closes every connection, including those that hang.

    Args:
        site: The folder; files may be added and removed while it is served.
        port: Port to listen on; 0 chooses a free one.
        token: Text that the User-Agent of a request must contain; otherwise the status is 403.
        drip_seconds: Pause before each byte of a slow response.
    """

    def __init__(
        self, site: str | Path, *, port: int = 0, token: str = "", drip_seconds: float = 0.5
    ) -> None:
        self.site = Path(site).resolve()
        self._server = _Server(self.site, port, token, drip_seconds)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        return self._server.server_port

    @property
    def url(self) -> str:
        """The URL of the folder, without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> SiteServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.closing.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, site: Path, port: int, token: str, drip_seconds: float) -> None:
        self.site = site
        self.token = token
        self.drip_seconds = drip_seconds
        self.closing = threading.Event()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", port), _Request)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        with self._lock:
            self._open.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        with self._lock:
            for connection in self._open:
                _hang_up(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if isinstance(sys.exception(), OSError):
            logger.debug("%s dropped the connection", client_address)
        else:
            logger.exception("answering %s failed", client_address)


class _Request(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = 60
    wbufsize = -1
    disable_nagle_algorithm = True
    statuses: ClassVar[tuple[str, ...]] = ("403", "404", "500")

    def do_GET(self) -> None:
        if self.server.token not in self.headers.get("User-Agent", ""):
            return self.answer(403)
        path = unquote(urlsplit(self.path).path).lstrip("/")
        fault = path.split("/")[0]
        if fault in self.statuses:
            return self.answer(int(fault))
        if fault == "html":
            return self.answer(200, PAGE, "text/html; charset=utf-8")
        if fault == "hang":
            self.server.closing.wait()
            self.close_connection = True
            return None
        body = self.read(path)
        if body is None:
            return self.answer(404)
        kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
        if fault == "noai":
            return self.answer(200, body, kind, robots="noai, noimageai")
        if fault == "slow":
            return self.answer(200, body, kind, send=self.drip)
        if fault == "cut":
            return self.answer(200, body, kind, send=self.cut)
        return self.answer(200, body, kind)

    do_HEAD = do_GET

    def read(self, path: str) -> bytes | None:
        """Read a file of the site; None if there is no such file in it."""
        if "\0" in path:
            return None
        try:
            file = (self.server.site / path).resolve()
            inside = file.is_relative_to(self.server.site) and file.is_file()
            return file.read_bytes() if inside else None
        except OSError as error:  # such as a name that is too long, or a file just removed
            logger.debug("cannot read %r: %s", path, error)
            return None

    def answer(
        self,
        status: int,
        body: bytes = b"",
        kind: str = "text/plain",
        *,
        robots: str | None = None,
        send: Callable[[bytes], object] | None = None,
    ) -> None:
        """Send a response; `send` writes the body of a faulty one."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if robots is not None:
            self.send_header("X-Robots-Tag", robots)
        self.end_headers()
        if self.command != "HEAD":
            (send or self.wfile.write)(body)

    def drip(self, body: bytes) -> None:
        """Send one byte at a time."""
        for i in range(len(body)):
            self.wfile.flush()
            if self.server.closing.wait(self.server.drip_seconds):
                self.close_connection = True
                return
            self.wfile.write(body[i : i + 1])

    def cut(self, body: bytes) -> None:
        """Send the first half and close the connection."""
        self.wfile.write(body[: len(body) // 2])
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)


def _hang_up(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        logger.debug("the connection was already closed")
