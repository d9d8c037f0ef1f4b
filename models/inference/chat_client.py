"""An HTTP client for OpenAI's chat API: sends requests, classifies failures, reads captions."""

from __future__ import annotations

import asyncio
import email.utils
import functools
import json
import os
import ssl
import time
from collections.abc import Mapping
from typing import Any

import aiohttp
import certifi

from models.errors import StageUnavailableError
from models.inference.decoding import Caption, CaptionError
from models.text.captions import INVISIBLE

__all__ = ["LIST_SECONDS", "ChatClient", "RequestError", "ServerBusyError", "caption_of"]

CONNECT_SECONDS = 10.0
LIST_SECONDS = 30.0
"""Seconds within which a server must list its models."""

MAX_ANSWER = 2**20
"""The most bytes of an answer; a caption has a few hundred."""

MAX_MESSAGE = 300
"""Characters of a server's error message that are kept."""

REVISION = ("root", "parent", "revision", "sha", "digest", "version")
META = ("n_params", "n_vocab", "n_embd", "size")
"""Fields of a model in the answer to /models, and in llama.cpp's `meta` there, that identify the
model and do not change while it stays the same."""


class RequestError(Exception):
    """A request failed, and the request itself may be the cause.

    Attributes:
        error: The kind of failure.
        may_pass: Whether the same request can succeed if it is sent again.
    """

    def __init__(self, error: CaptionError, message: str, *, may_pass: bool = True) -> None:
        super().__init__(message)
        self.error: CaptionError = error
        self.may_pass = may_pass


class ServerBusyError(Exception):
    """A server accepts no requests at the moment.

    Attributes:
        retry_after: The seconds to wait that the server names; None if it names none.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ChatClient:
    """An HTTP client with the API key; it classifies failures and never shows the key."""

    def __init__(self, key_env: str) -> None:
        self.key_env = key_env
        self.key = os.environ.get(key_env) or None

    def session(self, timeout: float) -> aiohttp.ClientSession:
        """A session in which an answer must be complete within `timeout` seconds."""
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=_tls()),
            timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_SECONDS),
            headers=headers,
        )

    async def revision(self, session: aiohttp.ClientSession, server: str, model: str) -> str:
        """The revision of a model on a server, from its list of models.

        Raises:
            StageUnavailableError: The server cannot be reached, gives no list, or does not have
                the model.
        """
        try:
            async with asyncio.timeout(LIST_SECONDS):
                answer = await self.ask(session, f"{server}/models")
        except (RequestError, ServerBusyError, TimeoutError) as error:
            raise StageUnavailableError(
                f"{server}/models gives no list of models: {str(error) or 'no answer in time'}. "
                "Start the server or correct its URL, which ends in /v1 for most servers"
            ) from None
        entries = answer.get("data")
        entries = [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []
        for entry in entries:
            if entry.get("id") == model:
                return self.clean(f"{model} {_revision(entry)}".strip(), 4 * MAX_MESSAGE)
        names = ", ".join(str(entry.get("id")) for entry in entries) or "none"
        raise StageUnavailableError(f"{server} has no model {model!r}; it has {self.clean(names)}")

    async def ask(
        self, session: aiohttp.ClientSession, url: str, body: bytes | None = None
    ) -> dict[str, Any]:
        """Send a request, a POST if it has a body, and return the JSON object of the answer."""
        method = "GET" if body is None else "POST"
        try:
            async with session.request(method, url, data=body, allow_redirects=False) as response:
                status, headers = response.status, response.headers
                content = bytearray()
                async for part in response.content.iter_chunked(65_536):
                    content += part
                    if len(content) > MAX_ANSWER:
                        raise RequestError(
                            "bad_answer", f"an answer of more than {MAX_ANSWER} bytes"
                        )
        except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError) as error:
            raise ServerBusyError(self.clean(f"no connection: {error}")) from None
        except TimeoutError:
            seconds = session.timeout.total or 0.0
            raise RequestError("timeout", f"no complete answer within {seconds:g} s") from None
        except aiohttp.ClientError as error:
            message = f"the connection broke: {error or type(error).__name__}"
            raise RequestError("server_error", self.clean(message)) from None
        if status == 200:
            return _json_object(bytes(content))
        raise self._error(url, status, headers, bytes(content))

    def _error(
        self, url: str, status: int, headers: Mapping[str, str], content: bytes
    ) -> Exception:
        """The error for a status other than 200."""
        message = f"status {status}: {self.clean(_message(content))}"
        if status in (429, 503):
            return ServerBusyError(message, _retry_after(headers.get("Retry-After")))
        if status >= 500:
            return RequestError("server_error", message)
        if status in (401, 402, 403):
            return StageUnavailableError(
                f"{url} does not accept the key in ${self.key_env} ({message}). Set that variable "
                "where the workers run, or name another one in caption.api_key_env"
            )
        if status in (404, 405) or status < 400:
            where = headers.get("Location")
            return StageUnavailableError(
                f"{url}: {message}{f', see {self.clean(where)}' if where else ''}. Set the URL "
                "above /models and /chat/completions; it ends in /v1 for most servers"
            )
        if status == 408:
            return RequestError("timeout", message)
        return RequestError("refused", message, may_pass=False)

    def clean(self, text: str, longest: int = MAX_MESSAGE) -> str:
        """A server's text for a message: without the key, on one line, and cut to a length."""
        if self.key:
            text = text.replace(self.key, "***")
        text = " ".join(INVISIBLE.sub(" ", text).split())
        return text if len(text) <= longest else f"{text[:longest]}..."


def caption_of(answer: Mapping[str, Any]) -> Caption:
    """The caption in a chat completion."""
    try:
        choice = answer["choices"][0]
        content, reason = choice["message"]["content"], choice.get("finish_reason")
        if isinstance(content, list):
            content = "".join(part["text"] for part in content if part.get("type") == "text")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise RequestError("bad_answer", f"no chat completion: {_start(answer)}") from None
    if reason == "content_filter":
        raise RequestError("refused", "the content filter of the server", may_pass=False)
    if not isinstance(content, str | None):
        raise RequestError("bad_answer", f"no text in the chat completion: {_start(answer)}")
    text = " ".join(INVISIBLE.sub("", content or "").split())
    return Caption(text, reason == "length")


def _revision(entry: Mapping[str, Any]) -> str:
    """The identifying fields of a model in /models, as JSON; empty if there are none."""
    known = {name: entry[name] for name in REVISION if entry.get(name) is not None}
    meta = entry.get("meta")
    if isinstance(meta, dict):
        known |= {name: meta[name] for name in META if meta.get(name) is not None}
    return json.dumps(known, sort_keys=True) if known else ""


def _json_object(content: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise RequestError("bad_answer", f"no JSON object: {_start(content)}")
    return answer


def _start(answer: Any) -> str:
    text = answer.decode(errors="replace") if isinstance(answer, bytes) else json.dumps(answer)
    return " ".join(INVISIBLE.sub(" ", text[:MAX_MESSAGE]).split())


def _message(content: bytes) -> str:
    """The message in the body of an error, in any of the forms that servers use."""
    text = content.decode(errors="replace")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return text
    for name in ("error", "message", "detail"):
        if isinstance(value, dict) and name in value:
            value = value[name]
    return value if isinstance(value, str) else json.dumps(value)


def _retry_after(value: str | None) -> float | None:
    """The seconds of a Retry-After header, which is a number or a date."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if seconds == seconds else None


@functools.cache
def _tls() -> ssl.SSLContext:
    """TLS with Python's certificates: those of SSL_CERT_FILE, SSL_CERT_DIR or the system."""
    paths = ssl.get_default_verify_paths()
    return ssl.create_default_context(
        cafile=paths.cafile or (None if paths.capath else certifi.where())
    )
