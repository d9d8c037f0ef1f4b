"""What a robots.txt asks of one crawler (RFC 9309)."""

from __future__ import annotations

import math
import re
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar
from urllib.parse import quote

__all__ = ["MAX_BYTES", "Origin", "Robots", "RobotsCache"]

MAX_BYTES = 512_000
"""How much of a robots.txt is read, as RFC 9309 section 2.5 asks at least: 500 KiB."""

Origin: TypeAlias = tuple[str, str, int]
"""The scheme, host and port that one robots.txt speaks for."""

_GOOD_SECONDS = 86_400.0  # how long a robots.txt is good for (RFC 9309, section 2.4)
_FAILED_SECONDS = 300.0  # how long one that could not be had is not asked for again
_MAX_RULES = 200_000  # kept at most, about 100 MB

_ESCAPED = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]")
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """An `Allow` or `Disallow` line.

    Attributes:
        length: Of its pattern; the longest that matches decides.
        allows: Which of the two it is; it wins over a `Disallow` of the same length.
        parts: The pattern, cut at each `*`.
        anchored: Whether it ended with `$`.
    """

    length: int
    allows: bool
    parts: tuple[str, ...]
    anchored: bool

    @classmethod
    def of(cls, allows: bool, pattern: str) -> _Rule:
        pattern = _normal(pattern)
        anchored = pattern.endswith("$")
        text = pattern[:-1] if anchored else pattern
        parts = tuple(text.replace("$", "%24").split("*"))
        return cls(length=len(pattern), allows=allows, parts=parts, anchored=anchored)

    def matches(self, path: str) -> bool:
        """Whether a path that is `_normal`, without `*` and `$`, begins as the pattern says."""
        first, *rest = self.parts
        if not path.startswith(first):
            return False
        if not rest:
            return not self.anchored or len(path) == len(first)
        position = len(first)
        for part in rest[:-1]:
            found = path.find(part, position)
            if found < 0:
                return False
            position = found + len(part)
        if self.anchored:
            return len(path) - len(rest[-1]) >= position and path.endswith(rest[-1])
        return path.find(rest[-1], position) >= 0


@dataclass(frozen=True, kw_only=True)
class Robots:
    """What one crawler may fetch of an origin; without any rule, everything.

    Attributes:
        rules: Of the groups that name the crawler, or else of those for `*`; the longest first.
        crawl_delay: Seconds between two requests, which many files ask for beside the standard.
    """

    rules: tuple[_Rule, ...] = ()
    crawl_delay: float | None = None

    @classmethod
    def parse(cls, content: bytes, token: str) -> Robots:
        """Read a robots.txt; lines that mean nothing are passed over, whatever they hold.

        Args:
            content: Its bytes; of those after `MAX_BYTES` nothing is read.
            token: The product token of the crawler, compared without case.
        """
        if len(content) > MAX_BYTES:  # half a line may forbid more than the whole of it
            content = content[: 1 + content.rfind(b"\n", 0, MAX_BYTES)]
        mine, everyone = _Group(), _Group()
        current: set[str] = set()
        naming = False
        for line in re.split(r"[\r\n]+", content.decode("utf-8-sig", errors="replace")):
            key, colon, value = line.partition("#")[0].partition(":")
            key, value = key.strip().lower(), value.strip()
            if key == "user-agent" and colon:
                current = current if naming else set()
                naming = True
                current.update(_product(value))
            elif key in ("allow", "disallow", "crawl-delay") and colon:
                naming = False
                for name, group in ((token.lower(), mine), ("*", everyone)):
                    if name in current:
                        group.add(key, value)
                    group.named = group.named or name in current
        chosen = mine if mine.named else everyone
        rules = sorted(chosen.rules, key=lambda rule: (-rule.length, not rule.allows))
        return cls(rules=tuple(rules), crawl_delay=chosen.crawl_delay)

    def allows(self, path: str) -> bool:
        """Whether a path, with its query, may be fetched."""
        path = _normal(path).replace("*", "%2A").replace("$", "%24")
        return next((rule.allows for rule in self.rules if rule.matches(path)), True)


class _Group:
    """What is gathered of the lines for one crawler."""

    def __init__(self) -> None:
        self.named = False
        self.rules: list[_Rule] = []
        self.crawl_delay: float | None = None

    def add(self, key: str, value: str) -> None:
        if key == "crawl-delay":
            seconds = float(value) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value) else 0.0
            self.crawl_delay = max(self.crawl_delay or 0.0, seconds) or None
        elif value:
            self.rules.append(_Rule.of(key == "allow", value))


def _product(value: str) -> list[str]:
    """The product token of a User-agent line; also of one that goes on with a version."""
    return value.lower().replace("/", " ").split()[:1]


def _normal(path: str) -> str:
    """One spelling of a path or pattern: unreserved characters bare, escapes in capitals."""

    def plain(escape: re.Match[str]) -> str:
        character = chr(int(escape[1], 16))
        return character if _UNRESERVED.fullmatch(character) else escape[0].upper()

    return _ESCAPED.sub(plain, quote(path, safe=_PRINTABLE, errors="replace"))


FailureT = TypeVar("FailureT", bound=Exception)


class RobotsCache(Generic[FailureT]):
    """What the robots.txt of each origin asks, or why it could not be had.

    Each is read once for all who need it, by the first of them; the oldest are forgotten.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[Origin, tuple[float, Future[Robots | FailureT]]] = OrderedDict()
        self._size = 0

    def claim(self, origin: Origin) -> tuple[Future[Robots | FailureT], bool]:
        """What will be known, and whether it is for the one who asks to `keep` or `give_up`."""
        with self._lock:
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
        with self._lock:
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
        with self._lock:
            _, future = self._known.pop(origin)
        future.set_result(failure)

    def _forget(self, origin: Origin) -> None:
        _, future = self._known.pop(origin)
        self._size -= _size(future.result())


def _size(found: Robots | Exception) -> int:
    return 1 + (len(found.rules) if isinstance(found, Robots) else 0)
