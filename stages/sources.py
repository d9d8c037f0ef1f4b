"""Lists and folders to rows: what download is asked to download.

Text is untrusted: what is not UTF-8, and lone surrogates, become U+FFFD; all else is as found. A
record that cannot be read is a row with an empty URL, which download rejects as `bad_url`.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import hashlib
import io
import itertools
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from stages.base import StageConfig, digest
from stages.schema import POOL, uid_of

__all__ = ["LIST", "SourceConfig", "content_digest", "folders", "identity", "shards"]

logger = logging.getLogger(__name__)

LIST = pa.schema(
    [POOL.field(name) for name in ("uid", "source", "url", "caption", "repeats")]
    + [pa.field("local", pa.bool_(), nullable=False)]
)
"""A row of a list shard. `local`: `url` is the path of a file in a folder of `source`."""

URL_COLUMNS = ("url", "image_url", "img_url", "imageurl", "uri", "link")
CAPTION_COLUMNS = ("caption", "text", "alt_text", "alttext", "alt", "title")
FILE_COLUMNS = ("file_name", "filename", "image", "path", "file")
"""Recognised names, in order of preference and in any case."""

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2"}
)
METADATA_FILES = ("metadata.jsonl", "metadata.csv")

_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
_BLOCK = 16 * 2**20  # bytes read at once, and so the longest record of a CSV
_BATCH = 4096  # rows
_BATCH_BYTES = 16 * 2**20
_HEAD = 1000  # records of JSON Lines that tell the columns
_SIDECAR = 2**20  # bytes of a caption in a file of its own


@dataclass(frozen=True, kw_only=True)
class SourceConfig(StageConfig):
    """Where the rows come from, and how they are cut into shards.

    Attributes:
        source: Lists (csv, tsv, parquet or jsonl, also .gz, .zst, .bz2; paths, globs or fsspec
            URLs) and local folders, of images or of lists.
        name: The `source` column of every row.
        url_column: The column with the URLs; null recognises it.
        caption_column: The column with the captions; null recognises it.
        limit: Stop after this many rows of the sources.
        shard_size: Rows of a pool shard.
    """

    source: str | tuple[str, ...]
    name: str = "web"
    url_column: str | None = None
    caption_column: str | None = None
    limit: int | None = None
    shard_size: int = 1000

    def __post_init__(self) -> None:
        if not self.source or not all(self.sources):
            raise ValueError("download.source must name a list or a folder, got nothing")
        for field in ("limit", "shard_size"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"download.{field} must be at least 1, got {value}")

    @property
    def sources(self) -> tuple[str, ...]:
        """`source` as a tuple."""
        return (self.source,) if isinstance(self.source, str) else self.source


@dataclass(frozen=True)
class _Batch:
    """Rows as found: URLs, captions of the same length."""

    urls: list[str]
    captions: list[str | None]
    local: bool = False


def shards(config: SourceConfig) -> Iterator[pa.Table]:
    """The rows of the sources, a table for each shard of the pool.

    The sources are read twice: first to count the rows of each uid, then to give the first of
    them with the number of the others as `repeats`. Memory holds 16 bytes for each row of the
    sources in the first pass (three times that while they are sorted), 4 in the second.

    Returns:
        Tables of schema `LIST` with `config.shard_size` rows, the last one with fewer; the same
        for the same sources.

    Raises:
        ValueError: A source is missing, empty or unreadable, lacks a column, or changed between
            the two passes; raised before the first table wherever the first pass can tell.
    """
    repeats = _repeats(config)
    return _shards(config, repeats)


def _shards(config: SourceConfig, repeats: npt.NDArray[np.int32]) -> Iterator[pa.Table]:
    columns = _empty()
    position = 0
    for batch in _batches(config):
        for url, caption in zip(batch.urls, batch.captions, strict=True):
            if position == len(repeats):
                raise _changed(config)
            count = int(repeats[position])
            position += 1
            if count < 0:
                continue
            row = (uid_of(url, caption), config.name, url, caption, count, batch.local)
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
            if len(columns["uid"]) == config.shard_size:
                yield pa.table(columns, schema=LIST)
                columns = _empty()
    if position < len(repeats):
        raise _changed(config)
    if columns["uid"]:
        yield pa.table(columns, schema=LIST)


def _empty() -> dict[str, list[Any]]:
    return {name: [] for name in LIST.names}


def _repeats(config: SourceConfig) -> npt.NDArray[np.int32]:
    """For each row the further rows of its uid, or -1 where an earlier row has the same uid."""
    uids = bytearray()
    for batch in _batches(config):
        for url, caption in zip(batch.urls, batch.captions, strict=True):
            uids += bytes.fromhex(uid_of(url, caption))
    halves = np.frombuffer(uids, np.uint64).reshape(-1, 2)
    if not len(halves):
        raise ValueError(f"download.source has no rows: {', '.join(config.sources)}")
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: equal uids stay in row order
    ordered = halves[order]
    starts = np.flatnonzero(np.r_[True, (ordered[1:] != ordered[:-1]).any(axis=1)])
    repeats = np.full(len(halves), -1, np.int32)
    repeats[order[starts]] = np.diff(np.r_[starts, len(halves)]) - 1
    return repeats


def _changed(config: SourceConfig) -> ValueError:
    return ValueError(
        f"download.source changed while it was read: {', '.join(config.sources)}; "
        "run again when nothing writes to it"
    )


def folders(config: SourceConfig) -> tuple[Path, ...]:
    """The local folders of `source`, resolved: where `local` rows may read."""
    return tuple(Path(path).resolve() for path in map(_local, config.sources) if path.is_dir())


def identity(config: SourceConfig) -> dict[str, Any]:
    """What tells changed sources from unchanged ones without reading them.

    Returns:
        For each file of each source its path, size and version (mtime or ETag), as values that
        JSON can hold; a folder of images is one entry with a digest over its files.
    """
    return {source: _identity(source) for source in config.sources}


def _identity(source: str) -> Any:
    files = []
    for place in _places(source):
        if isinstance(place, _Folder):
            stats = [
                (name, (place.path / name).stat().st_size, (place.path / name).stat().st_mtime)
                for name in place.everything()
            ]
            size = sum(size for _, size, _ in stats)
            entry = {"path": str(place.path), "size": size, "version": digest(stats)}
        else:
            info = place.fs.info(place.path)
            keys = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated")
            version = next((info[key] for key in keys if info.get(key) is not None), None)
            entry = {"path": place.path, "size": info.get("size"), "version": str(version)}
        files.append(entry)
    return files


def content_digest(config: SourceConfig) -> str:
    """SHA-256 over the bytes of the sources, in order: lists, images and their captions.

    Names count relative to the source, so sources that were moved keep their digest.
    """
    total = hashlib.sha256()
    for source in config.sources:
        for place in _places(source):
            for name, stream in place.streams():
                with stream:
                    inner = hashlib.sha256()
                    while block := stream.read(2**20):
                        inner.update(block)
                total.update(json.dumps([name, inner.hexdigest()]).encode())
    return total.hexdigest()


@dataclass(frozen=True)
class _List:
    """One list file."""

    fs: Any
    path: str

    @property
    def kind(self) -> str:
        return _kind(self.path)

    @contextlib.contextmanager
    def open(self) -> Iterator[Any]:
        """The bytes, decompressed."""
        compression: Any = _COMPRESSIONS.get(Path(self.path).suffix.lower())
        with (
            self.fs.open(self.path, "rb") as raw,
            pa.input_stream(raw, compression=compression) as stream,
        ):
            yield stream

    def streams(self) -> Iterator[tuple[str, IO[bytes]]]:
        yield Path(self.path).name, self.fs.open(self.path, "rb")


@dataclass(frozen=True)
class _Folder:
    """A local folder of images."""

    path: Path

    def everything(self) -> list[str]:
        """The relative paths of all files, sorted."""
        return sorted(
            os.path.relpath(os.path.join(parent, name), self.path).replace(os.sep, "/")
            for parent, _, names in os.walk(self.path)
            for name in names
        )

    def images(self) -> list[str]:
        return [name for name in self.everything() if Path(name).suffix.lower() in IMAGE_SUFFIXES]

    def streams(self) -> Iterator[tuple[str, IO[bytes]]]:
        for name in self.everything():
            yield name, (self.path / name).open("rb")


def _kind(path: str) -> str:
    """The format of a list by its name: csv, tsv, parquet, jsonl, or nothing."""
    name = path.lower()
    for suffix in _COMPRESSIONS:
        name = name.removesuffix(suffix)
    kind = Path(name).suffix.removeprefix(".")
    kind = {"ndjson": "jsonl", "pq": "parquet", "txt": ""}.get(kind, kind)
    return kind if kind in _READERS else ""


def _local(source: str) -> Path:
    return Path(source.removeprefix("file://")).expanduser()


def _places(source: str) -> list[_List | _Folder]:
    """The list files or the folder that a source names, in a fixed order."""
    folder = _local(source)
    if folder.is_dir():
        images = _Folder(folder.absolute())
        if images.images():
            return [images]
        source = str(folder)
    try:
        fs, path = fsspec.core.url_to_fs(source)
        if _kind(path) and fs.exists(path):
            paths = [path]
        elif any(character in path for character in "*?["):
            paths = [found for found in fs.glob(path) if fs.isfile(found)]
        elif fs.isdir(path):
            paths = [found for found in fs.find(path) if _kind(found)]
        else:
            paths = [path] if fs.exists(path) else []
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"download.source cannot be opened: {source}: {error}") from error
    if not paths:
        raise ValueError(f"download.source has no such list or folder: {source}{_instead(source)}")
    unknown = [found for found in paths if not _kind(found)]
    if unknown:
        raise ValueError(
            f"download.source must be csv, tsv, parquet or jsonl (also .gz, .zst, .bz2), or a "
            f"folder, got {unknown[0]}"
        )
    return [_List(fs, found) for found in sorted(paths)]


def _instead(source: str) -> str:
    """A file beside a missing one with a similar name, as a question."""
    path = _local(source)
    beside = [str(found) for found in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(str(path), beside, n=1, cutoff=0.8)
    return f"; did you mean {close[0]}?" if close else ""


def _batches(config: SourceConfig) -> Iterator[_Batch]:
    """The rows of all sources, in order, up to `limit`."""
    left = config.limit
    for source in config.sources:
        for place in _places(source):
            batches = (
                _folder_batches(place, config)
                if isinstance(place, _Folder)
                else _list_batches(place, config)
            )
            for batch in batches:
                if left is not None:
                    batch = _Batch(batch.urls[:left], batch.captions[:left], batch.local)
                    left -= len(batch.urls)
                yield batch
                if left == 0:
                    return


def _list_batches(place: _List, config: SourceConfig) -> Iterator[_Batch]:
    names = _Names(place.path, config.url_column, config.caption_column)
    try:
        yield from _READERS[place.kind](place, names)
    except (OSError, EOFError, csv.Error, pa.ArrowException) as error:
        raise ValueError(
            f"download.source cannot be read as {place.kind}: {place.path}: {error}"
        ) from error


@dataclass(frozen=True)
class _Names:
    """Finds the two columns of a list among those it has."""

    path: str
    url_column: str | None
    caption_column: str | None
    url_names: tuple[str, ...] = URL_COLUMNS

    def find(self, columns: list[str]) -> tuple[str, str | None]:
        """The names of the URL column and, where there is one, of the caption column.

        Raises:
            ValueError: A named column is missing, or no URL column is recognised.
        """
        for field, name in (
            ("url_column", self.url_column),
            ("caption_column", self.caption_column),
        ):
            if name is not None and name not in columns:
                close = difflib.get_close_matches(name.lower(), [c.lower() for c in columns], n=1)
                meant = [c for c in columns if close and c.lower() == close[0]]
                hint = f"; did you mean {meant[0]!r}?" if meant else ""
                raise ValueError(
                    f"download.{field}: {self.path} has no column {name!r}, it has "
                    f"{', '.join(map(repr, columns))}{hint}"
                )
        url = self.url_column or _recognise(columns, self.url_names)
        caption = self.caption_column or _recognise(columns, CAPTION_COLUMNS)
        if url is None:
            raise ValueError(
                f"download.url_column: no column of {self.path} has a name known for URLs, it has "
                f"{', '.join(map(repr, columns))}; set download.url_column"
            )
        if caption is None and len(columns) > 1:
            logger.warning(
                "download.caption_column: no column of %s has a name known for captions, it has "
                "%s; its rows have no captions",
                self.path,
                ", ".join(map(repr, columns)),
            )
        return url, None if caption == url else caption


def _recognise(columns: list[str], names: tuple[str, ...]) -> str | None:
    lowered = {column.strip().lower().replace(" ", "_"): column for column in reversed(columns)}
    return next((lowered[name] for name in names if name in lowered), None)


def _looks_like_url(text: str) -> bool:
    return text.strip().lower().startswith(("http://", "https://", "//"))


def _read_delimited(place: _List, names: _Names) -> Iterator[_Batch]:
    """CSV, and TSV, whose quotes are part of the text.

    A file whose first record holds a URL has no header: that column has the URLs, the first other
    column the captions, as in CC3M (caption, URL) and CC12M (URL, caption).
    """
    delimiter = "\t" if place.kind == "tsv" else ","
    quote: Literal[False] | str = False if place.kind == "tsv" else '"'
    with place.open() as stream:
        head = stream.read(2**20)
    if not head.strip():
        return
    text = io.StringIO(head.decode("utf-8-sig", "replace"), newline="")
    records = csv.reader(
        text, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE
    )
    first = next(record for record in records if record)
    caption: str | None
    urls = [index for index, value in enumerate(first) if _looks_like_url(value)]
    if urls and names.url_column is None and names.caption_column is None:
        columns: list[str] | None = [str(index) for index in range(len(first))]
        others = [str(index) for index in range(len(first)) if index not in urls]
        url, caption = str(urls[0]), others[0] if others else None
    else:
        columns = None
        url, caption = names.find(first)
    skipped = 0

    def skip(row: pa_csv.InvalidRow) -> Literal["skip"]:
        nonlocal skipped
        skipped += 1
        return "skip"

    wanted = [url] if caption is None else [url, caption]
    with place.open() as stream:
        reader = pa_csv.open_csv(
            stream,
            pa_csv.ReadOptions(block_size=_BLOCK, column_names=columns),
            pa_csv.ParseOptions(
                delimiter=delimiter,
                quote_char=quote,
                newlines_in_values=bool(quote),
                invalid_row_handler=skip,
            ),
            pa_csv.ConvertOptions(
                column_types={name: pa.binary() for name in wanted}, include_columns=wanted
            ),
        )
        for batch in reader:
            yield _batch(batch, url, caption, names)
    if skipped:
        logger.warning("%s: %d records have a wrong number of columns", place.path, skipped)
        yield _Batch([""] * skipped, [None] * skipped)


def _read_parquet(place: _List, names: _Names) -> Iterator[_Batch]:
    with place.fs.open(place.path, "rb") as stream:
        file = pq.ParquetFile(stream)
        url, caption = names.find(file.schema_arrow.names)
        wanted = [url] if caption is None else [url, caption]
        for batch in file.iter_batches(batch_size=_BATCH, columns=wanted):
            yield _batch(batch, url, caption, names)


def _read_jsonl(place: _List, names: _Names) -> Iterator[_Batch]:
    with place.open() as raw, io.BufferedReader(raw) as stream:
        lines = (line for line in stream if line.strip())
        # A record may leave out a key, so the columns are those of many records.
        head = list(itertools.islice(lines, _HEAD))
        if not head:
            return
        columns = list(dict.fromkeys(key for line in head for key in _json_object(line)))
        if not columns:
            raise ValueError(
                f"download.source must have one JSON object a line: {place.path} starts with "
                f"{head[0][:40]!r}"
            )
        url_column, caption_column = names.find(columns)
        urls: list[str] = []
        captions: list[str | None] = []
        size = 0
        for line in itertools.chain(head, lines):
            record = _json_object(line)
            url = record.get(url_column)
            caption = None if caption_column is None else record.get(caption_column)
            urls.append(_clean(url) if isinstance(url, str) else "")
            captions.append(_clean(caption) if isinstance(caption, str) else None)
            size += len(line)
            if len(urls) == _BATCH or size > _BATCH_BYTES:
                yield _Batch(urls, captions)
                urls, captions, size = [], [], 0
        yield _Batch(urls, captions)


_READERS = {
    "csv": _read_delimited,
    "tsv": _read_delimited,
    "parquet": _read_parquet,
    "jsonl": _read_jsonl,
}


def _json_object(line: bytes) -> dict[str, Any]:
    """The object on a line; empty where there is none."""
    try:
        record = json.loads(line.decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _clean(text: str) -> str:
    """The text with each lone surrogate replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _batch(batch: pa.RecordBatch, url: str, caption: str | None, names: _Names) -> _Batch:
    urls = [value or "" for value in _texts(batch.column(url), url, names)]
    if caption is None:
        return _Batch(urls, [None] * len(urls))
    return _Batch(urls, _texts(batch.column(caption), caption, names))


def _texts(column: pa.Array[Any], name: str, names: _Names) -> list[str | None]:
    """A column as strings; what is not UTF-8 becomes U+FFFD."""
    try:
        values: list[bytes | None] = column.cast(pa.string()).cast(pa.binary()).to_pylist()
    except pa.ArrowInvalid:
        values = column.cast(pa.binary()).to_pylist()
    except pa.ArrowNotImplementedError as error:
        raise ValueError(
            f"download.source: column {name!r} of {names.path} must hold text, holds "
            f"{column.type}; name another with download.url_column or download.caption_column"
        ) from error
    return [None if value is None else value.decode("utf-8", "replace") for value in values]


def _folder_batches(folder: _Folder, config: SourceConfig) -> Iterator[_Batch]:
    """The images of a folder by path, each with its captions.

    Captions come from metadata.jsonl or metadata.csv (`file_name` and a caption column; several
    rows for one image are several captions), else from the .txt file beside the image; an image
    with neither has none. Images that only the metadata names are rows that fail.
    """
    listed = _metadata(folder, config)
    urls: list[str] = []
    captions: list[str | None] = []
    for name in folder.images():
        texts = listed.pop(name, None) or [_sidecar(folder.path / name)]
        urls += [_clean(str(folder.path / name))] * len(texts)
        captions += texts
        if len(urls) >= _BATCH:
            yield _Batch(urls, captions, local=True)
            urls, captions = [], []
    for name, texts in listed.items():
        urls += [str(folder.path / name)] * len(texts)
        captions += texts
    yield _Batch(urls, captions, local=True)


def _metadata(folder: _Folder, config: SourceConfig) -> dict[str, list[str | None]]:
    """The captions that the metadata file of a folder gives for each relative path."""
    listed: dict[str, list[str | None]] = {}
    for file in METADATA_FILES:
        if (folder.path / file).is_file():
            place = _List(fsspec.filesystem("file"), str(folder.path / file))
            names = _Names(place.path, config.url_column, config.caption_column, FILE_COLUMNS)
            for batch in _READERS[place.kind](place, names):
                for name, caption in zip(batch.urls, batch.captions, strict=True):
                    listed.setdefault(name.removeprefix("./"), []).append(caption)
            break
    return listed


def _sidecar(image: Path) -> str | None:
    """The caption in the .txt file beside an image."""
    file = image.with_suffix(".txt")
    if not file.is_file():
        return None
    with file.open("rb") as stream:
        return stream.read(_SIDECAR).decode("utf-8-sig", "replace").rstrip("\r\n")
