"""A server for this machine only: a page, and what the page asks for.

Every request needs the token, and this server as Host; a POST also needs it as Origin. So a page of
another website cannot read or write, even if DNS rebinding maps its name to 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import hmac
import io
import json
import re
import secrets
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import jinja2
from markupsafe import Markup

from models.image.decode import ImageError, open_rgb
from pipeline.results.tables import printable

__all__ = ["LocalServer", "RequestError", "as_jpeg", "shown"]

ADDRESS = "127.0.0.1"
MAX_BODY = 1 << 16
LARGEST = (1024, 1024)
QUALITY = 90
TIMEOUT = 30.0
"""Seconds after which an idle connection is closed."""

OVERRIDES = re.compile("[\u202a-\u202e\u2066-\u2069]")
"""Characters that embed, isolate or override the direction of text."""

HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


class RequestError(Exception):
    """A refused request, with its HTTP status."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class LocalServer(ThreadingHTTPServer, ABC):
    """Serves a page and answers its requests; `serve_forever` ends after a POST of `done`.

    Args:
        name: The name that the page shows.
        port: Port to listen on; 0 chooses a free one.

    Attributes:
        folder: The folder of page.html.j2, page.css and page.js.

    Raises:
        OSError: The port is taken.
    """

    folder: ClassVar[Path]
    daemon_threads = True
    allow_reuse_address = False
    request_queue_size = 64

    def __init__(self, name: str, port: int = 0) -> None:
        super().__init__((ADDRESS, port), _Request)
        self.token = secrets.token_urlsafe(24)
        self._name = name

    @abstractmethod
    def get(self, path: str, query: str) -> Any:
        """Return the answer to a GET: bytes of a JPEG, or a value for JSON.

        Args:
            path: The path after the token.
            query: What follows the question mark.

        Raises:
            RequestError: There is no such path.
        """

    def post(self, path: str, request: Any) -> Any:
        """Return the answer to a POST; see `get`."""
        raise RequestError(HTTPStatus.NOT_FOUND, "no such page")

    @property
    def hosts(self) -> tuple[str, ...]:
        """The values of Host that are accepted."""
        return tuple(f"{name}:{self.server_port}" for name in (ADDRESS, "localhost"))

    @property
    def url(self) -> str:
        """The URL of the page."""
        return f"http://{self.hosts[0]}/{self.token}/"

    def page(self, nonce: str) -> str:
        """Render the HTML page; style and script carry the nonce."""
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(self.folder),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
        )
        style, script = (
            Markup((self.folder / name).read_text(encoding="utf-8"))
            for name in ("page.css", "page.js")
        )
        return environment.get_template("page.html.j2").render(
            name=printable(self._name), nonce=nonce, style=style, script=script
        )

    def end(self) -> None:
        """Stop `serve_forever`; may be called from any thread."""
        threading.Thread(target=self.shutdown, daemon=True).start()


def as_jpeg(encoded: bytes | None, largest: tuple[int, int] = LARGEST) -> bytes:
    """Encode an image anew as JPEG, at most so large.

    Raises:
        RequestError: There is no image, or it cannot be decoded.
    """
    try:
        image = open_rgb(encoded or b"", min_size=largest)
    except ImageError as error:
        raise RequestError(HTTPStatus.NOT_FOUND, str(error)) from None
    image.thumbnail(largest)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def shown(text: str) -> str:
    """Replace control characters and direction overrides in a text."""
    return OVERRIDES.sub("\ufffd", printable(text))


class _Request(BaseHTTPRequestHandler):
    """Handles one connection."""

    server: LocalServer
    protocol_version = "HTTP/1.1"
    server_version = "capfilt"
    sys_version = ""
    timeout = TIMEOUT

    def do_GET(self) -> None:
        with self._answering():
            path, _, query = self._path_after_token().partition("?")
            if path == "":
                self._page()
                return
            answer = self.server.get(path, query)
            if isinstance(answer, bytes):
                self._send(answer, "image/jpeg")
            else:
                self._json(answer)

    def do_POST(self) -> None:
        with self._answering():
            path = self._path_after_token()
            origin = self.headers.get("Origin", "")
            if origin not in [f"http://{host}" for host in self.server.hosts]:
                raise RequestError(HTTPStatus.FORBIDDEN, "not from this page")
            request = self._request()
            if path == "done":
                self._json({})
                self.server.end()
            else:
                self._json(self.server.post(path, request))

    def _path_after_token(self) -> str:
        """Check Host and token, and return the path after the token.

        Raises:
            RequestError: The request has another host, or not the token.
        """
        if self.headers.get_all("Host", []) not in [[host] for host in self.server.hosts]:
            raise RequestError(HTTPStatus.FORBIDDEN, "the Host header is not this server")
        token, slash, path = self.path.removeprefix("/").partition("/")
        if not slash or not hmac.compare_digest(token.encode(), self.server.token.encode()):
            raise RequestError(
                HTTPStatus.FORBIDDEN, "open the complete address that the command printed"
            )
        return path

    def _request(self) -> Any:
        """Read the body of a POST, which must be JSON of limited size."""
        if self.headers.get_content_type() != "application/json":
            raise RequestError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send application/json")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or len(length) > 9:
            raise RequestError(HTTPStatus.LENGTH_REQUIRED, "send a Content-Length")
        if int(length) > MAX_BODY:
            raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too much for a request")
        try:
            return json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise RequestError(HTTPStatus.BAD_REQUEST, "not JSON") from None

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        """Turn errors into responses with the error message."""
        try:
            yield
        except RequestError as error:
            self._refuse(error.status, str(error))
        except TimeoutError:
            self.close_connection = True
        except ConnectionError:
            self.close_connection = True
        except (OSError, ValueError) as error:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self.close_connection = True  # a body may be left unread
        self._json({"error": why}, status)

    def _page(self) -> None:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
            "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'; require-trusted-types-for 'script'"
        )
        content = self.server.page(nonce).encode()
        self._send(content, "text/html; charset=utf-8", {"Content-Security-Policy": policy})

    def _json(self, value: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(value).encode(), "application/json", status=status)

    def _send(
        self,
        content: bytes,
        kind: str,
        headers: Mapping[str, str] | None = None,
        status: HTTPStatus = HTTPStatus.OK,
    ) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, **(headers or {})}.items():
            self.send_header(name, value)
        if headers is None:
            self.send_header("Content-Security-Policy", "default-src 'none'; sandbox")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Do not log, since the path contains the token."""
