"""Captions by a vision-language model on a server with OpenAI's API.

Such servers are vLLM, SGLang, TGI, llama.cpp and `transformers serve`.

    captioner = ServedCaptioner(["http://127.0.0.1:8000/v1"], "Qwen/Qwen3-VL-4B-Instruct")
    [[caption]] = captioner.caption([jpeg], [0], Settings(), prompt=["Describe this image."])

A failed request is sent again, to another server if there is one. Answers are untrusted: they are
limited in time and in bytes, and checked.
"""

from __future__ import annotations

import asyncio
import email.utils
import functools
import io
import json
import logging
import os
import ssl
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import aiohttp
import certifi
from PIL import Image

from models.errors import StageUnavailableError
from models.image.data_url import data_url
from models.image.decode import ImageError
from models.inference.decoding import Caption, CaptionError, Settings
from models.random import seed_of
from models.text.captions import INVISIBLE

__all__ = ["ServedCaptioner", "served_revision"]

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
LIST_SECONDS = 30.0
"""Seconds within which a server must list its models."""

MAX_ANSWER = 2**20
"""The most bytes of an answer; a caption has a few hundred."""

SEED_BITS = 31
"""Bits of a seed; every server accepts this many."""

MAX_MESSAGE = 300
"""Characters of a server's error message that are kept."""

MAX_REST = 300.0
"""The most seconds to wait for a Retry-After."""

REVISION = ("root", "parent", "revision", "sha", "digest", "version")
META = ("n_params", "n_vocab", "n_embd", "size")
"""Fields of a model in the answer to /models, and in llama.cpp's `meta` there, that identify the
model and do not change while it stays the same."""


class _Failed(Exception):
    """A request failed, and the request itself may be the cause.

    Attributes:
        error: The kind of failure.
        may_pass: Whether the same request can succeed if it is sent again.
    """

    def __init__(self, error: CaptionError, message: str, *, may_pass: bool = True) -> None:
        super().__init__(message)
        self.error: CaptionError = error
        self.may_pass = may_pass


class _Unavailable(Exception):
    """A server accepts no requests at the moment.

    Attributes:
        retry_after: The seconds to wait that the server names; None if it names none.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass
class _Server:
    """The state of a server.

    Attributes:
        url: The URL above `/chat/completions` and `/models`.
        in_flight: Number of requests without an answer yet.
        rests: Number of times in a row that it was unavailable.
        resting_until: Time of the next request at the earliest, on the monotonic clock.
        answers_as: The name of the model in its answers.
    """

    url: str
    in_flight: int = 0
    rests: int = 0
    resting_until: float = 0.0
    answers_as: str | None = None


class ServedCaptioner:
    """Writes captions of images by requests to servers.

    Args:
        servers: The URLs of servers with the same model, each with the API's prefix
            (http://127.0.0.1:8000/v1). A request goes to the server with the fewest in flight.
        model: The name of the model on the servers.
        revision: The revision of the model from `served_revision`. If a server has another one
            before or after captions are written, they are refused. None skips the check.
        key_env: The environment variable with the API key, if any. No message contains the key.
        concurrency: The most requests in flight.
        timeout: Seconds from sending a request to the end of its answer.
        tries: The most times a request is sent before it counts as failed.
        patience: Seconds to wait for a server that accepts no requests (429, 503, no connection).
        backoff: Seconds before the second try; doubled for each further try, up to 30.
        image_size: The longer side, in pixels, to which larger images are resized.
        threads: Threads that decode and resize images.
    """

    def __init__(
        self,
        servers: Sequence[str],
        model: str,
        *,
        revision: str | None = None,
        key_env: str = "OPENAI_API_KEY",
        concurrency: int = 64,
        timeout: float = 300.0,
        tries: int = 3,
        patience: float = 600.0,
        backoff: float = 0.5,
        image_size: int = 1024,
        threads: int = 1,
    ) -> None:
        self.model = model
        self.revision = revision
        self.concurrency = concurrency
        self.timeout = timeout
        self.tries = tries
        self.patience = patience
        self.backoff = backoff
        self.image_size = image_size
        self.threads = threads
        self.takes_seeds = True
        self._servers = [_Server(url) for url in servers]
        self._http = _Http(key_env)

    def check(self, settings: Settings, prompt: str) -> None:
        """Ask each server for one token, so that errors appear before any image is sent.

        If a server refuses seeds, later requests have none.

        Raises:
            StageUnavailableError: A server cannot be reached, does not have the model, or refuses
                the request.
        """
        asyncio.run(self._check(settings, prompt))

    def caption(
        self,
        images: Sequence[bytes],
        seeds: Sequence[int],
        settings: Settings,
        *,
        prompt: Sequence[str],
        batch_size: int | None = None,
    ) -> list[list[Caption]]:
        """Write captions of each image; see `ChatCaptioner.caption`.

        A caption that cannot be obtained has an error. Before that is concluded, the server must
        answer a plain request.

        Raises:
            StageUnavailableError: No server answers, or the model of a server has changed.
        """
        return asyncio.run(self._caption(images, seeds, settings, prompt))

    async def _check(self, settings: Settings, prompt: str) -> None:
        async with self._http.session(self.timeout) as session:
            await self._check_revision(session)
            for server in self._servers:
                try:
                    await self._probe(session, server, settings, prompt)
                except (_Failed, _Unavailable) as error:
                    raise StageUnavailableError(f"{server.url} gives no caption: {error}") from None

    async def _check_revision(self, session: aiohttp.ClientSession) -> None:
        """Check that the model of each server has the expected revision."""
        if self.revision is None:
            return
        for server in self._servers:
            current = await self._http.revision(session, server.url, self.model)
            if current != self.revision:
                raise StageUnavailableError(
                    f"the model of {server.url} has changed: it was {self.revision}, now it is "
                    f"{current}. Serve the old model again, or run the same command again to "
                    "caption all images with the new one"
                )

    async def _caption(
        self,
        images: Sequence[bytes],
        seeds: Sequence[int],
        settings: Settings,
        prompts: Sequence[str],
    ) -> list[list[Caption]]:
        number = settings.num_captions
        captions: list[list[Caption | None]] = [[None] * number for _ in images]
        self._alive = asyncio.Lock()
        pending = iter([(image, k) for image in range(len(images)) for k in range(number)])
        with ThreadPoolExecutor(self.threads) as threads:
            urls = _DataUrls(images, number, self.image_size, threads)

            async def work(session: aiohttp.ClientSession) -> None:
                for image, k in pending:
                    if (url := await urls.of(images[image])) is None:
                        continue
                    body = self._body(
                        url, prompts[image], settings, seed_of(seeds[image], k, bits=SEED_BITS)
                    )
                    captions[image][k] = await self._ask(session, body, settings, prompts[image])

            async with self._http.session(self.timeout) as session:
                await self._check_revision(session)
                try:
                    async with asyncio.TaskGroup() as group:
                        for _ in range(min(self.concurrency, len(images) * number)):
                            group.create_task(work(session))
                except BaseExceptionGroup as errors:
                    raise errors.exceptions[0] from None
                await self._check_revision(session)
        return [[caption for caption in some if caption is not None] for some in captions]

    def _body(
        self, url: str, prompt: str, settings: Settings, seed: int, max_tokens: int | None = None
    ) -> bytes:
        """The body of a request; fields that some servers do not know are left out if possible."""
        content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}}]
        if prompt:
            content.append({"type": "text", "text": prompt})
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": max_tokens or settings.max_tokens,
        }
        if settings.decoding == "greedy":
            body["temperature"] = 0
        else:
            body |= {"temperature": settings.temperature, "top_p": settings.top_p}
            if settings.top_k:
                body["top_k"] = settings.top_k
        if settings.repetition_penalty != 1:
            body["repetition_penalty"] = settings.repetition_penalty
        if self.takes_seeds:
            body["seed"] = seed
        return json.dumps(body).encode()

    async def _ask(
        self, session: aiohttp.ClientSession, body: bytes, settings: Settings, prompt: str
    ) -> Caption:
        """Send a request until it succeeds or fails for good; return a caption or an error.

        Raises:
            StageUnavailableError: No server accepts requests, or all requests fail.
        """
        failures, waiting_since, last = 0, time.monotonic(), None
        while True:
            server = await self._free_server(avoid=last)
            try:
                return await self._post(session, server, body)
            except _Unavailable as error:
                self._rest(server, error)
                waited = time.monotonic() - waiting_since
                if waited > self.patience:
                    raise StageUnavailableError(
                        f"{server.url} has accepted no request for {waited:.0f} s: {error}. Start "
                        "it or lower caption.concurrency, and run the same command again"
                    ) from None
            except _Failed as error:
                failures += 1
                logger.info("%s: try %d failed: %s", server.url, failures, error)
                if not error.may_pass:
                    return Caption("", False, error.error, str(error))
                if failures >= self.tries:
                    await self._check_alive(session, server, settings, prompt, error)
                    return Caption("", False, error.error, str(error))
                await asyncio.sleep(_doubled(self.backoff, failures))
                waiting_since, last = time.monotonic(), server

    async def _free_server(self, avoid: _Server | None) -> _Server:
        """Wait for a server that accepts requests; the least busy one, `avoid` only as the last."""
        while True:
            now = time.monotonic()
            free = [server for server in self._servers if server.resting_until <= now]
            if free:
                return min(free, key=lambda server: (server is avoid, server.in_flight))
            await asyncio.sleep(min(s.resting_until for s in self._servers) - now)

    def _rest(self, server: _Server, error: _Unavailable) -> None:
        """Stop sending requests to a server for a while; refusals during that time do not count."""
        now = time.monotonic()
        if server.resting_until > now:
            return
        server.rests += 1
        seconds = error.retry_after
        if seconds is None:
            seconds = _doubled(self.backoff, server.rests)
        server.resting_until = now + min(seconds, MAX_REST)
        logger.info("%s: %s; asked again in %.1f s", server.url, error, seconds)

    async def _check_alive(
        self,
        session: aiohttp.ClientSession,
        server: _Server,
        settings: Settings,
        prompt: str,
        error: _Failed,
    ) -> None:
        """Check that a server answers a plain request, so that the failed request is the cause.

        Raises:
            StageUnavailableError: The server does not answer it.
        """
        async with self._alive:
            waiting_since = time.monotonic()
            while True:
                try:
                    await self._probe(session, server, settings, prompt)
                    return
                except _Unavailable as busy:
                    self._rest(server, busy)
                    if time.monotonic() - waiting_since > self.patience:
                        raise StageUnavailableError(
                            f"{server.url} accepts no requests: {busy}"
                        ) from None
                    await asyncio.sleep(max(0.0, server.resting_until - time.monotonic()))
                except _Failed as failure:
                    raise StageUnavailableError(
                        f"{server.url} fails on every request: {error}; and on a plain one: "
                        f"{failure}. Fix the server and run the same command again"
                    ) from None

    async def _probe(
        self, session: aiohttp.ClientSession, server: _Server, settings: Settings, prompt: str
    ) -> None:
        """Ask for one token of a plain image."""
        try:
            await self._post(session, server, self._body(_GREY, prompt, settings, 0, 1))
        except _Failed as error:
            if error.error != "refused" or not self.takes_seeds:
                raise
            self.takes_seeds = False
            try:
                await self._post(session, server, self._body(_GREY, prompt, settings, 0, 1))
            except _Failed:
                self.takes_seeds = True
                raise error from None
            logger.warning("%s accepts no seeds: captions cannot be reproduced", server.url)

    async def _post(self, session: aiohttp.ClientSession, server: _Server, body: bytes) -> Caption:
        """Send a request once."""
        server.in_flight += 1
        try:
            answer = await self._http.ask(session, f"{server.url}/chat/completions", body)
        finally:
            server.in_flight -= 1
        server.rests = 0
        name = answer.get("model")
        if isinstance(name, str):
            if server.answers_as not in (None, name):
                raise StageUnavailableError(
                    f"the model of {server.url} has changed: it answered as "
                    f"{self._http.clean(str(server.answers_as))} and now as "
                    f"{self._http.clean(name)}. Run the same command again when it is stable"
                )
            server.answers_as = name
        return _caption_of(answer)


class _Http:
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
        except (_Failed, _Unavailable, TimeoutError) as error:
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
                        raise _Failed("bad_answer", f"an answer of more than {MAX_ANSWER} bytes")
        except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError) as error:
            raise _Unavailable(self.clean(f"no connection: {error}")) from None
        except TimeoutError:
            seconds = session.timeout.total or 0.0
            raise _Failed("timeout", f"no complete answer within {seconds:g} s") from None
        except aiohttp.ClientError as error:
            message = f"the connection broke: {error or type(error).__name__}"
            raise _Failed("server_error", self.clean(message)) from None
        if status == 200:
            return _json_object(bytes(content))
        raise self._error(url, status, headers, bytes(content))

    def _error(
        self, url: str, status: int, headers: Mapping[str, str], content: bytes
    ) -> Exception:
        """The error for a status other than 200."""
        message = f"status {status}: {self.clean(_message(content))}"
        if status in (429, 503):
            return _Unavailable(message, _retry_after(headers.get("Retry-After")))
        if status >= 500:
            return _Failed("server_error", message)
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
            return _Failed("timeout", message)
        return _Failed("refused", message, may_pass=False)

    def clean(self, text: str, longest: int = MAX_MESSAGE) -> str:
        """A server's text for a message: without the key, on one line, and cut to a length."""
        if self.key:
            text = text.replace(self.key, "***")
        text = " ".join(INVISIBLE.sub(" ", text).split())
        return text if len(text) <= longest else f"{text[:longest]}..."


class _DataUrls:
    """The data URLs of images; each is made once on a thread and kept while it is needed."""

    def __init__(
        self, images: Sequence[bytes], times: int, longest: int, threads: ThreadPoolExecutor
    ) -> None:
        self.longest = longest
        self.threads = threads
        self.uses = Counter({k: n * times for k, n in Counter(map(id, images)).items()})
        self.made: dict[int, asyncio.Future[str | None]] = {}

    async def of(self, image: bytes) -> str | None:
        """The data URL of an image; None if the image cannot be decoded."""
        key = id(image)
        if key not in self.made:
            loop = asyncio.get_running_loop()
            self.made[key] = loop.run_in_executor(self.threads, self._make, image)
        try:
            return await self.made[key]
        finally:
            self.uses[key] -= 1
            if not self.uses[key]:
                del self.made[key]

    def _make(self, image: bytes) -> str | None:
        try:
            return data_url(image, self.longest)
        except ImageError as error:
            logger.debug("an image cannot be decoded: %s", error)
            return None


@functools.lru_cache(maxsize=16)
def served_revision(servers: tuple[str, ...], model: str, key_env: str) -> str:
    """The name of a model and the fields that identify its revision, from its servers.

    Servers are asked once in a process, so that a run uses the revision it was planned with.

    Args:
        servers: The URLs, each with the API's prefix.
        model: The name of the model on the servers.
        key_env: The environment variable with the API key, if any.

    Raises:
        StageUnavailableError: A server cannot be reached, does not have the model, or has another
            revision than the first server.
    """
    http = _Http(key_env)

    async def ask() -> list[str]:
        async with http.session(LIST_SECONDS) as session:
            return [await http.revision(session, server, model) for server in servers]

    revisions = asyncio.run(ask())
    for server, revision in zip(servers, revisions, strict=True):
        if revision != revisions[0]:
            raise StageUnavailableError(
                f"{servers[0]} has {revisions[0]}, but {server} has {revision}; serve the same "
                "model on all servers of a stage"
            )
    return revisions[0]


def _revision(entry: Mapping[str, Any]) -> str:
    """The identifying fields of a model in /models, as JSON; empty if there are none."""
    known = {name: entry[name] for name in REVISION if entry.get(name) is not None}
    meta = entry.get("meta")
    if isinstance(meta, dict):
        known |= {name: meta[name] for name in META if meta.get(name) is not None}
    return json.dumps(known, sort_keys=True) if known else ""


def _caption_of(answer: Mapping[str, Any]) -> Caption:
    """The caption in a chat completion."""
    try:
        choice = answer["choices"][0]
        content, reason = choice["message"]["content"], choice.get("finish_reason")
        if isinstance(content, list):
            content = "".join(part["text"] for part in content if part.get("type") == "text")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise _Failed("bad_answer", f"no chat completion: {_start(answer)}") from None
    if reason == "content_filter":
        raise _Failed("refused", "the content filter of the server", may_pass=False)
    if not isinstance(content, str | None):
        raise _Failed("bad_answer", f"no text in the chat completion: {_start(answer)}")
    text = " ".join(INVISIBLE.sub("", content or "").split())
    return Caption(text, reason == "length")


def _json_object(content: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise _Failed("bad_answer", f"no JSON object: {_start(content)}")
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


def _doubled(seconds: float, times: int) -> float:
    return min(30.0, seconds * 2.0 ** min(times - 1, 10))


@functools.cache
def _tls() -> ssl.SSLContext:
    """TLS with Python's certificates: those of SSL_CERT_FILE, SSL_CERT_DIR or the system."""
    paths = ssl.get_default_verify_paths()
    return ssl.create_default_context(
        cafile=paths.cafile or (None if paths.capath else certifi.where())
    )


def _grey() -> str:
    encoded = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(encoded, "JPEG")
    return data_url(encoded.getvalue(), 64)


_GREY = _grey()
"""An image that every model accepts."""
