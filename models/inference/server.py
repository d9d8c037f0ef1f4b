"""Captions by a vision-language model behind a server that speaks OpenAI's API.

vLLM, SGLang, TGI, llama.cpp and `transformers serve` are such servers.

    captioner = ServedCaptioner(["http://127.0.0.1:8000/v1"], "Qwen/Qwen3-VL-4B-Instruct")
    [[caption]] = captioner.caption([jpeg], [0], Settings(), prompt=["Describe this image."])

A request that fails is sent again, to another server if there is one. What a server answers is
untrusted: it is bounded in time and in bytes, and checked.
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
"""How long a server may take to say which models it has."""

MAX_ANSWER = 2**20
"""Bytes of an answer; a caption has some hundred."""

SEED_BITS = 31
"""Bits of a seed that every server takes."""

MAX_MESSAGE = 300
"""Characters kept of what a server says of an error."""

MAX_REST = 300.0
"""Seconds that a Retry-After may ask for."""

REVISION = ("root", "parent", "revision", "sha", "digest", "version")
META = ("n_params", "n_vocab", "n_embd", "size")
"""Fields of a model in /models, and in llama.cpp's `meta` there, that tell one model from another
and stay as they are while the model does."""


class _Failed(Exception):
    """A request failed, perhaps by its own fault.

    Attributes:
        error: The kind of failure.
        may_pass: Whether the same request may succeed if it is sent again.
    """

    def __init__(self, error: CaptionError, message: str, *, may_pass: bool = True) -> None:
        super().__init__(message)
        self.error: CaptionError = error
        self.may_pass = may_pass


class _Unavailable(Exception):
    """A server takes no requests now, whatever they are.

    Attributes:
        retry_after: Seconds that it asks to wait, None where it asks nothing.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass
class _Server:
    """A server as it has behaved so far.

    Attributes:
        url: Where `/chat/completions` and `/models` lie.
        in_flight: Requests that it has not answered yet.
        rests: How often in a row it was unavailable.
        resting_until: When it may be asked again, on the monotonic clock.
        answers_as: The model that its answers name.
    """

    url: str
    in_flight: int = 0
    rests: int = 0
    resting_until: float = 0.0
    answers_as: str | None = None


class ServedCaptioner:
    """Writes captions of images by asking servers.

    Args:
        servers: The URLs of one or more servers with the same model, each with the API's prefix
            (http://127.0.0.1:8000/v1). A request goes to the one with the fewest in flight.
        model: The model by the name that the servers have for it.
        revision: What `served_revision` said of the model. Captions are refused where a server
            says something else before or after they are written. None asks nothing.
        key_env: The environment variable with the API key, if it is set. The key is in no message.
        concurrency: The most requests in flight.
        timeout: Seconds from sending a request to the end of its answer.
        tries: How often a request is sent before its failure counts.
        patience: Seconds to wait for a server that takes no requests (429, 503, no connection).
        backoff: Seconds before the second try; doubled before each further one, up to 30.
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
        """Ask each server for one token, so that what is wrong is known before any image is sent.

        A server that refuses seeds is asked without them from now on.

        Raises:
            StageUnavailableError: A server cannot be reached, lacks the model, or refuses such
                requests.
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

        A caption that cannot be had has an error, once the server was seen to answer a plain
        request.

        Raises:
            StageUnavailableError: No server answers, or the model of one has changed.
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
        """Refuse a server whose model is not the one of `revision`."""
        if self.revision is None:
            return
        for server in self._servers:
            found = await self._http.revision(session, server.url, self.model)
            if found != self.revision:
                raise StageUnavailableError(
                    f"the model of {server.url} has changed: it was {self.revision}, now it is "
                    f"{found}. Serve the former again, or give the same command again to caption "
                    "all images with the new one"
                )

    async def _caption(
        self,
        images: Sequence[bytes],
        seeds: Sequence[int],
        settings: Settings,
        prompts: Sequence[str],
    ) -> list[list[Caption]]:
        number = settings.num_captions
        found: list[list[Caption | None]] = [[None] * number for _ in images]
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
                    found[image][k] = await self._ask(session, body, settings, prompts[image])

            async with self._http.session(self.timeout) as session:
                await self._check_revision(session)
                try:
                    async with asyncio.TaskGroup() as group:
                        for _ in range(min(self.concurrency, len(images) * number)):
                            group.create_task(work(session))
                except BaseExceptionGroup as errors:
                    raise errors.exceptions[0] from None
                await self._check_revision(session)
        return [[caption for caption in some if caption is not None] for some in found]

    def _body(
        self, url: str, prompt: str, settings: Settings, seed: int, max_tokens: int | None = None
    ) -> bytes:
        """A request; fields that not every server knows are left out where they change nothing."""
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
        """A caption, or the error of a request that fails while others do not.

        Raises:
            StageUnavailableError: No server takes requests, or all fail.
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
                        f"{server.url} has taken no request for {waited:.0f} s: {error}. Start it "
                        "or lower caption.concurrency, and give the same command again"
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
        """The least busy server that takes requests; `avoid` only where no other does."""
        while True:
            now = time.monotonic()
            free = [server for server in self._servers if server.resting_until <= now]
            if free:
                return min(free, key=lambda server: (server is avoid, server.in_flight))
            await asyncio.sleep(min(s.resting_until for s in self._servers) - now)

    def _rest(self, server: _Server, error: _Unavailable) -> None:
        """Send a server no requests for a while. Of many refusals at once the first counts."""
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
        """See that a server answers a plain request, so that a failure is one request's own.

        Raises:
            StageUnavailableError: It does not.
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
                            f"{server.url} takes no requests: {busy}"
                        ) from None
                    await asyncio.sleep(max(0.0, server.resting_until - time.monotonic()))
                except _Failed as failure:
                    raise StageUnavailableError(
                        f"{server.url} fails on every request: {error}; and on a plain one: "
                        f"{failure}. Mend it and give the same command again"
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
            logger.warning("%s takes no seeds: another run writes other captions", server.url)

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
                    f"{self._http.clean(name)}. Give the same command again once it stays"
                )
            server.answers_as = name
        return _caption_of(answer)


class _Http:
    """HTTP with the API key, whose failures are told apart and never show the key."""

    def __init__(self, key_env: str) -> None:
        self.key_env = key_env
        self.key = os.environ.get(key_env) or None

    def session(self, timeout: float) -> aiohttp.ClientSession:
        """A session in which a whole answer must come within `timeout` seconds."""
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=_tls()),
            timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_SECONDS),
            headers=headers,
        )

    async def revision(self, session: aiohttp.ClientSession, server: str, model: str) -> str:
        """What a server says of its model.

        Raises:
            StageUnavailableError: It cannot be reached, does not say, or has no such model.
        """
        try:
            async with asyncio.timeout(LIST_SECONDS):
                answer = await self.ask(session, f"{server}/models")
        except (_Failed, _Unavailable, TimeoutError) as error:
            raise StageUnavailableError(
                f"{server}/models gives no list of models: {str(error) or 'no answer in time'}. "
                "Start the server or mend its URL, which ends in /v1 for most servers"
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
        """The JSON object that a server answers, to a POST where there is a body."""
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
            raise _Failed("timeout", f"no whole answer within {seconds:g} s") from None
        except aiohttp.ClientError as error:
            message = f"the connection broke: {error or type(error).__name__}"
            raise _Failed("server_error", self.clean(message)) from None
        if status == 200:
            return _json_object(bytes(content))
        raise self._error(url, status, headers, bytes(content))

    def _error(
        self, url: str, status: int, headers: Mapping[str, str], content: bytes
    ) -> Exception:
        """What a status other than 200 means."""
        message = f"status {status}: {self.clean(_message(content))}"
        if status in (429, 503):
            return _Unavailable(message, _retry_after(headers.get("Retry-After")))
        if status >= 500:
            return _Failed("server_error", message)
        if status in (401, 402, 403):
            return StageUnavailableError(
                f"{url} lets nobody in with the key of ${self.key_env} ({message}). Set that "
                "variable where the workers run, or name another by caption.api_key_env"
            )
        if status in (404, 405) or status < 400:
            where = headers.get("Location")
            return StageUnavailableError(
                f"{url}: {message}{f', see {self.clean(where)}' if where else ''}. Give the URL "
                "under which /models and /chat/completions answer; it ends in /v1 for most servers"
            )
        if status == 408:
            return _Failed("timeout", message)
        return _Failed("refused", message, may_pass=False)

    def clean(self, text: str, longest: int = MAX_MESSAGE) -> str:
        """A text of a server as it may be shown: without the key, in one line, not too long."""
        if self.key:
            text = text.replace(self.key, "***")
        text = " ".join(INVISIBLE.sub(" ", text).split())
        return text if len(text) <= longest else f"{text[:longest]}..."


class _DataUrls:
    """The data URLs of images, each made once on a thread and kept while it is needed."""

    def __init__(
        self, images: Sequence[bytes], times: int, longest: int, threads: ThreadPoolExecutor
    ) -> None:
        self.longest = longest
        self.threads = threads
        self.uses = Counter({k: n * times for k, n in Counter(map(id, images)).items()})
        self.made: dict[int, asyncio.Future[str | None]] = {}

    async def of(self, image: bytes) -> str | None:
        """The data URL of an image, None where it cannot be decoded."""
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
    """What servers say of a model: its name and what else tells one revision from another.

    Asked once in a process, so that a run keeps to what it was planned with.

    Args:
        servers: The URLs, each with the API's prefix.
        model: The name that they have for it.
        key_env: The environment variable with the API key, if it is set.

    Raises:
        StageUnavailableError: A server cannot be reached, has no such model, or has another than
            the first.
    """
    http = _Http(key_env)

    async def ask() -> list[str]:
        async with http.session(LIST_SECONDS) as session:
            return [await http.revision(session, server, model) for server in servers]

    found = asyncio.run(ask())
    for server, revision in zip(servers, found, strict=True):
        if revision != found[0]:
            raise StageUnavailableError(
                f"{servers[0]} has {found[0]}, but {server} has {revision}; serve the same model "
                "on all servers of a stage"
            )
    return found[0]


def _revision(entry: Mapping[str, Any]) -> str:
    """What /models says of a model beside its name, as JSON; empty where it says nothing."""
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
    """What the body of an error says, in the forms that servers have for it."""
    text = content.decode(errors="replace")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return text
    for name in ("error", "message", "detail"):
        if isinstance(found, dict) and name in found:
            found = found[name]
    return found if isinstance(found, str) else json.dumps(found)


def _retry_after(value: str | None) -> float | None:
    """The seconds of a Retry-After header, which has a number or a date."""
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
    """Trust the certificates that Python does: of SSL_CERT_FILE, SSL_CERT_DIR or the system."""
    paths = ssl.get_default_verify_paths()
    return ssl.create_default_context(
        cafile=paths.cafile or (None if paths.capath else certifi.where())
    )


def _grey() -> str:
    encoded = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(encoded, "JPEG")
    return data_url(encoded.getvalue(), 64)


_GREY = _grey()
"""An image that every model takes."""
