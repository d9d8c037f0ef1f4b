"""What the robots.txt of each host asks of one crawler (RFC 9309), read by Protego."""

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
"""How much of a robots.txt is read, as RFC 9309 section 2.5 asks at least: 500 KiB."""

_GOOD_SECONDS = 86_400.0  # how long a robots.txt is good for (RFC 9309, section 2.4)
_FAILED_SECONDS = 300.0  # how long one that could not be had is not asked for again
_MAX_RULES = 200_000  # kept at most, about 100 MB


class Robots:
    """What one crawler may fetch of an origin.

    Attributes:
        crawl_delay: Seconds between two requests, which many files ask for beside the standard.
        rules: How many lines concern the crawler.
    """

    def __init__(self, content: bytes = b"", token: str = "*") -> None:
        """Read a robots.txt; lines that mean nothing are passed over, whatever they hold.

        Args:
            content: Its bytes; of those after `MAX_BYTES` nothing is read.
            token: The product token of the crawler, compared without case.
        """
        if len(content) > MAX_BYTES:  # half a line may forbid more than the whole of it
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
    """The rules of the groups that name a crawler, or else of those for `*`.

    Protego would do this, too, but takes a name for ours that is only the start of it, and as
    long as there are names times rules.
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
    """What the robots.txt of each origin asks, or why it could not be had.

    Each is read once for all who need it, by the first of them; the oldest are forgotten.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[Origin, tuple[float, Future[Robots | FailureT]]] = OrderedDict()
        self._size = 0

    def claim(self, origin: Origin) -> tuple[Future[Robots | FailureT], bool]:
        """What will be known, and whether whoever asks is to `keep` it or to `give_up`."""
        until, known = self._known.get(origin, (0.0, None))
        if known is not None:
            if time.monotonic() < until:
                return known, False
            self._forget(origin)
        future: Future[Robots | FailureT] = Future()
        self._known[origin] = math.inf, future
        return future, True

    def keep(self, origin: Origin, found: Robots | FailureT) -> None:
        """Tell all who wait for it."""
        _, future = self._known.pop(origin)
        seconds = _GOOD_SECONDS if isinstance(found, Robots) else _FAILED_SECONDS
        self._known[origin] = time.monotonic() + seconds, future
        self._size += _size(found)
        while self._size > _MAX_RULES:
            oldest = next((name for name, one in self._known.items() if one[1].done()), None)
            if oldest is None:
                break
            self._forget(oldest)
        future.set_result(found)

    def give_up(self, origin: Origin, failure: FailureT) -> None:
        """Tell all who wait that nothing was found out, and let the next one ask again."""
        _, future = self._known.pop(origin)
        future.set_result(failure)

    def _forget(self, origin: Origin) -> None:
        _, future = self._known.pop(origin)
        self._size -= _size(future.result())


def _size(found: Robots | Exception) -> int:
    return 1 + (found.rules if isinstance(found, Robots) else 0)
