"""A server of OpenAI's chat API on loopback that answers, or fails, as a test likes."""

from __future__ import annotations

import base64
import collections
import hashlib
import http.server
import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ChatServer", "Fault", "Request", "caption_of", "completion"]


@dataclass(frozen=True)
class Request:
    """A request for a caption.

    Attributes:
        body: All of it.
        image: The bytes of the image that came with it.
        prompt: The text that came with it.
        attempt: How often the same request came before.
        is_probe: Whether it asks for one token alone.
    """

    body: dict[str, Any]
    image: bytes
    prompt: str
    attempt: int
    is_probe: bool


@dataclass(frozen=True)
class Fault:
    """What is sent in place of a caption.

    Attributes:
        status: The status line.
        content: The body.
        headers: Further headers.
        cut: How many bytes of the body are sent before the connection is closed; null for all.
        hangs: Whether nothing is sent until the server is closed.
    """

    status: int = 200
    content: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    hangs: bool = False


Answer = Callable[[Request], str | dict[str, Any] | Fault]


def caption_of(request: Request) -> str:
    """A caption that depends on image, prompt, seed and settings, as that of a model does."""
    keys = ("seed", "temperature", "top_p", "top_k", "repetition_penalty", "max_tokens")
    asked = [request.prompt, [request.body.get(key) for key in keys]]
    digest = hashlib.sha256(request.image + json.dumps(asked).encode()).hexdigest()
    return f"caption {digest[:8]} of a thing {digest[8:12]}"


def completion(text: Any, model: str = "m", reason: str = "stop") -> dict[str, Any]:
    """A chat completion."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": reason}
    return {"id": "x", "object": "chat.completion", "model": model, "choices": [choice]}


class ChatServer:
    """Serves /v1/models and /v1/chat/completions.

    Attributes:
        models: What /v1/models lists.
        answer: Gives the answer to a request: a caption, a whole completion or a fault.
        requests: Those that came, probes excepted.
        authorizations: The header of each request.
        most_in_flight: The most requests that were there at a time.
    """

    def __init__(self, model: str = "m", answer: Answer = caption_of, **listed: Any) -> None:
        self.models: list[dict[str, Any]] = [{"id": model, "object": "model", **listed}]
        self.answer = answer
        self.lists: Callable[[], Fault | None] = lambda: None
        self.requests: list[Request] = []
        self.authorizations: list[str | None] = []
        self.most_in_flight = 0
        self._in_flight = 0
        self._seen: collections.Counter[bytes] = collections.Counter()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.authorizations.append(self.headers["Authorization"])
                if self.path != "/v1/models":
                    self._send(Fault(404, b'{"detail": "Not Found"}'))
                    return
                body = json.dumps({"object": "list", "data": outer.models}).encode()
                self._send(outer.lists() or Fault(content=body))

            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                outer.authorizations.append(self.headers["Authorization"])
                with outer._lock:
                    outer._in_flight += 1
                    outer.most_in_flight = max(outer.most_in_flight, outer._in_flight)
                try:
                    self._send(outer._answered(content))
                finally:
                    with outer._lock:
                        outer._in_flight -= 1

            def _send(self, answer: Fault) -> None:
                if answer.hangs:
                    outer._closing.wait()
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content[: answer.cut])
                if answer.cut is not None:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

        self._http = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def _answered(self, content: bytes) -> Fault:
        body = json.loads(content)
        parts = body["messages"][0]["content"]
        url = next(part["image_url"]["url"] for part in parts if part["type"] == "image_url")
        image = base64.b64decode(url.partition(";base64,")[2], validate=True)
        prompt = "".join(part["text"] for part in parts if part["type"] == "text")
        with self._lock:
            self._seen[content] += 1
            is_probe = body["max_tokens"] == 1
            request = Request(body, image, prompt, self._seen[content] - 1, is_probe)
            if not is_probe:
                self.requests.append(request)
        found = self.answer(request)
        if isinstance(found, str):
            found = completion(found, body["model"])
        return found if isinstance(found, Fault) else Fault(content=json.dumps(found).encode())

    def __enter__(self) -> ChatServer:
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Take no more connections, and let go of requests that hang."""
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()
