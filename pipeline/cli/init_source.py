"""Profiles a source for `capfilt init`: its columns, captions, hosts and images."""

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

__all__ = ["SourceProfile", "describe", "listed", "plain", "profile_source"]

MOST = 200_000
"""The most rows that are read; the profile says if there are more."""

SAMPLE = 50
"""Images that are decoded, and rows from which the roles of columns are guessed."""

CAPTIONS = 500
"""Captions whose language is detected."""

LANGUAGE_SHARE = 0.1
"""A language counts as one of the list if it has at least this share of the captions."""

FIRST = 3

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class SourceProfile:
    """The profile of a source.

    Attributes:
        source: The source, with the columns that were recognised by their values.
        kind: Its kind, in words.
        rows: Number of rows read.
        is_all: Whether these are all rows.
        columns: The column of each role, if the list has columns.
        others: The columns without a role.
        first: URL or name, and caption, of the first rows.
        images: Number of local images; an image with several captions counts once.
        captions: Number of rows with a caption.
        words: Words of the median caption.
        languages: The share of each frequent language among captions, the largest first.
        hosts: Number of URLs of each host.
        sizes: Width and height of a sample of the local images.
        broken: Number of images of this sample that cannot be decoded.
        documents: Whether its rows are the images of interleaved documents.
        notices: Notices of its readers, one a line.
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
        """The hosts on this machine or on a private network."""
        return [host for host in self.hosts if _is_private(host)]

    @property
    def number(self) -> str:
        """The number of rows, in words."""
        more = "" if self.is_all else "more than "
        what = "images" if self.images == self.rows else "rows"
        return f"{more}{self.rows:,} {what if self.rows != 1 else what.removesuffix('s')}"

    @property
    def captions_summary(self) -> str:
        """The number of captions, their length and their languages, in words."""
        if not self.captions:
            return "none"
        share = "all have one" if self.captions == self.rows else f"{self.captions:,} have one"
        languages = "".join(f", {share:.0%} {code}" for code, share in self.languages.items())
        return f"{share}, of {self.words} words (median){languages}"


def profile_source(paths: Sequence[str]) -> SourceProfile:
    """Profile a source: its kind, columns, captions, hosts and images.

    Args:
        paths: Paths, globs or URLs, as in `Source.path`.

    Raises:
        ValueError: The source has no rows or cannot be read; the message names the fix.
    """
    source = Source(path=paths[0] if len(paths) == 1 else tuple(paths))
    files = list(source_files(source))
    roles = Columns()
    names: list[str] = []
    if _has_columns(files[0]):
        source, roles, names = _with_columns(files[0], source)
    columns = {"url": roles.url, "caption": roles.caption, "uid": roles.uid, "file": roles.file}
    return dataclasses.replace(
        _over_rows(source),
        kind=_kind(files),
        columns={role: name for role, name in columns.items() if name is not None},
        others=[name for name in names if name not in roles.wanted()],
        documents=is_interleaved(files[0]),
    )


def describe(profile: SourceProfile) -> Iterator[str]:
    """The profile as lines of text."""
    yield from (plain(line, 300) for line in _lines(profile))


def _lines(profile: SourceProfile) -> Iterator[str]:
    yield f"{profile.source}: {profile.kind}, {profile.number}"
    if profile.columns:
        yield "  columns    " + ", ".join(f"{role}: {n}" for role, n in profile.columns.items())
    if profile.others:
        yield f"  left out   {listed(profile.others)}"
    yield f"  captions   {profile.captions_summary}"
    if profile.hosts:
        hosts = ", ".join(f"{host} {n:,}" for host, n in profile.hosts.most_common(3))
        yield f"  hosts      {len(profile.hosts):,}: {hosts}{', ...' * (len(profile.hosts) > 3)}"
    if profile.sizes or profile.broken:
        yield f"  images     {_sizes(profile)}"
    for number, (url, caption) in enumerate(profile.first):
        text = "-" if caption is None else f'"{plain(caption, 60)}"'
        yield f"  {'' if number else 'first':<10} {plain(redacted(url), 60)}  {text}"
    for notice in profile.notices:
        yield f"  note       {notice}"


def _with_columns(file: SourceFile, source: Source) -> tuple[Source, Columns, list[str]]:
    """The source with columns recognised by their values; their roles; and all column names."""
    noted = _Noted(file.path, source)
    try:
        next(url_lists.records(file, noted), None)
    except ValueError:
        if not noted.names:
            raise
        sample = {name: _sample(file, source, name) for name in noted.names}
        urls = [name for name, texts in sample.items() if kind_of(texts) == "url"]
        if not urls:
            raise
        return _with_columns(file, dataclasses.replace(source, url_column=urls[0]))
    columns = noted.columns or Columns()
    if columns.url is not None and columns.caption is None:
        rest = [name for name in noted.names if name not in columns.wanted()]
        words = {name: _words(_sample(file, source, name)) for name in rest}
        if words and max(words.values()) > 0:
            name = max(words, key=lambda name: words[name])
            return _with_columns(file, dataclasses.replace(source, caption_column=name))
    return source, columns, noted.names


@dataclass(frozen=True)
class _Noted(Finder):
    """A finder that records the names and the roles of columns."""

    names: list[str] = field(default_factory=list)
    kept: list[Columns] = field(default_factory=list)

    @property
    def columns(self) -> Columns | None:
        return self.kept[0] if self.kept else None

    def find(self, columns: Sequence[str], *, is_all: bool = True) -> Columns:
        self.names[:] = columns
        self.kept[:] = [super().find(columns, is_all=is_all)]
        return self.kept[0]


def _sample(file: SourceFile, source: Source, column: str) -> list[str]:
    """The first texts of a column; empty if it has no text."""
    finder = Finder(file.path, dataclasses.replace(source, url_column=column))
    try:
        records = zip(range(SAMPLE), url_lists.records(file, finder), strict=False)
        return [record.url for _, record in records if record.url]
    except ValueError:
        return []


def _words(texts: Sequence[str]) -> float:
    """The number of words of the median text; 0 if the texts are not made of words."""
    if kind_of(texts) != "words":
        return 0
    return statistics.median(measure(text).words for text in texts)


def _over_rows(source: Source) -> SourceProfile:
    """The profile of a source from its rows, without kind and columns."""
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
            name = row.url
            if row.location is not None:  # the prefix is the name of the source, not a folder
                name = name.removeprefix(f"{source.name}/")
            first.append((name, row.caption))
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
    """Add the next value of a stream, after `seen` earlier ones, to a uniform sample of `most`."""
    if len(kept) < most:
        kept.append(one)
    elif (position := rng.randrange(seen + 1)) < most:
        kept[position] = one


def _measured(source: Source, locations: Sequence[Location]) -> tuple[list[tuple[int, int]], int]:
    """Width and height of images, and the number of images that cannot be decoded."""
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
    """The share of each frequent language among captions that are long enough to detect one.

    These have at least three words, or four characters of a script without spaces.
    """
    detector = LanguageDetector(("en",))
    counts: Counter[str] = Counter()
    for text in captions:
        if len(text.split()) >= 3 or len(SIGN.findall(text)) >= 4:
            counts[detector.best(text)[0]] += 1
    shares = {code: number / counts.total() for code, number in counts.most_common()}
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


def _has_columns(file: SourceFile) -> bool:
    if file.kind == "parquet" and column_of(file) is not None:
        return False
    return file.kind in url_lists.READERS and not is_interleaved(file)


def _kind(files: Sequence[SourceFile]) -> str:
    first = files[0]
    if first.kind == FOLDER:
        return "a folder of images"
    what = first.kind
    if first.kind == "parquet" and column_of(first) is not None:
        what = "parquet with images"
    elif is_interleaved(first):
        what = "jsonl of interleaved documents"
    return what if len(files) == 1 else f"{len(files):,} files of {what}"


def _sizes(profile: SourceProfile) -> str:
    whole = len(profile.sizes) + profile.broken
    text = f"{whole} sampled: "
    if profile.sizes:
        by_area = sorted(profile.sizes, key=lambda size: size[0] * size[1])
        small, middle, large = (by_area[i] for i in (0, len(by_area) // 2, -1))
        text += "{}x{} to {}x{}, median {}x{}".format(*small, *large, *middle)
    if profile.broken:
        text += f"{', ' * bool(profile.sizes)}{profile.broken} cannot be opened or decoded"
    return text


def plain(text: str, length: int) -> str:
    """Untrusted text, made safe for one line of a comment or a terminal, and cut to a length."""
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= length else f"{text[: length - 3]}..."


def listed(names: Sequence[str]) -> str:
    """The first eight names, separated by commas."""
    return ", ".join(names[:8]) + ", ..." * (len(names) > 8)
