"""The download stage: fetches, decodes, resizes and encodes the image of each row of a list."""

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
from typing import Any, ClassVar, Literal, cast
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
"""The X-Robots-Tag directives that img2dataset treats as an opt-out."""

# Fields that set effort and speed; they do not change which images a URL gives.
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
_AHEAD = 8  # finished downloads that may wait to be decoded
_PROXIES = ("http", "https", "socks4", "socks4a", "socks5", "socks5h")


@dataclass(frozen=True, kw_only=True)
class DownloadConfig(SourceConfig):
    """What to download, and how to store it.

    Attributes:
        image_size: Size in pixels that `resize_mode` fits an image to. BLIP reads 384 x 384
            (arXiv:2201.12086).
        resize_mode: img2dataset's mode. keep_ratio fits the shorter side, so that a model's square
            input is never enlarged.
        resize_only_if_bigger: Never enlarge an image.
        encode_format: Format of the images in the pool.
        encode_quality: Quality of 0 to 100 for jpg and webp; compression of 0 to 9 for png.
        honor_opt_out: Skip images whose X-Robots-Tag says noai, noimageai, noindex or noimageindex
            to everyone or to the name in `user_agent`, or whose tdm-reservation is 1 (the W3C's
            TDM Reservation Protocol).
        robots: Obey the robots.txt of each host for the name in `user_agent` (RFC 9309), and its
            Crawl-delay. If robots.txt answers 5xx or not at all, everything is forbidden; if it
            answers 4xx, nothing is.
        deny_hosts: Path or fsspec URL of a file with one domain per line. These hosts and their
            subdomains get no requests, also not after a redirect.
        allow_hosts: A file of the same format; no other hosts get requests.
        requests_per_second: Requests per second from one worker to one host; null for no limit.
        burst: Requests that may be sent to an idle host at once.
        connections_per_host: Concurrent downloads from one host in one worker; null for no limit.
        max_wait: Seconds that a URL waits for the rate limit of its host, while nothing else can be
            downloaded, before it is given up; also the longest Retry-After that is obeyed.
        user_agent: Name and version sent with each request.
        contact: URL or e-mail address for site owners, sent after `user_agent`.
        timeout: Seconds for one try of one URL, including redirects and name look-ups, excluding
            the wait for the rate limit.
        retries: Further tries after a timeout, a broken connection, 429 or 5xx. The pause before
            each is twice as long as the one before, or what Retry-After says.
        threads: Concurrent downloads in one worker.
        proxy: URL of a proxy: http, https, socks4, socks4a, socks5 or socks5h. `environment` uses
            http_proxy, https_proxy and no_proxy, which is where a password belongs; null uses
            none. A proxy decides which addresses it connects to; an IP address in a URL is still
            checked here.
        max_bytes: Maximum size of one download, in bytes.
        max_pixels: Maximum of width x height, checked before decoding.
        max_redirects: Maximum number of redirects.
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
                f"download.timeout must be above 0 and at most {_LONGEST} seconds, got "
                f"{self.timeout}"
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
                f"download.max_wait must be from 0 to {_LONGEST} seconds, got {self.max_wait}"
            )
        if not 1 <= self.max_pixels <= 2 * MAX_PIXELS:
            raise ValueError(
                f"download.max_pixels must be from 1 to {2 * MAX_PIXELS}, Pillow's own maximum, "
                f"got {self.max_pixels}"
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
            raise ValueError("download.user_agent must name the crawler, got an empty text")
        if self.proxy is not None and not _is_proxy(self.proxy):
            raise ValueError(
                "download.proxy must be a URL like http://host:3128 or socks5h://host:1080, or "
                f"`environment`, got {redacted(self.proxy)!r}"
            )

    def measurement(self) -> dict[str, Any]:
        """Every field except those that only set effort and speed.

        More time, tries or threads, another rate limit or another contact may add images to a pool,
        but do not change those it has. `robots` and `honor_opt_out` decide which images may be
        used, so they are part of the measurement.
        """
        fields = {key: value for key, value in super().measurement().items() if key not in _EFFORT}
        for field in ("deny_hosts", "allow_hosts"):
            del fields[field]
        if self.deny_hosts is not None or self.allow_hosts is not None:
            fields["hosts"] = self.hosts.digest
        return fields

    @functools.cached_property
    def hosts(self) -> HostRules:
        """The block-list and allow-list of hosts.

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


def _at_least(field: str, value: int, minimum: int) -> None:
    if value < minimum:
        raise ValueError(f"download.{field} must be at least {minimum}, got {value}")


def _opted_out(headers: Headers, *, token: str) -> bool:
    """Whether response headers ask not to use the image.

    X-Robots-Tag is interpreted as in img2dataset, tdm-reservation as in the W3C's TDMRep.
    """
    if any(value.strip() == "1" for value in headers.get_all("tdm-reservation")):
        return True
    if "X-Robots-Tag" not in headers:
        return False
    from img2dataset.downloader import is_disallowed  # importing takes seconds; rarely needed

    return bool(is_disallowed(headers, token, OPT_OUT))


class _StoppedError(Exception):
    """The caller needs no further results."""


@dataclass(frozen=True, kw_only=True)
class _Image(Resized):
    """The pool columns that download fills for one image."""

    status: Literal["success", "failed_to_download", "failed_to_resize"]
    original_bytes: int | None = None
    sha256: str | None = None


class DownloadStage(Stage[DownloadConfig]):
    """Turns the rows of a list into rows of the pool.

    One thread fetches all URLs concurrently, other threads read images that need no download, and
    the caller's thread resizes (`stages.download.resize.Resize`). With `robots`, a host that does
    not answer for its robots.txt is tried once for all its rows. `original_width` and
    `original_height` are measured after EXIF orientation. The result does not depend on `threads`
    or on the order in which servers answer.
    """

    name: ClassVar[str] = "download"
    version: ClassVar[int] = 4
    config_type: ClassVar[type[StageConfig]] = DownloadConfig
    reads: ClassVar[tuple[str, ...]] = tuple(sources.LIST.names)
    writes = pa.schema([field for field in POOL if field.name != "uid"])
    reasons: ClassVar[Mapping[str, str]] = {
        **FETCH_REASONS,
        sources.MALFORMED: "The record cannot be read, or names neither a URL nor an image; `url` "
        "gives the file and the line.",
        "missing": "The file does not exist, or has no image at the given position.",
        "outside_source": "The file is outside the folder or file of its source.",
        **RESIZE_REASONS,
    }
    help: ClassVar[str] = "fetch the list's images into the pool"
    examples: ClassVar[tuple[str, ...]] = (
        "capfilt download manifest.yaml",
        "capfilt download manifest.yaml --retry timeout,http_5xx",
    )
    paper: ClassVar[str] = "img2dataset; LAION (arXiv:2111.02114)"
    histograms: ClassVar[tuple[str, ...]] = ()

    def load(self) -> None:
        """Create the reader, resizer and fetcher that a worker keeps for all its shards."""
        # By default the fetching thread can block the resizing one for 5 ms at a time.
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
            logger.warning("download: switched off by its settings: %s", ", ".join(off))
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

        Up to `threads` + 8 downloads of at most `max_bytes`, one decoded image, and the encoded
        images of the given rows are held in memory.

        Args:
            rows: The columns of `sources.LIST`; n rows.

        Returns:
            n rows in the same order with the schema `writes`.
        """
        images: list[_Image | None] = [None] * rows.num_rows
        urls: list[Any] = rows["url"].to_pylist()
        locations = [
            None if location["file"] is None else Location(**location)
            for location in rows.select(Location._fields).to_pylist()
        ]
        faults: list[str | None] = rows["fault"].to_pylist()
        # An image with several captions has a row for each, but is downloaded once.
        first: dict[Any, int] = {}
        keys = enumerate(zip(urls, locations, faults, strict=True))
        same = [first.setdefault(key, index) for index, key in keys]
        distinct = list(first.values())
        arrivals = self._arrivals(
            [urls[index] for index in distinct],
            [locations[index] for index in distinct],
            [faults[index] for index in distinct],
        )
        for index, content in arrivals:
            images[distinct[index]] = self._image(content, urls[distinct[index]])
        images = [images[index] for index in same]
        columns = [
            rows[field.name].cast(field.type)
            if field.name in rows.column_names
            else pa.array([getattr(image, field.name) for image in images], field.type)
            for field in self.writes
        ]
        return pa.Table.from_arrays(columns, schema=self.writes)

    def judge(self, annotations: pa.Table) -> pa.StringArray:
        """Return the `error` of each row."""
        return cast(pa.StringArray, annotations["error"].combine_chunks())

    def _arrivals(
        self, urls: list[Any], locations: list[Location | None], faults: list[str | None]
    ) -> Iterator[tuple[int, bytes | str]]:
        """Yield the index of each row with its bytes, or the reason why there are none.

        Rows come in the order of arrival, so that one slow server does not delay the others.
        """
        arrived: SimpleQueue[tuple[int, bytes | str | Exception]] = SimpleQueue()
        room = threading.Semaphore(self.config.threads + _AHEAD)
        stopped = threading.Event()
        local = [
            (index, location)
            for index, location in enumerate(locations)
            if location is not None and faults[index] is None
        ]
        remote = [
            (index, url)
            for index, url in enumerate(urls)
            if locations[index] is None and faults[index] is None
        ]

        def read(index: int, location: Location) -> None:
            room.acquire()
            if not stopped.is_set():
                arrived.put((index, self._read(location)))

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
                for index, location in local:
                    pool.submit(read, index, location)
                for _ in range(len(local) + len(remote)):
                    index, content = arrived.get()
                    if isinstance(content, Exception):
                        raise content
                    yield index, content
                    if locations[index] is not None:
                        room.release()
            finally:
                stopped.set()
                room.release(len(urls) + 1)  # wakes every waiting thread, so that it ends

    def _read(self, location: Location) -> bytes | str | Exception:
        """Read an image that needs no download; returns its bytes, a reason, or a storage error."""
        try:
            return self._reader.read(location)
        except OSError as error:
            return error
        except Exception:  # an unforeseen error costs this row alone
            logger.exception("download: an unforeseen error at %s", redacted(location.file))
            return "missing"

    def _fetch(
        self,
        urls: list[tuple[int, str]],
        arrived: SimpleQueue[tuple[int, bytes | str | Exception]],
        stopped: threading.Event,
    ) -> None:
        """Fetch URLs into a queue, pausing while the queue is full."""

        def has_room(active: int) -> bool:
            if stopped.is_set():
                raise _StoppedError
            return active + arrived.qsize() < self.config.threads + _AHEAD

        for index, result in self._fetcher.fetch_all(urls, has_room):
            arrived.put(
                (index, result.reason if isinstance(result, FetchError) else result.content)
            )

    def _image(self, content: bytes | str, url: str) -> _Image:
        """Resize a download for the pool."""
        if isinstance(content, str):
            return _Image(status="failed_to_download", error=content)
        try:
            resized = self._resize(content)
        except MemoryError:
            raise
        except Exception:  # an unforeseen error costs this row alone
            logger.exception("download: an unforeseen error in the image of %s", redacted(url))
            resized = Resized(error="undecodable")
        return _Image(
            status="failed_to_resize" if resized.error else "success",
            original_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            **vars(resized),
        )
