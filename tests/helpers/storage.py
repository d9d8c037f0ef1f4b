"""A real S3 server on loopback, and a proxy before it that behaves as object stores may.

The server is moto's. The proxy hides new keys from listings for a while, cuts listings into small
pages, answers 500 and 503, breaks connections, and now and then swallows an answer after the
request was carried out.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import logging
import random
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

BUCKET = "bucket"

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
EXPIRED = b"<Error><Code>ExpiredToken</Code><Message>The token has expired.</Message></Error>"
INTERNAL = b"<Error><Code>InternalError</Code><Message>Try again.</Message></Error>"


@dataclass
class Faults:
    """What goes wrong.

    Attributes:
        rate: The share of requests with a fault.
        lag: Seconds for which a listing does not show a new key.
        page: The most keys of a listing; None leaves that to the server.
        answer: The status and body of every answer, for a store that throttles or refuses all.
    """

    rate: float = 0.0
    lag: float = 0.0
    page: int | None = None
    answer: tuple[int, bytes] | None = None


@dataclass
class Storage:
    """A server: its address, and what was asked of it.

    Attributes:
        url: Of the proxy.
        faults: May be changed at any time.
        requests: Method, path and query of each request, faulty ones included.
        failed: How many faults were made of each kind.
        on_request: Called with the method and the path of each request before it is carried out.
    """

    url: str
    faults: Faults
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    failed: dict[str, int] = field(default_factory=dict)
    born: dict[str, float] = field(default_factory=dict)
    on_request: Callable[[str, str], None] = lambda method, path: None

    @property
    def environment(self) -> dict[str, str]:
        """What a process must have set to reach it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }


@contextlib.contextmanager
def storage(faults: Faults | None = None) -> Iterator[Storage]:
    """Serve an empty bucket."""
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    behind = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    behind.start()
    host, port = behind.get_host_and_port()
    found = Storage("", faults or Faults())
    draw, guard = random.Random(0), threading.Lock()

    class Proxy(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60

        def log_message(self, *_: object) -> None:
            pass

        def handle_one_request(self) -> None:
            with contextlib.suppress(ConnectionError):
                super().handle_one_request()

        def carry(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                raise ValueError("the proxy takes no chunked request")
            place = urllib.parse.urlsplit(self.path)
            with guard:
                found.requests.append((self.command, place.path, place.query))
                kind = None
                if draw.random() < found.faults.rate:
                    kind = draw.choice(("slow", "error", "break", "half", "swallow"))
                    found.failed[kind] = found.failed.get(kind, 0) + 1
            found.on_request(self.command, place.path)
            if found.faults.answer is not None:
                code, text = found.faults.answer
                self.answer(code, {"Content-Type": "application/xml"}, text)
                return
            if kind in ("slow", "error"):
                text, code = (SLOW_DOWN, 503) if kind == "slow" else (INTERNAL, 500)
                self.answer(code, {"Content-Type": "application/xml"}, text)
                return
            if kind == "break":
                self.close_connection = True
                return
            path = self.path
            is_listing = self.command == "GET" and "list-type=2" in place.query
            if is_listing and found.faults.page is not None:
                path = f"{place.path}?{place.query}&max-keys={found.faults.page}"
            code, headers, content = self.forward(path, body)
            if self.command == "PUT" and 200 <= code < 300:
                with guard:
                    found.born.setdefault(urllib.parse.unquote(place.path), time.monotonic())
            if is_listing:
                content = self.late(place.path, content)
            if kind == "swallow":
                self.close_connection = True
                return
            self.answer(code, headers, content, is_half=kind == "half")

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = carry

        def forward(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
            connection = http.client.HTTPConnection(host, port, timeout=60)
            try:
                headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
                connection.request(self.command, path, body, headers)
                answer = connection.getresponse()
                return answer.status, dict(answer.getheaders()), answer.read()
            finally:
                connection.close()

        def late(self, bucket: str, content: bytes) -> bytes:
            """A listing without the keys that are too new for it."""
            now = time.monotonic()

            def is_new(key: bytes) -> bool:
                born = found.born.get(
                    f"{bucket.rstrip('/')}/{urllib.parse.unquote_plus(key.decode())}"
                )
                return born is not None and now - born < found.faults.lag

            def is_new_prefix(prefix: bytes) -> bool:
                top = f"{bucket.rstrip('/')}/{urllib.parse.unquote_plus(prefix.decode())}"
                ages = [now - born for path, born in found.born.items() if path.startswith(top)]
                return bool(ages) and max(ages) < found.faults.lag

            with guard:
                for tag, judge in ((b"Contents", is_new), (b"CommonPrefixes", is_new_prefix)):
                    pattern = b"<%b>(?:(?!</%b>).)*?<(?:Key|Prefix)>(.*?)</(?:Key|Prefix)>.*?</%b>"
                    content = re.sub(
                        pattern % (tag, tag, tag),
                        lambda match: b"" if judge(match[1]) else match[0],  # noqa: B023
                        content,
                        flags=re.DOTALL,
                    )
            return content

        def answer(
            self, code: int, headers: dict[str, str], content: bytes, is_half: bool = False
        ) -> None:
            self.send_response(code)
            length = headers.pop("Content-Length", str(len(content)))
            is_head = self.command == "HEAD"
            for name, value in headers.items():
                if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                    self.send_header(name, value)
            self.send_header("Content-Length", length if is_head else str(len(content)))
            self.end_headers()
            if is_head:
                return
            if is_half:
                content, self.close_connection = content[: len(content) // 2], True
            self.wfile.write(content)

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 256
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass

    proxy = Server(("127.0.0.1", 0), Proxy)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    found.url = f"http://127.0.0.1:{proxy.server_address[1]}"
    connection = http.client.HTTPConnection(host, port, timeout=60)
    connection.request("PUT", f"/{BUCKET}")
    assert connection.getresponse().status == 200
    connection.close()
    try:
        yield found
    finally:
        proxy.shutdown()
        proxy.server_close()
        behind.stop()
