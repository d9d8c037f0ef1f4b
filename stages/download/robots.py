"""Reads and caches robots.txt files (RFC 9309) for one crawler, with Protego."""

from __future__ import annotations

import math
import re
import time
from collections import OrderedDict
from concurrent.futures import Future
from typing import Generic, TypeVar

from protego import Protego

from stages.download.urls import Origin

__all__ = ["MAX_BYTES", "Robots", "RobotsCache"]

MAX_BYTES = 512_000
"""Bytes of a robots.txt that are read; RFC 9309, section 2.5, asks for at least 500 KiB."""

_GOOD_SECONDS = 86_400.0  # how long a robots.txt is cached (RFC 9309, section 2.4)
_FAILED_SECONDS = 300.0  # how long a failure is cached
_MAX_RULES = 200_000  # rules in the cache, about 100 MB


class Robots:
    """The rules of one robots.txt for one crawler.

    Attributes:
        crawl_delay: Seconds between two requests, a common extension of the standard; or None.
        rules: Number of lines that apply to the crawler.
    """

    def __init__(self, content: bytes = b"", token: str = "*") -> None:
        """Parse a robots.txt; unknown lines are ignored.

        Args:
            content: The file; only the first `MAX_BYTES` bytes are read.
            token: The crawler's product token, in any case.
        """
        if len(content) > MAX_BYTES:  # drop the cut line, which may forbid more than the whole one
            content = content[: 1 + content.rfind(b"\n", 0, MAX_BYTES)]
        lines = _lines_for(content.decode("utf-8-sig", errors="replace"), token.lower())
        self.rules = len(lines)
        self._protego = Protego.parse("\n".join(["User-agent: *", *lines]))
        delay = self._protego.crawl_delay("*")
        self.crawl_delay = delay if delay and 0 < delay < math.inf else None

    def allows(self, url: str) -> bool:
        """Whether a URL of the origin may be fetched."""
        return self._protego.can_fetch(url, "*")


def _lines_for(text: str, token: str) -> list[str]:
    """Return the rules of the groups for a crawler, or else of the groups for `*`.

    Protego selects groups too, but it matches prefixes of the crawler's name, and its time grows
    with the number of names times the number of rules.
    """
    mine: list[str] = []
    everyone: list[str] = []
    is_named = False
    current: set[str] = set()
    is_naming = False
    for line in re.split(r"[\r\n]+", text):
        key, colon, value = line.partition("#")[0].partition(":")
        key, value = key.strip().lower(), value.strip()
        if not colon:
            continue
        if key == "user-agent":
            current = current if is_naming else set()
            is_naming = True
            current.update(value.lower().replace("/", " ").split()[:1])
        elif key in ("allow", "disallow", "crawl-delay"):
            is_naming = False
            rule = f"{key}: {value}"
            if token in current:
                is_named = True
                mine.append(rule)
            if "*" in current:
                everyone.append(rule)
    return mine if is_named else everyone


FailureT = TypeVar("FailureT", bound=Exception)


class RobotsCache(Generic[FailureT]):
    """The robots.txt of each origin, or the failure to get it; the oldest entries are dropped.

    The first URL of an origin fetches the file, and the others wait for its result.
    """

    def __init__(self) -> None:
        self._entries: OrderedDict[Origin, tuple[float, Future[Robots | FailureT]]] = OrderedDict()
        self._size = 0

    def claim(self, origin: Origin) -> tuple[Future[Robots | FailureT], bool]:
        """Return the future result for an origin, and whether the caller must provide it.

        A caller that gets True must call `keep` or `give_up`.
        """
        until, future = self._entries.get(origin, (0.0, None))
        if future is not None:
            if time.monotonic() < until:
                return future, False
            self._forget(origin)
        claimed: Future[Robots | FailureT] = Future()
        self._entries[origin] = math.inf, claimed
        return claimed, True

    def keep(self, origin: Origin, result: Robots | FailureT) -> None:
        """Store the result of an origin, and set it for all that wait."""
        _, future = self._entries.pop(origin)
        seconds = _GOOD_SECONDS if isinstance(result, Robots) else _FAILED_SECONDS
        self._entries[origin] = time.monotonic() + seconds, future
        self._size += _size(result)
        while self._size > _MAX_RULES:
            oldest = next((name for name, entry in self._entries.items() if entry[1].done()), None)
            if oldest is None:
                break
            self._forget(oldest)
        future.set_result(result)

    def give_up(self, origin: Origin, failure: FailureT) -> None:
        """Set a failure for all that wait, without storing it, so that the next URL tries again."""
        _, future = self._entries.pop(origin)
        future.set_result(failure)

    def _forget(self, origin: Origin) -> None:
        _, future = self._entries.pop(origin)
        self._size -= _size(future.result())


def _size(result: Robots | Exception) -> int:
    return 1 + (result.rules if isinstance(result, Robots) else 0)
