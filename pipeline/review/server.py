"""The page that pairs are reviewed on, served to this machine alone.

    GET  /TOKEN/             the page; it asks for nothing but what follows
    GET  /TOKEN/pairs        the sample with what is decided of it, and the agreement
    GET  /TOKEN/images/N     the image of the Nth pair, encoded anew as JPEG
    POST /TOKEN/decide       {"pair": N, "verdict": accept, reject, fix or null, "fixed": text}
    POST /TOKEN/done         ends the server

Whoever asks must know the token, and must name this server in Host and, to write, in Origin: a
page of another site, its name rebound to 127.0.0.1 or not, can do neither.
"""

from __future__ import annotations

import contextlib
import hmac
import io
import json
import re
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from models.image.decode import ImageError, open_rgb
from pipeline.results.tables import printable
from pipeline.results.verdicts import Results
from pipeline.review.agreement import agreement, told
from pipeline.review.ledger import Ledger
from pipeline.review.sample import Pair
from stages.filter import FilterStage
from stages.redaction import redacted
from stages.review import VERDICTS, Decision

__all__ = ["ReviewServer"]

FOLDER = Path(__file__).parent
ADDRESS = "127.0.0.1"
MOST_BODY = 1 << 16
MOST_CAPTION = 2000
LARGEST = (1024, 1024)
QUALITY = 90
PATIENCE = 30.0
"""Seconds that a connection may be silent."""

OVERRIDES = re.compile("[\u202a-\u202e\u2066-\u2069]")
"""What embeds, isolates or overrides the direction of a text."""

HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


class RequestError(Exception):
    """A request that is refused, with its status."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class ReviewServer(ThreadingHTTPServer):
    """Shows a sample and files what is decided; `serve_forever` ends when people are done.

    Args:
        results: The results of the run; images are read when they are asked for.
        pairs: The sample, in the order in which it is shown.
        ledger: Where decisions go.
        port: 0 for any that is free.

    Raises:
        OSError: The port is taken.
    """

    daemon_threads = True
    allow_reuse_address = False
    request_queue_size = 64

    def __init__(
        self,
        results: Results,
        pairs: Sequence[Pair],
        ledger: Ledger,
        port: int = 0,
    ) -> None:
        super().__init__((ADDRESS, port), _Request)
        self.token = secrets.token_urlsafe(24)
        self.pairs = pairs
        self.ledger = ledger
        self._run = results.run
        self._name = results.plan.manifest.name
        self._is_filtered = FilterStage.name in results.plan.names
        self._images: dict[int, bytes | None] = {}
        self._reading = threading.Lock()

    @property
    def hosts(self) -> tuple[str, ...]:
        """What a browser of this machine may call this server."""
        return tuple(f"{name}:{self.server_port}" for name in (ADDRESS, "localhost"))

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{self.hosts[0]}/{self.token}/"

    def page(self, nonce: str) -> str:
        """The HTML, its style and script under a nonce."""
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(FOLDER),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
        )
        style, script = (
            Markup((FOLDER / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js")
        )
        return environment.get_template("page.html.j2").render(
            name=printable(self._name), nonce=nonce, style=style, script=script
        )

    def sample(self) -> dict[str, Any]:
        """The pairs with what is decided of each."""
        decisions = self.ledger.decisions
        return {
            "pairs": [
                {
                    "caption": pair.caption,
                    "shown": _shown(pair.caption),
                    "source": pair.source,
                    "url": _shown(redacted(pair.url)),
                    "uid": pair.uid,
                    "score": pair.score,
                    "is_kept": pair.is_kept if self._is_filtered else None,
                    "decision": _plain(decisions.get(pair.key)),
                }
                for pair in self.pairs
            ],
            **self.state(),
        }

    def state(self) -> dict[str, Any]:
        """The agreement so far, None without a filter."""
        if not self._is_filtered:
            return {"agreement": None}
        return {"agreement": told(agreement(self.pairs, self.ledger.decisions))}

    def decide(self, request: Any) -> dict[str, Any]:
        """File a decision.

        Raises:
            RequestError: It is none.
        """
        if not isinstance(request, dict):
            raise RequestError(HTTPStatus.BAD_REQUEST, "a decision is an object")
        index, verdict, fixed = (request.get(key) for key in ("pair", "verdict", "fixed"))
        pair = self._pair(index)
        decision = None
        if verdict == "fix":
            decision = _fix(pair, fixed)
        elif verdict in VERDICTS:
            decision = Decision(verdict)
        elif verdict is not None:
            raise RequestError(
                HTTPStatus.BAD_REQUEST, f"verdict must be null or one of {', '.join(VERDICTS)}"
            )
        self.ledger.decide(pair.key, decision)
        return {"decision": _plain(decision), **self.state()}

    def image(self, index: int) -> bytes:
        """The image of a pair as JPEG; the first of a shard reads those of all its pairs.

        Raises:
            RequestError: There is no such pair, or its image cannot be decoded.
        """
        pair = self._pair(index)
        with self._reading:
            if index not in self._images:
                column = self._run.read_table("pool", f"{pair.shard}.parquet", columns=["image"])
                for place, other in enumerate(self.pairs):
                    if other.shard == pair.shard:
                        self._images[place] = column["image"][other.row].as_py()
        found = self._images[index]
        try:
            picture = open_rgb(found or b"")
        except ImageError as error:
            raise RequestError(HTTPStatus.NOT_FOUND, str(error)) from None
        picture.thumbnail(LARGEST)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=QUALITY)
        return buffer.getvalue()

    def _pair(self, index: Any) -> Pair:
        if (
            not isinstance(index, int)
            or isinstance(index, bool)
            or not (0 <= index < len(self.pairs))
        ):
            raise RequestError(HTTPStatus.NOT_FOUND, "no such pair")
        return self.pairs[index]

    def end(self) -> None:
        """End `serve_forever`, from any thread."""
        threading.Thread(target=self.shutdown, daemon=True).start()


class _Request(BaseHTTPRequestHandler):
    """One connection."""

    server: ReviewServer
    protocol_version = "HTTP/1.1"
    server_version = "capfilt"
    sys_version = ""
    timeout = PATIENCE

    def do_GET(self) -> None:
        with self._answering():
            place = self._place()
            if place == "":
                self._page()
            elif place == "pairs":
                self._json(self.server.sample())
            elif place.startswith("images/") and place[7:].isdecimal() and len(place) < 20:
                self._send(self.server.image(int(place[7:])), "image/jpeg")
            else:
                raise RequestError(HTTPStatus.NOT_FOUND, "no such page")

    def do_POST(self) -> None:
        with self._answering():
            place = self._place()
            origin = self.headers.get("Origin", "")
            if origin not in [f"http://{host}" for host in self.server.hosts]:
                raise RequestError(HTTPStatus.FORBIDDEN, "not from this page")
            request = self._request()
            if place == "decide":
                self._json(self.server.decide(request))
            elif place == "done":
                self._json({})
                self.server.end()
            else:
                raise RequestError(HTTPStatus.NOT_FOUND, "no such page")

    def _place(self) -> str:
        """The path behind the token.

        Raises:
            RequestError: The request names another host, or has no token.
        """
        if self.headers.get_all("Host", []) not in [[host] for host in self.server.hosts]:
            raise RequestError(HTTPStatus.FORBIDDEN, "this server has another name")
        token, slash, place = self.path.removeprefix("/").partition("/")
        if not slash or not hmac.compare_digest(token.encode(), self.server.token.encode()):
            raise RequestError(
                HTTPStatus.FORBIDDEN, "open the address that capfilt review printed, all of it"
            )
        return place

    def _request(self) -> Any:
        """The body of a POST, JSON of a small size."""
        if self.headers.get_content_type() != "application/json":
            raise RequestError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send application/json")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or len(length) > 9:
            raise RequestError(HTTPStatus.LENGTH_REQUIRED, "send a Content-Length")
        if int(length) > MOST_BODY:
            raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too much for a decision")
        try:
            return json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise RequestError(HTTPStatus.BAD_REQUEST, "not JSON") from None

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        """What goes wrong becomes an answer that says so."""
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
        """Nothing: the address holds the token."""


def _fix(pair: Pair, fixed: Any) -> Decision:
    """The decision to put another text in the place of a caption."""
    text = " ".join(fixed.split()) if isinstance(fixed, str) else ""
    if not text or len(text) > MOST_CAPTION or _shown(text) != text or not _is_unicode(text):
        raise RequestError(
            HTTPStatus.BAD_REQUEST,
            f"a fixed caption is a text of 1 to {MOST_CAPTION} characters, none of them a control",
        )
    return Decision("accept") if text == pair.caption else Decision("fix", text)


def _shown(text: str) -> str:
    """A text with nothing in it that hides or turns around what it says."""
    return OVERRIDES.sub("\ufffd", printable(text))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _plain(decision: Decision | None) -> dict[str, Any] | None:
    return None if decision is None else decision._asdict()
