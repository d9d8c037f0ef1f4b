"""What each format of a source is read by, what it holds, and what tells a changed one."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import posixpath
from collections.abc import Iterator
from typing import Any

from stages.base import digest
from stages.documents import Document
from stages.sources import image_folders, interleaved, json_lists, parquet_images, webdataset
from stages.sources.columns import Finder, Record, is_url
from stages.sources.config import Source, SourceConfig
from stages.sources.files import Files
from stages.sources.notices import Notices
from stages.sources.reader import Reader
from stages.sources.records import records
from stages.sources.row import LONGEST, MALFORMED, Location, Row
from stages.sources.source_files import FOLDER, SourceFile, folder, is_list, places

__all__ = ["content_digest", "identity", "images", "pages", "rows"]

_EARLY = 1000  # records after which a list most of which does not fit is refused


def rows(source: Source, notices: Notices | None = None) -> Iterator[Row]:
    """All rows of a source, in order, their texts cut after `LONGEST` characters.

    An image with several captions has a row for each of them. A record that cannot be read, or
    that names neither a URL nor an image, is a row of its own with a fault.

    Args:
        source: The source.
        notices: Where the readers tell what is worth a warning.

    Raises:
        ValueError: It is missing, unreadable, or lacks a column, or most of its records do not fit.
    """
    notices = Notices() if notices is None else notices
    for place in places(source, notices):
        if source.images is not None and place.kind in (FOLDER, "tar"):
            raise ValueError(
                f"download.source: `images` is the folder of the images that a list names, and "
                f"{place.path} is no list"
            )
        if source.split is not None and not _is(place, "karpathy"):
            raise ValueError(
                "download.source: `split` is one of Karpathy's splits, which "
                f"{place.path} does not hold"
            )
        yield from _checked(place, _rows(place, source))


def _checked(place: SourceFile, found: Iterator[Row]) -> Iterator[Row]:
    """The rows of a place as they are kept, those that cannot be read with their fault."""
    unfit = 0
    first = ""
    seen = 0
    for seen, row in enumerate(found, 1):
        url, caption, uid, location, number, why = row[:6]
        if why is not None:
            unfit += 1
            first = first or f"{place.path}:{number or seen} ({why})"
        if seen == _EARLY:
            _refuse_unfit(place, unfit, seen, first)
        if (
            why is None
            and 0 < len(url) <= LONGEST
            and (caption is None or len(caption) <= LONGEST)
            and (uid is None or len(uid) <= LONGEST)
        ):
            yield row
            continue
        where = f"{place.path}:{number or seen}"
        if row.is_long:
            place.notices.add(f"texts cut after {LONGEST:,} characters", where)
        if location is None and (why is not None or not url):
            told = why or "names neither a URL nor an image"
            place.notices.add(f"records that are rows `{MALFORMED}`", f"{where} ({told})")
            url = url or f"{place.url('').rstrip('/')}:{number or seen}"
            row = row._replace(url=url, fault=MALFORMED)
        elif location is None and len(url) > LONGEST:
            row = row._replace(fault="bad_url")
        yield row.cut() if row.is_long else row
    if unfit:
        _refuse_unfit(place, unfit, seen, first)


def _refuse_unfit(place: SourceFile, unfit: int, seen: int, first: str) -> None:
    if unfit * 2 > seen:
        hint = "; put texts that hold a comma in quotes" if place.kind == "csv" else ""
        raise ValueError(
            f"download.source cannot be read as {place.kind}: {place.path}: {unfit:,} of {seen:,} "
            f"records do not fit, the first {first}{hint}"
        )


def images(source: str | Source) -> Iterator[tuple[str, bytes]]:
    """The images of a source of images at hand, as they lie there, each once, in order.

    Args:
        source: A folder of images, tars, Parquet files or a list that names files, or a `Source`,
            as a COCO json needs one to tell the folder of its images.

    Yields:
        What stands for the image in `url`, without the name of the source, or its own URL; and the
        encoded bytes.

    Raises:
        ValueError: The source holds no images but URLs, or one of its images cannot be read.
    """
    if isinstance(source, str):
        beside = posixpath.dirname(source) or "." if is_list(source) else None
        source = Source(path=source, images=beside)
    reader = Reader(SourceConfig(source=(source,)))
    notices = Notices()
    for place in places(source, notices):
        given: set[Location] = set()
        found = image_folders.images(place) if place.kind == FOLDER else _rows(place, source)
        for row in found:
            if row.why is not None:
                where = f"{place.path}:{row.number} ({row.why})"
                notices.add("records that cannot be read", where)
                continue
            if row.location is None:
                raise ValueError(
                    f"download.source: {place.path} holds no images, but URLs; where the images of "
                    "a list are at hand, name their folder too, as `images` of a source"
                )
            if row.location in given:
                continue
            given.add(row.location)
            content = reader.read(row.location)
            if isinstance(content, str):
                raise ValueError(f"{row.url}, an image of {place.path}, cannot be read: {content}")
            yield row.url.removeprefix(f"{source.name}/"), content
    notices.warn()


def pages(config: SourceConfig) -> Iterator[Document | None]:
    """The interleaved documents of all sources, in order; None for a line that is none."""
    for source in config.sources:
        for place in places(source):
            if interleaved.is_interleaved(place):
                yield from interleaved.documents(place)


def identity(config: SourceConfig) -> dict[str, Any]:
    """What tells changed sources from unchanged ones without reading them.

    Returns:
        For each source, by its name, and each of its files the path, size and version (mtime or
        ETag), as values that JSON can hold; a folder of images is one entry with a digest over its
        files, and a list that names files has one over these beside its own.
    """
    reader = Reader(config)
    return {
        source.name: [_identity(place, source, reader) for place in _all(source)]
        for source in config.sources
    }


def content_digest(config: SourceConfig) -> str:
    """SHA-256 over the bytes of the sources, in order: lists, images and their captions.

    Names count relative to the source, so sources that were moved keep their digest.
    """
    total = hashlib.sha256()
    reader = Reader(config)
    for source in config.sources:
        for place in _all(source):
            for location in _named(place, source):
                content = reader.read(location)
                content = content.encode() if isinstance(content, str) else content
                total.update(hashlib.sha256(content).digest())
            for name, stream in place.streams():
                with stream:
                    inner = hashlib.sha256()
                    while block := stream.read(2**20):
                        inner.update(block)
                total.update(json.dumps([place.prefix, name, inner.hexdigest()]).encode())
    return total.hexdigest()


def _rows(place: SourceFile, source: Source) -> Iterator[Row]:
    if place.kind == FOLDER:
        return image_folders.rows(place, source)
    if place.kind == "tar":
        return webdataset.rows(place, source)
    if place.kind == "parquet" and (image := parquet_images.column_of(place)) is not None:
        return parquet_images.rows(place, source, image)
    if interleaved.is_interleaved(place):
        return interleaved.rows(place)
    finder = Finder(place.path, source, notices=place.notices)
    return of_records(place, source, records(place, finder))


def of_records(place: SourceFile, source: Source, found: Iterator[Record]) -> Iterator[Row]:
    """The rows of the records of a list: a row for each caption.

    Args:
        place: The list.
        source: Its source.
        found: What it says.
    """
    at_hand = (
        place.beside
        if source.images is None
        else folder(source.images, place.prefix, place.notices)
    )
    files = Files(at_hand)
    is_coco = source.images is None and _is(place, "coco")
    for record in found:
        url, file, location = record.url, record.file, None
        if file is not None and (is_coco or is_url(file, bare=False)):
            url, file = url or (None if is_coco else file), None
        if file is not None and not record.why:
            name = files.find(file)
            if name is None:
                place.notices.add("files that a list names and that are not there", file)
                name = file[:LONGEST]
            url, location = url or at_hand.url(name), Location(at_hand.under(name))
        for caption in record.captions or (None,):
            yield Row(
                url or "",
                caption,
                record.uid,
                location,
                record.number,
                record.why or None,
                record.label,
            )


def _is(place: SourceFile, kind: str) -> bool:
    return place.kind == "json" and json_lists.kind(place)[0] == kind


def _all(source: Source) -> Iterator[SourceFile]:
    """The places of a source, and the folder of the images of a COCO json."""
    yield from places(source)
    if source.images is not None:
        yield folder(source.images, f"{source.name}:images")


def _named(place: SourceFile, source: Source) -> Iterator[Location]:
    """Where the images lie that a list names in its own folder, each once."""
    if place.kind in (FOLDER, "tar") or source.images is not None:
        return
    if place.kind == "parquet" and parquet_images.column_of(place) is not None:
        return
    given: set[Location] = set()
    found = _rows(dataclasses.replace(place, notices=Notices()), source)
    with contextlib.suppress(ValueError):  # whoever reads the rows is told
        for number, row in enumerate(found):
            if row.location is None:
                if number > _EARLY and not given:
                    return
            elif row.location not in given:
                given.add(row.location)
                yield row.location


def _identity(place: SourceFile, source: Source, reader: Reader) -> dict[str, Any]:
    if place.kind != FOLDER:
        found = {"path": place.path, **_version(place.fs.info(place.path))}
        versions = hashlib.sha256()
        is_named = False
        for location in _named(place, source):
            is_named = True
            versions.update(digest([_version(reader.info(location))]).encode())
        return {**found, "files": versions.hexdigest()[:16]} if is_named else found
    stats = hashlib.sha256()
    size = 0
    for name in place.files():
        version = _version(place.fs.info(posixpath.join(place.path, name)))
        size += version["size"] or 0
        stats.update(digest([name, version]).encode())
    return {"path": place.path, "size": size, "version": stats.hexdigest()[:16]}


def _version(info: dict[str, Any]) -> dict[str, Any]:
    keys = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated")
    version = next((info[key] for key in keys if info.get(key) is not None), None)
    return {"size": info.get("size"), "version": str(version)}
