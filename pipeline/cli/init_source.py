"""Look: what a list or a folder of images holds, before anything is done with it."""

from __future__ import annotations

import dataclasses
import ipaddress
import random
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import urlsplit

from models.image.decode import ImageError, decode
from models.text.captions import SIGN, LanguageDetector, measure
from stages.download.addresses import is_public
from stages.redaction import redacted
from stages.sources import Location, Notices, Reader, Source, SourceConfig, url_lists
from stages.sources.columns import Columns, Finder, kind_of
from stages.sources.dispatch import rows
from stages.sources.interleaved import is_interleaved
from stages.sources.parquet_images import column_of
from stages.sources.source_files import FOLDER, SourceFile, source_files

__all__ = ["SourceProfile", "describe", "listed", "plain", "profile"]

MOST = 200_000
"""Rows that are looked at; of a longer list it is said that there are more."""

SAMPLE = 50
"""Images that are decoded, and rows whose columns are guessed from."""

CAPTIONS = 500
"""Captions whose language is asked."""

LANGUAGE_SHARE = 0.1
"""Of the captions, from which on a language is one of the list's."""

FIRST = 3

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class SourceProfile:
    """What a source holds.

    Attributes:
        source: The source, with the columns that only their content tells.
        kind: What it is, in words.
        rows: Rows seen.
        is_all: Whether there are no more.
        columns: The column of each role, where a list has columns.
        others: The columns that are left out.
        first: URL or name, and caption, of the first rows.
        images: Images at hand, each once, whatever the number of its captions.
        captions: Rows with a caption.
        words: Of the median caption.
        languages: The share of each language among captions, the frequent ones, most first.
        hosts: How many URLs each host has.
        sizes: Width and height of a sample of the images at hand.
        broken: Images of that sample that cannot be decoded.
        documents: Whether its rows are the images of interleaved documents.
        notices: What its readers told, a line each.
    """

    source: Source
    kind: str
    rows: int = 0
    is_all: bool = True
    columns: Mapping[str, str] = field(default_factory=dict)
    others: Sequence[str] = ()
    first: Sequence[tuple[str, str | None]] = ()
    images: int = 0
    captions: int = 0
    words: int = 0
    languages: Mapping[str, float] = field(default_factory=dict)
    hosts: Counter[str] = field(default_factory=Counter)
    sizes: Sequence[tuple[int, int]] = ()
    broken: int = 0
    documents: bool = False
    notices: Sequence[str] = ()

    @property
    def private(self) -> list[str]:
        """The hosts that are addresses of this machine or of a private network."""
        return [host for host in self.hosts if _is_private(host)]

    @property
    def number(self) -> str:
        """How many rows there are, in words."""
        more = "" if self.is_all else "more than "
        what = "images" if self.images == self.rows else "rows"
        return f"{more}{self.rows:,} {what if self.rows != 1 else what.removesuffix('s')}"

    @property
    def said(self) -> str:
        """How many captions there are, how long, and in which languages, in words."""
        if not self.captions:
            return "none"
        share = "all have one" if self.captions == self.rows else f"{self.captions:,} have one"
        languages = "".join(f", {share:.0%} {code}" for code, share in self.languages.items())
        return f"{share}, of {self.words} words (median){languages}"


def profile(paths: Sequence[str]) -> SourceProfile:
    """Look at a source: its form, columns, captions, hosts and images.

    Args:
        paths: As `Source.path`.

    Raises:
        ValueError: There is nothing, or nothing that can be read; it names the field and the fix.
    """
    source = Source(path=paths[0] if len(paths) == 1 else tuple(paths))
    found = list(source_files(source))
    told = Columns()
    names: list[str] = []
    if _has_columns(found[0]):
        source, told, names = _with_columns(found[0], source)
    columns = {"url": told.url, "caption": told.caption, "uid": told.uid, "file": told.file}
    return dataclasses.replace(
        _over_rows(source),
        kind=_kind(found),
        columns={role: name for role, name in columns.items() if name is not None},
        others=[name for name in names if name not in told.wanted()],
        documents=is_interleaved(found[0]),
    )


def describe(found: SourceProfile) -> Iterator[str]:
    """What was seen, a line each."""
    yield from (plain(line, 300) for line in _lines(found))


def _lines(found: SourceProfile) -> Iterator[str]:
    yield f"{found.source}: {found.kind}, {found.number}"
    if found.columns:
        yield "  columns    " + ", ".join(f"{role}: {n}" for role, n in found.columns.items())
    if found.others:
        yield f"  left out   {listed(found.others)}"
    yield f"  captions   {found.said}"
    if found.hosts:
        hosts = ", ".join(f"{host} {n:,}" for host, n in found.hosts.most_common(3))
        yield f"  hosts      {len(found.hosts):,}: {hosts}{', ...' * (len(found.hosts) > 3)}"
    if found.sizes or found.broken:
        yield f"  images     {_sizes(found)}"
    for number, (url, caption) in enumerate(found.first):
        told = "-" if caption is None else f'"{plain(caption, 60)}"'
        yield f"  {'' if number else 'first':<10} {plain(redacted(url), 60)}  {told}"
    for notice in found.notices:
        yield f"  note       {notice}"


def _with_columns(place: SourceFile, source: Source) -> tuple[Source, Columns, list[str]]:
    """The source with columns named that only their content tells; the columns; all names."""
    noted = _Noted(place.path, source)
    try:
        next(url_lists.records(place, noted), None)
    except ValueError:
        if not noted.names:
            raise
        sample = {name: _sample(place, source, name) for name in noted.names}
        urls = [name for name, texts in sample.items() if kind_of(texts) == "url"]
        if not urls:
            raise
        return _with_columns(place, dataclasses.replace(source, url_column=urls[0]))
    columns = noted.found or Columns()
    if columns.url is not None and columns.caption is None:
        rest = [name for name in noted.names if name not in columns.wanted()]
        words = {name: _words(_sample(place, source, name)) for name in rest}
        if words and max(words.values()) > 0:
            name = max(words, key=lambda name: words[name])
            return _with_columns(place, dataclasses.replace(source, caption_column=name))
    return source, columns, noted.names


@dataclass(frozen=True)
class _Noted(Finder):
    """A finder that keeps what it saw."""

    names: list[str] = field(default_factory=list)
    kept: list[Columns] = field(default_factory=list)

    @property
    def found(self) -> Columns | None:
        return self.kept[0] if self.kept else None

    def find(self, columns: Sequence[str], *, is_all: bool = True) -> Columns:
        self.names[:] = columns
        self.kept[:] = [super().find(columns, is_all=is_all)]
        return self.kept[0]


def _sample(place: SourceFile, source: Source, column: str) -> list[str]:
    """The first texts of a column; none where it holds no text."""
    finder = Finder(place.path, dataclasses.replace(source, url_column=column))
    try:
        records = zip(range(SAMPLE), url_lists.records(place, finder), strict=False)
        return [record.url for _, record in records if record.url]
    except ValueError:
        return []


def _words(texts: Sequence[str]) -> float:
    """The words of the median text; none where these are not plainly words."""
    if kind_of(texts) != "words":
        return 0
    return statistics.median(measure(text).words for text in texts)


def _over_rows(source: Source) -> SourceProfile:
    """What the rows tell."""
    rng = random.Random(0)
    hosts: Counter[str] = Counter()
    captioned = 0
    notices = Notices()
    first: list[tuple[str, str | None]] = []
    locations: list[tuple[int, Location]] = []
    captions: list[str] = []
    seen = images = 0
    before: Location | None = None
    is_all = True
    for row in rows(source, notices):
        if seen == MOST:
            is_all = False
            break
        if seen < FIRST:
            first.append((row.url, row.caption))
        if row.location is not None and row.location != before:
            _keep(locations, (seen, row.location), images, SAMPLE, rng)
            images += 1
            before = row.location
        elif row.location is None and row.fault is None and (host := _host(row.url)):
            hosts[host] += 1
        if row.caption is not None:
            _keep(captions, row.caption, captioned, CAPTIONS, rng)
            captioned += 1
        seen += 1
    if not seen:
        raise ValueError(f"download.source has no rows: {source}")
    words = [measure(caption).words for caption in captions]
    sizes, broken = _measured(source, [location for _, location in sorted(locations)])
    return SourceProfile(
        source=source,
        kind="",
        rows=seen,
        is_all=is_all,
        first=first,
        images=images,
        captions=captioned,
        words=int(statistics.median(words)) if words else 0,
        languages=_languages(captions),
        hosts=hosts,
        sizes=sizes,
        broken=broken,
        notices=notices.lines(),
    )


def _keep(kept: list[T], one: T, seen: int, most: int, rng: random.Random) -> None:
    """Draw a uniform sample of `most` out of a stream of which `seen` went by."""
    if len(kept) < most:
        kept.append(one)
    elif (place := rng.randrange(seen + 1)) < most:
        kept[place] = one


def _measured(source: Source, locations: Sequence[Location]) -> tuple[list[tuple[int, int]], int]:
    """Width and height of images, and how many there are that cannot be decoded."""
    reader = Reader(SourceConfig(source=(source,)))
    sizes = []
    for location in locations:
        content = reader.read(location)
        if isinstance(content, str):
            continue
        try:
            image = decode(content, min_size=(32, 32))
        except ImageError:
            continue
        sizes.append((image.width, image.height))
    return sizes, len(locations) - len(sizes)


def _languages(captions: Sequence[str]) -> dict[str, float]:
    """The share of each frequent language among the captions that tell one.

    These have three words, or four characters of a script that writes words without blanks.
    """
    detector = LanguageDetector(("en",))
    found: Counter[str] = Counter()
    for text in captions:
        if len(text.split()) >= 3 or len(SIGN.findall(text)) >= 4:
            found[detector.best(text)[0]] += 1
    shares = {code: number / found.total() for code, number in found.most_common()}
    return {code: share for code, share in shares.items() if share >= LANGUAGE_SHARE}


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _is_private(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return not is_public(host)


def _has_columns(place: SourceFile) -> bool:
    if place.kind == "parquet" and column_of(place) is not None:
        return False
    return place.kind in url_lists.READERS and not is_interleaved(place)


def _kind(found: Sequence[SourceFile]) -> str:
    first = found[0]
    if first.kind == FOLDER:
        return "a folder of images"
    what = first.kind
    if first.kind == "parquet" and column_of(first) is not None:
        what = "parquet with images"
    elif is_interleaved(first):
        what = "jsonl of interleaved documents"
    return what if len(found) == 1 else f"{len(found):,} files of {what}"


def _sizes(found: SourceProfile) -> str:
    whole = len(found.sizes) + found.broken
    told = f"{whole} looked at: "
    if found.sizes:
        by_area = sorted(found.sizes, key=lambda size: size[0] * size[1])
        small, middle, large = (by_area[i] for i in (0, len(by_area) // 2, -1))
        told += "{}x{} to {}x{}, median {}x{}".format(*small, *large, *middle)
    if found.broken:
        told += f"{', ' * bool(found.sizes)}{found.broken} cannot be decoded"
    return told


def plain(text: str, length: int) -> str:
    """Text of unknown origin for one line of a comment or a terminal."""
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= length else f"{text[: length - 3]}..."


def listed(names: Sequence[str]) -> str:
    """The first eight of some names."""
    return ", ".join(names[:8]) + ", ..." * (len(names) > 8)
