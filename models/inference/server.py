"""Captions by a vision-language model on a server with OpenAI's API.

Such servers are vLLM, SGLang, TGI, llama.cpp and `transformers serve`.

    captioner = ServedCaptioner(["http://127.0.0.1:8000/v1"], "Qwen/Qwen3-VL-4B-Instruct")
    [[caption]] = captioner.caption([jpeg], [0], Settings(), prompt=["Describe this image."])

A failed request is sent again, to another server if there is one. Answers are untrusted: they are
limited in time and in bytes, and checked.
"""

from __future__ import annotations

import asyncio
import functools
import io
import json
import logging
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import aiohttp
from PIL import Image

from models.errors import StageUnavailableError
from models.image.data_url import data_url
from models.image.decode import ImageError
from models.inference.chat_client import (
    LIST_SECONDS,
    ChatClient,
    RequestError,
    ServerBusyError,
    caption_of,
)
from models.inference.decoding import Caption, Settings
from models.random import seed_of

__all__ = ["ServedCaptioner", "served_revision"]

logger = logging.getLogger(__name__)

SEED_BITS = 31
"""Bits of a seed; every server accepts this many."""

MAX_REST = 300.0
"""The most seconds to wait for a Retry-After."""


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
        self._client = ChatClient(key_env)

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
        async with self._client.session(self.timeout) as session:
            await self._check_revision(session)
            for server in self._servers:
                try:
                    await self._probe(session, server, settings, prompt)
                except (RequestError, ServerBusyError) as error:
                    raise StageUnavailableError(f"{server.url} gives no caption: {error}") from None

    async def _check_revision(self, session: aiohttp.ClientSession) -> None:
        """Check that the model of each server has the expected revision."""
        if self.revision is None:
            return
        for server in self._servers:
            current = await self._client.revision(session, server.url, self.model)
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

            async with self._client.session(self.timeout) as session:
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
            except ServerBusyError as error:
                self._rest(server, error)
                waited = time.monotonic() - waiting_since
                if waited > self.patience:
                    raise StageUnavailableError(
                        f"{server.url} has accepted no request for {waited:.0f} s: {error}. Start "
                        "it or lower caption.concurrency, and run the same command again"
                    ) from None
            except RequestError as error:
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

    def _rest(self, server: _Server, error: ServerBusyError) -> None:
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
        error: RequestError,
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
                except ServerBusyError as busy:
                    self._rest(server, busy)
                    if time.monotonic() - waiting_since > self.patience:
                        raise StageUnavailableError(
                            f"{server.url} accepts no requests: {busy}"
                        ) from None
                    await asyncio.sleep(max(0.0, server.resting_until - time.monotonic()))
                except RequestError as failure:
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
        except RequestError as error:
            if error.error != "refused" or not self.takes_seeds:
                raise
            self.takes_seeds = False
            try:
                await self._post(session, server, self._body(_GREY, prompt, settings, 0, 1))
            except RequestError:
                self.takes_seeds = True
                raise error from None
            logger.warning("%s accepts no seeds: captions cannot be reproduced", server.url)

    async def _post(self, session: aiohttp.ClientSession, server: _Server, body: bytes) -> Caption:
        """Send a request once."""
        server.in_flight += 1
        try:
            answer = await self._client.ask(session, f"{server.url}/chat/completions", body)
        finally:
            server.in_flight -= 1
        server.rests = 0
        name = answer.get("model")
        if isinstance(name, str):
            if server.answers_as not in (None, name):
                raise StageUnavailableError(
                    f"the model of {server.url} has changed: it answered as "
                    f"{self._client.clean(str(server.answers_as))} and now as "
                    f"{self._client.clean(name)}. Run the same command again when it is stable"
                )
            server.answers_as = name
        return caption_of(answer)


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
    client = ChatClient(key_env)

    async def ask() -> list[str]:
        async with client.session(LIST_SECONDS) as session:
            return [await client.revision(session, server, model) for server in servers]

    revisions = asyncio.run(ask())
    for server, revision in zip(servers, revisions, strict=True):
        if revision != revisions[0]:
            raise StageUnavailableError(
                f"{servers[0]} has {revisions[0]}, but {server} has {revision}; serve the same "
                "model on all servers of a stage"
            )
    return revisions[0]


def _doubled(seconds: float, times: int) -> float:
    return min(30.0, seconds * 2.0 ** min(times - 1, 10))


def _grey() -> str:
    encoded = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(encoded, "JPEG")
    return data_url(encoded.getvalue(), 64)


_GREY = _grey()
"""An image that every model accepts."""
