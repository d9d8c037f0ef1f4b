"""The stage: rows of a list to images, decoded, resized and encoded, or to reasons."""

from __future__ import annotations

import functools
import hashlib
import logging
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

import pyarrow as pa

from models.image.decode import MAX_PIXELS
from stages import sources
from stages.base import Stage, StageConfig
from stages.download.fetch import FETCH_REASONS, Fetcher, FetchError
from stages.download.host_rules import HostRules
from stages.download.rate_limit import RateLimit
from stages.download.resize import RESIZE_REASONS, Encoding, Mode, Resize, Resized
from stages.download.transfers import Headers
from stages.redaction import redacted
from stages.schema import POOL
from stages.sources import Location, SourceConfig

__all__ = ["DownloadConfig", "DownloadStage"]

logger = logging.getLogger(__name__)

OPT_OUT = frozenset({"noai", "noimageai", "noindex", "noimageindex"})
"""The X-Robots-Tag directives that img2dataset takes for a refusal."""

# Fields that say how hard to try, not what to get: a pool made with other values is as good.
_EFFORT = frozenset(
    {
        "timeout",
        "retries",
        "threads",
        "user_agent",
        "contact",
        "requests_per_second",
        "burst",
        "connections_per_host",
        "max_wait",
        "proxy",
    }
)

_LARGEST = 8192  # pixels of a side
_LONGEST = 86_400  # seconds
_SWITCH = 0.0005  # seconds
_AHEAD = 8  # downloads that may wait to be decoded beside those under way
_PROXIES = ("http", "https", "socks4", "socks4a", "socks5", "socks5h")


@dataclass(frozen=True, kw_only=True)
class DownloadConfig(SourceConfig):
    """What to download, and as what to keep it.

    Attributes:
        image_size: Pixels that `resize_mode` fits an image to. BLIP reads 384 x 384
            (arXiv:2201.12086).
        resize_mode: img2dataset's. keep_ratio fits the shorter side, so that a model's square
            input is never enlarged.
        resize_only_if_bigger: Never enlarge.
        encode_format: How the pool keeps images.
        encode_quality: 0 to 100 for jpg and webp; for png a compression of 0 to 9.
        honor_opt_out: Leave images whose X-Robots-Tag says noai, noimageai, noindex or
            noimageindex to everyone or to the name of `user_agent`, or whose tdm-reservation
            says 1 (the TDM Reservation Protocol of the W3C).
        robots: Ask the robots.txt of each host first, by the name of `user_agent` (RFC 9309), and
            keep to its Crawl-delay. One that answers 5xx, or not at all, forbids everything; one
            that answers 4xx nothing.
        deny_hosts: The path or fsspec URL of a file with one domain a line; its hosts and their
            subdomains are not asked, also not by a redirect.
        allow_hosts: A file of the same kind; no other hosts are asked.
        requests_per_second: To one host, from one worker; null for no limit.
        burst: Requests that a host which had a rest may get at once.
        connections_per_host: Downloads at once from one host in one worker; null for no limit.
        max_wait: Seconds that a URL waits for its turn at its host, while nothing else is left to
            do, before it is given up; also the longest Retry-After that is waited for.
        user_agent: The name and version sent with each request.
        contact: Where the owner of a site reaches you, sent beside `user_agent`.
        timeout: Seconds for one try of one URL, redirects and name look-ups included, waiting for
            turns not.
        retries: Further tries after a timeout, a broken connection, 429 or 5xx, each after a pause
            twice as long as the one before, or as long as Retry-After says.
        threads: Downloads at once in one worker.
        proxy: The URL of a proxy that makes the connections: http, https, socks4, socks4a, socks5
            or socks5h; `environment` takes those of http_proxy, https_proxy and no_proxy, which
            is where a password belongs; null uses none. A proxy decides itself which addresses
            it connects to; an address that a URL names is still checked.
        max_bytes: The cap on one download.
        max_pixels: The cap on width x height, checked before anything is decoded.
        max_redirects: How many redirects are followed.
        allow_private_addresses: Also download from loopback and private networks.
    """

    image_size: int = 384
    resize_mode: Mode = "keep_ratio"
    resize_only_if_bigger: bool = True
    encode_format: Encoding = "jpg"
    encode_quality: int = 95
    honor_opt_out: bool = True
    robots: bool = True
    deny_hosts: str | None = None
    allow_hosts: str | None = None
    requests_per_second: float | None = 10.0
    burst: int = 20
    connections_per_host: int | None = 4
    max_wait: float = 300.0
    user_agent: str = "capfilt/0.1"
    contact: str | None = None
    timeout: float = 10.0
    retries: int = 1
    threads: int = 32
    max_bytes: int = 20_000_000
    max_pixels: int = MAX_PIXELS
    max_redirects: int = 5
    proxy: str | None = None
    allow_private_addresses: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.image_size <= _LARGEST:
            raise ValueError(
                f"download.image_size must be from 1 to {_LARGEST}, got {self.image_size}"
            )
        _at_least("retries", self.retries, 0)
        _at_least("threads", self.threads, 1)
        _at_least("burst", self.burst, 1)
        _at_least("max_bytes", self.max_bytes, 1)
        _at_least("max_redirects", self.max_redirects, 0)
        if not 0 < self.timeout <= _LONGEST:
            raise ValueError(
                f"download.timeout must be seconds above 0, at most {_LONGEST}, got {self.timeout}"
            )
        if self.connections_per_host is not None:
            _at_least("connections_per_host", self.connections_per_host, 1)
        if self.requests_per_second is not None and not 0 < self.requests_per_second < float("inf"):
            raise ValueError(
                "download.requests_per_second must be above 0, or null for no limit, got "
                f"{self.requests_per_second}"
            )
        if not 0 <= self.max_wait <= _LONGEST:
            raise ValueError(
                f"download.max_wait must be seconds from 0 to {_LONGEST}, got {self.max_wait}"
            )
        if not 1 <= self.max_pixels <= 2 * MAX_PIXELS:
            raise ValueError(
                f"download.max_pixels must be from 1 to {2 * MAX_PIXELS}, over which Pillow opens "
                f"no image, got {self.max_pixels}"
            )
        best = 9 if self.encode_format == "png" else 100
        if not 0 <= self.encode_quality <= best:
            raise ValueError(
                f"download.encode_quality must be from 0 to {best} for "
                f"{self.encode_format}, got {self.encode_quality}"
            )
        for field, value in (("user_agent", self.user_agent), ("contact", self.contact or "")):
            if not (value.isascii() and value.isprintable()):
                raise ValueError(f"download.{field} must be printable ASCII, got {value!r}")
        if not self.user_agent.strip():
            raise ValueError("download.user_agent must name who downloads, got nothing")
        if self.proxy is not None and not _is_proxy(self.proxy):
            raise ValueError(
                "download.proxy must be a URL like http://host:3128 or socks5h://host:1080, or "
                f"`environment`, got {redacted(self.proxy)!r}"
            )

    def measurement(self) -> dict[str, Any]:
        """Every field but those that only say how hard to try.

        More time, more tries or threads, another pace and another address to write to bring more
        rows of the same pool, not other images, so what is there already stays good. Whether a
        refusal counts, in robots.txt or X-Robots-Tag, decides for good which rows arrive.
        """
        fields = {key: value for key, value in super().measurement().items() if key not in _EFFORT}
        for field in ("deny_hosts", "allow_hosts"):
            del fields[field]
        if self.deny_hosts is not None or self.allow_hosts is not None:
            fields["hosts"] = self.hosts.digest
        return fields

    @functools.cached_property
    def hosts(self) -> HostRules:
        """Which hosts may be asked.

        Raises:
            ValueError: A file of domains cannot be read.
        """
        return HostRules(self.deny_hosts, self.allow_hosts)


def _is_proxy(url: str) -> bool:
    if url == "environment":
        return True
    try:
        parts = urlsplit(url)
        return parts.scheme in _PROXIES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _at_least(field: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"download.{field} must be at least {least}, got {value}")


def _opted_out(headers: Headers, *, token: str) -> bool:
    """Whether response headers ask that the image is not used.

    An X-Robots-Tag is read as img2dataset does, a tdm-reservation as the W3C's TDMRep has it.
    """
    if any(value.strip() == "1" for value in headers.get_all("tdm-reservation")):
        return True
    if "X-Robots-Tag" not in headers:
        return False
    from img2dataset.downloader import is_disallowed  # takes seconds, and few answers need it

    return bool(is_disallowed(headers, token, OPT_OUT))


class _StoppedError(Exception):
    """Nobody waits for more."""


@dataclass(frozen=True, kw_only=True)
class _Image(Resized):
    """The columns of the pool that downloading fills."""

    status: Literal["success", "failed_to_download", "failed_to_resize"]
    original_bytes: int | None = None
    sha256: str | None = None


class DownloadStage(Stage[DownloadConfig]):
    """Makes the rows of the pool out of the rows of a list.

    One thread fetches what is behind URLs, many at once, and some read images at hand; the caller's
    resizes (`stages.download.resize.Resize`). With `robots`, a host that does not answer for its
    robots.txt fails all its rows at the cost of one. `original_width` and `original_height` are
    those of the upright image. Nothing depends on `threads` or on the order in which servers
    answer.
    """

    name: ClassVar[str] = "download"
    version: ClassVar[int] = 4
    config_type: ClassVar[type[StageConfig]] = DownloadConfig
    reads: ClassVar[tuple[str, ...]] = tuple(sources.LIST.names)
    writes: ClassVar[pa.Schema] = pa.schema([field for field in POOL if field.name != "uid"])
    reasons: ClassVar[Mapping[str, str]] = {
        **FETCH_REASONS,
        sources.MALFORMED: "The record cannot be read, or names neither a URL nor an image; `url` "
        "has the file and the line.",
        "missing": "There is no such file, or no image where it should hold one.",
        "outside_source": "The file lies outside the folder or file that its source names.",
        **RESIZE_REASONS,
    }

    def load(self) -> None:
        """Open what a worker keeps from shard to shard."""
        # By default one that fetches may keep the interpreter for 5 ms from the one that resizes.
        sys.setswitchinterval(_SWITCH)
        config = self.config
        self._reader = sources.Reader(config, config.max_bytes)
        self._resize = Resize(
            size=config.image_size,
            mode=config.resize_mode,
            only_if_bigger=config.resize_only_if_bigger,
            encode_format=config.encode_format,
            encode_quality=config.encode_quality,
            max_pixels=config.max_pixels,
        )
        off = [
            field
            for field in ("honor_opt_out", "robots", "requests_per_second", "connections_per_host")
            if not getattr(config, field)
        ]
        if off:
            logger.warning("download: by its settings without %s", ", ".join(off))
        contact = f" (+{config.contact})" if config.contact else ""
        token = config.user_agent.split("/")[0].strip().lower()
        self._fetcher = Fetcher(
            user_agent=config.user_agent + contact,
            connections=config.threads,
            timeout=config.timeout,
            retries=config.retries,
            max_bytes=config.max_bytes,
            max_redirects=config.max_redirects,
            allow_private_addresses=config.allow_private_addresses,
            proxy=config.proxy,
            robots=token if config.robots else None,
            limit=RateLimit(
                rate=config.requests_per_second,
                burst=config.burst,
                connections=config.connections_per_host,
                max_wait=config.max_wait,
            ),
            hosts=config.hosts,
            opted_out=(
                functools.partial(_opted_out, token=token)
                if config.honor_opt_out
                else lambda headers: False
            ),
        )

    def annotate(self, rows: pa.Table) -> pa.Table:
        """Download the rows of a list.

        Memory holds `threads` + 8 downloads of at most `max_bytes`, one decoded image, and the
        encoded images of the rows given.

        Args:
            rows: The columns of `sources.LIST`; n rows.

        Returns:
            n rows in the same order with the schema `writes`.
        """
        images: list[_Image | None] = [None] * rows.num_rows
        urls: list[Any] = rows["url"].to_pylist()
        places = [
            None if place["file"] is None else Location(**place)
            for place in rows.select(Location._fields).to_pylist()
        ]
        faults: list[str | None] = rows["fault"].to_pylist()
        # An image with several captions has a row for each, and is asked for once.
        first: dict[Any, int] = {}
        keys = enumerate(zip(urls, places, faults, strict=True))
        same = [first.setdefault(key, index) for index, key in keys]
        asked = list(first.values())
        arrivals = self._arrivals(
            [urls[index] for index in asked],
            [places[index] for index in asked],
            [faults[index] for index in asked],
        )
        for index, content in arrivals:
            images[asked[index]] = self._image(content, urls[asked[index]])
        images = [images[index] for index in same]
        columns = [
            rows[field.name].cast(field.type)
            if field.name in rows.column_names
            else pa.array([getattr(image, field.name) for image in images], field.type)
            for field in self.writes
        ]
        return pa.Table.from_arrays(columns, schema=self.writes)

    def judge(self, annotations: pa.Table) -> pa.StringArray:
        """The `error` of each row."""
        errors = annotations["error"].combine_chunks()
        assert isinstance(errors, pa.StringArray)
        return errors

    def _arrivals(
        self, urls: list[Any], places: list[Location | None], faults: list[str | None]
    ) -> Iterator[tuple[int, bytes | str]]:
        """The index of each row with its bytes, or with the reason why there are none.

        In the order of arrival: to keep that of the rows would let one server that hangs hold up
        all that comes after it.
        """
        arrived: SimpleQueue[tuple[int, bytes | str | Exception]] = SimpleQueue()
        room = threading.Semaphore(self.config.threads + _AHEAD)
        stopped = threading.Event()
        at_hand = [
            (index, place)
            for index, place in enumerate(places)
            if place is not None and faults[index] is None
        ]
        remote = [
            (index, url)
            for index, url in enumerate(urls)
            if places[index] is None and faults[index] is None
        ]

        def read(index: int, place: Location) -> None:
            room.acquire()
            if not stopped.is_set():
                arrived.put((index, self._read(place)))

        def fetch() -> None:
            try:
                self._fetch(remote, arrived, stopped)
            except _StoppedError:
                pass
            except Exception as error:
                arrived.put((-1, error))

        for index, fault in enumerate(faults):
            if fault is not None:
                yield index, fault
        with ThreadPoolExecutor(self.config.threads, thread_name_prefix="download") as pool:
            try:
                if remote:
                    pool.submit(fetch)
                for index, place in at_hand:
                    pool.submit(read, index, place)
                for _ in range(len(at_hand) + len(remote)):
                    index, content = arrived.get()
                    if isinstance(content, Exception):
                        raise content
                    yield index, content
                    if places[index] is not None:
                        room.release()
            finally:
                stopped.set()
                room.release(len(urls) + 1)  # to each thread that waits for room, so that it ends

    def _read(self, place: Location) -> bytes | str | Exception:
        """The bytes of an image at hand, the reason why there are none, or a storage's error."""
        try:
            return self._reader.read(place)
        except OSError as error:
            return error
        except Exception:  # whatever it is, it costs this row alone
            logger.exception("download: an unforeseen error at %s", redacted(place.file))
            return "missing"

    def _fetch(
        self,
        urls: list[tuple[int, str]],
        arrived: SimpleQueue[tuple[int, bytes | str | Exception]],
        stopped: threading.Event,
    ) -> None:
        """Put what is behind URLs into a queue, as long as those who empty it keep up."""

        def has_room(active: int) -> bool:
            if stopped.is_set():
                raise _StoppedError
            return active + arrived.qsize() < self.config.threads + _AHEAD

        for index, found in self._fetcher.fetch_all(urls, has_room):
            arrived.put((index, found.reason if isinstance(found, FetchError) else found.content))

    def _image(self, content: bytes | str, url: str) -> _Image:
        """What the pool keeps of a download."""
        if isinstance(content, str):
            return _Image(status="failed_to_download", error=content)
        try:
            resized = self._resize(content)
        except MemoryError:
            raise
        except Exception:  # whatever it is, it costs this row alone
            logger.exception("download: an unforeseen error in the image of %s", redacted(url))
            resized = Resized(error="undecodable")
        return _Image(
            status="failed_to_resize" if resized.error else "success",
            original_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            **vars(resized),
        )
