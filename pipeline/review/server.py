"""Serves the review page to this machine only.

    GET  /TOKEN/             the page, which requests only the following paths
    GET  /TOKEN/pairs        the sample with its decisions, and the agreement with the filter
    GET  /TOKEN/images/N     the image of the Nth pair, encoded as a new JPEG
    POST /TOKEN/decide       {"pair": N, "verdict": accept, reject, fix or null, "fixed": text}
    POST /TOKEN/done         stops the server

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
from pipeline.review.agreement import agreement, as_json
from pipeline.review.ledger import Ledger
from pipeline.review.sample import Pair
from stages.filter import FilterStage
from stages.redaction import redacted
from stages.review import VERDICTS, Decision

__all__ = ["ReviewServer"]

FOLDER = Path(__file__).parent
ADDRESS = "127.0.0.1"
MAX_BODY = 1 << 16
MAX_CAPTION = 2000
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


class ReviewServer(ThreadingHTTPServer):
    """Serves a sample of pairs and stores decisions; `serve_forever` ends after `/done`.

    Args:
        results: The results of the run; images are read when they are requested.
        pairs: The sample, in the order to show.
        ledger: Stores the decisions.
        port: Port to listen on; 0 chooses a free one.

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
        """The values of Host that are accepted."""
        return tuple(f"{name}:{self.server_port}" for name in (ADDRESS, "localhost"))

    @property
    def url(self) -> str:
        """The URL of the page."""
        return f"http://{self.hosts[0]}/{self.token}/"

    def page(self, nonce: str) -> str:
        """Render the HTML page; style and script carry the nonce."""
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
        """Return the pairs with their decisions, and the agreement."""
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
                    "sentences": [
                        {**sentence._asdict(), "text": _shown(sentence.text)}
                        for sentence in pair.sentences
                    ],
                    "decision": _decision_json(decisions.get(pair.key)),
                }
                for pair in self.pairs
            ],
            **self.state(),
        }

    def state(self) -> dict[str, Any]:
        """Return the agreement so far; None without a filter."""
        if not self._is_filtered:
            return {"agreement": None}
        return {"agreement": as_json(agreement(self.pairs, self.ledger.decisions))}

    def decide(self, request: Any) -> dict[str, Any]:
        """Store a decision.

        Raises:
            RequestError: The request is not a decision.
        """
        if not isinstance(request, dict):
            raise RequestError(HTTPStatus.BAD_REQUEST, "a decision must be an object")
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
        return {"decision": _decision_json(decision), **self.state()}

    def image(self, index: int) -> bytes:
        """Return the image of a pair as JPEG; all images of a shard are read at once.

        Raises:
            RequestError: There is no such pair, or its image cannot be decoded.
        """
        pair = self._pair(index)
        with self._reading:
            if index not in self._images:
                column = self._run.read_table("pool", f"{pair.shard}.parquet", columns=["image"])
                for position, other in enumerate(self.pairs):
                    if other.shard == pair.shard:
                        self._images[position] = column["image"][other.row].as_py()
        encoded = self._images[index]
        try:
            image = open_rgb(encoded or b"")
        except ImageError as error:
            raise RequestError(HTTPStatus.NOT_FOUND, str(error)) from None
        image.thumbnail(LARGEST)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=QUALITY)
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
        """Stop `serve_forever`; may be called from any thread."""
        threading.Thread(target=self.shutdown, daemon=True).start()


class _Request(BaseHTTPRequestHandler):
    """Handles one connection."""

    server: ReviewServer
    protocol_version = "HTTP/1.1"
    server_version = "capfilt"
    sys_version = ""
    timeout = TIMEOUT

    def do_GET(self) -> None:
        with self._answering():
            path = self._path_after_token()
            if path == "":
                self._page()
            elif path == "pairs":
                self._json(self.server.sample())
            elif path.startswith("images/") and path[7:].isdecimal() and len(path) < 20:
                self._send(self.server.image(int(path[7:])), "image/jpeg")
            else:
                raise RequestError(HTTPStatus.NOT_FOUND, "no such page")

    def do_POST(self) -> None:
        with self._answering():
            path = self._path_after_token()
            origin = self.headers.get("Origin", "")
            if origin not in [f"http://{host}" for host in self.server.hosts]:
                raise RequestError(HTTPStatus.FORBIDDEN, "not from this page")
            request = self._request()
            if path == "decide":
                self._json(self.server.decide(request))
            elif path == "done":
                self._json({})
                self.server.end()
            else:
                raise RequestError(HTTPStatus.NOT_FOUND, "no such page")

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
                HTTPStatus.FORBIDDEN, "open the complete address that capfilt review printed"
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
            raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too much for a decision")
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


def _fix(pair: Pair, fixed: Any) -> Decision:
    """Return the decision to replace a caption by another text."""
    text = " ".join(fixed.split()) if isinstance(fixed, str) else ""
    if not text or len(text) > MAX_CAPTION or _shown(text) != text or not _is_unicode(text):
        raise RequestError(
            HTTPStatus.BAD_REQUEST,
            f"a fixed caption must be text of 1 to {MAX_CAPTION} characters without control "
            "characters",
        )
    return Decision("accept") if text == pair.caption else Decision("fix", text)


def _shown(text: str) -> str:
    """Replace control characters and direction overrides in a text."""
    return OVERRIDES.sub("\ufffd", printable(text))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


def _decision_json(decision: Decision | None) -> dict[str, Any] | None:
    return None if decision is None else decision._asdict()
