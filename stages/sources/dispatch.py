"""Chooses the reader for each format of a source, and detects sources that changed."""

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
from stages.sources.source_files import FOLDER, SourceFile, folder, is_list, source_files

__all__ = ["content_digest", "identity", "images", "pages", "rows"]

_EARLY = 1000  # a list is refused after this many records if most of them cannot be read


def rows(source: Source, notices: Notices | None = None) -> Iterator[Row]:
    """Yield all rows of a source, in order, with texts cut after `LONGEST` characters.

    An image with several captions gives one row for each. A record that cannot be read, or that
    names neither a URL nor an image, gives one row with a fault.

    Args:
        source: The source.
        notices: Collects warnings.

    Raises:
        ValueError: The source is missing or unreadable, lacks a column, or most of its records
            cannot be read.
    """
    notices = Notices() if notices is None else notices
    for source_file in source_files(source, notices):
        if source.images is not None and source_file.kind in (FOLDER, "tar"):
            raise ValueError(
                "download.source: `images` is for lists that name image files, but "
                f"{source_file.path} is not a list"
            )
        if source.split is not None and not _is_json_kind(source_file, "karpathy"):
            raise ValueError(
                "download.source: `split` is for Karpathy's JSON files, but "
                f"{source_file.path} is not one"
            )
        yield from _mark_faults(source_file, _rows(source_file, source))


def _mark_faults(source_file: SourceFile, rows: Iterator[Row]) -> Iterator[Row]:
    """Yield the rows of a file with long texts cut and faults set.

    Raises:
        ValueError: Most of the records cannot be read.
    """
    unfit = 0
    first = ""
    seen = 0
    for seen, row in enumerate(rows, 1):
        url, caption, uid, location, number, why = row[:6]
        if why is not None:
            unfit += 1
            first = first or f"{source_file.path}:{number or seen} ({why})"
        if seen == _EARLY:
            _refuse_unfit(source_file, unfit, seen, first)
        if (
            why is None
            and 0 < len(url) <= LONGEST
            and (caption is None or len(caption) <= LONGEST)
            and (uid is None or len(uid) <= LONGEST)
        ):
            yield row
            continue
        where = f"{source_file.path}:{number or seen}"
        if row.is_long:
            source_file.notices.add(f"texts cut after {LONGEST:,} characters", where)
        if location is None and (why is not None or not url):
            reason = why or "names neither a URL nor an image"
            source_file.notices.add(f"records with the fault `{MALFORMED}`", f"{where} ({reason})")
            url = url or f"{source_file.url('').rstrip('/')}:{number or seen}"
            row = row._replace(url=url, fault=MALFORMED)
        elif location is None and len(url) > LONGEST:
            row = row._replace(fault="bad_url")
        yield row.cut() if row.is_long else row
    if unfit:
        _refuse_unfit(source_file, unfit, seen, first)


def _refuse_unfit(source_file: SourceFile, unfit: int, seen: int, first: str) -> None:
    if unfit * 2 > seen:
        hint = "; put texts that contain a comma in quotes" if source_file.kind == "csv" else ""
        raise ValueError(
            f"download.source cannot be read as {source_file.kind}: {source_file.path}: {unfit:,} "
            f"of {seen:,} records cannot be read, the first is {first}{hint}"
        )


def images(source: str | Source) -> Iterator[tuple[str, bytes]]:
    """Yield each distinct image of a source that needs no download, in order.

    Args:
        source: A path to a folder of images, tars, Parquet files or a list that names files; or a
            `Source`, which a COCO JSON file needs to give the folder of its images.

    Yields:
        The value of `url` without the source's name, and the encoded bytes.

    Raises:
        ValueError: The source names URLs only, or one of its images cannot be read.
    """
    if isinstance(source, str):
        beside = posixpath.dirname(source) or "." if is_list(source) else None
        source = Source(path=source, images=beside)
    reader = Reader(SourceConfig(source=(source,)))
    notices = Notices()
    for source_file in source_files(source, notices):
        seen: set[Location] = set()
        image_rows = (
            image_folders.images(source_file)
            if source_file.kind == FOLDER
            else _rows(source_file, source)
        )
        for row in image_rows:
            if row.why is not None:
                where = f"{source_file.path}:{row.number} ({row.why})"
                notices.add("records that cannot be read", where)
                continue
            if row.location is None:
                raise ValueError(
                    f"download.source: {source_file.path} holds URLs and no images; if the images "
                    "are in a folder, set `images` of the source to it"
                )
            if row.location in seen:
                continue
            seen.add(row.location)
            content = reader.read(row.location)
            if isinstance(content, str):
                raise ValueError(
                    f"the image {row.url} of {source_file.path} cannot be read: {content}"
                )
            yield row.url.removeprefix(f"{source.name}/"), content
    notices.warn()


def pages(config: SourceConfig) -> Iterator[Document | None]:
    """Yield the interleaved documents of all sources in order; None for an unreadable line."""
    for source in config.sources:
        for source_file in source_files(source):
            if interleaved.is_interleaved(source_file):
                yield from interleaved.documents(source_file)


def identity(config: SourceConfig) -> dict[str, Any]:
    """Describe the sources so that a change is noticed without reading their contents.

    Returns:
        A list for each source, by name, with the path, size and version (mtime or ETag) of each
        file, as JSON values. A folder of images is one entry with a digest over its files. A list
        that names files has an extra digest over them.
    """
    reader = Reader(config)
    return {
        source.name: [_identity(source_file, source, reader) for source_file in _files_of(source)]
        for source in config.sources
    }


def content_digest(config: SourceConfig) -> str:
    """Compute the SHA-256 over the bytes of the sources, in order: lists, images and captions.

    File names are relative to the source, so a source that was moved keeps its digest.
    """
    total = hashlib.sha256()
    reader = Reader(config)
    for source in config.sources:
        for source_file in _files_of(source):
            for location in _named_locations(source_file, source):
                content = reader.read(location)
                content = content.encode() if isinstance(content, str) else content
                total.update(hashlib.sha256(content).digest())
            for name, stream in source_file.streams():
                with stream:
                    inner = hashlib.sha256()
                    while block := stream.read(2**20):
                        inner.update(block)
                total.update(json.dumps([source_file.prefix, name, inner.hexdigest()]).encode())
    return total.hexdigest()


def _rows(source_file: SourceFile, source: Source) -> Iterator[Row]:
    if source_file.kind == FOLDER:
        return image_folders.rows(source_file, source)
    if source_file.kind == "tar":
        return webdataset.rows(source_file, source)
    if (
        source_file.kind == "parquet"
        and (image := parquet_images.column_of(source_file)) is not None
    ):
        return parquet_images.rows(source_file, source, image)
    if interleaved.is_interleaved(source_file):
        return interleaved.rows(source_file)
    finder = Finder(source_file.path, source, notices=source_file.notices)
    return of_records(source_file, source, records(source_file, finder))


def of_records(source_file: SourceFile, source: Source, records: Iterator[Record]) -> Iterator[Row]:
    """Yield one row for each caption of each record of a list.

    Args:
        source_file: The list.
        source: The source of the list.
        records: The records of the list.
    """
    image_folder = (
        source_file.beside
        if source.images is None
        else folder(source.images, source_file.prefix, source_file.notices)
    )
    files = Files(image_folder)
    is_coco = source.images is None and _is_json_kind(source_file, "coco")
    for record in records:
        url, file, location = record.url, record.file, None
        if file is not None and (is_coco or is_url(file, bare=False)):
            url, file = url or (None if is_coco else file), None
        if file is not None and not record.why:
            name = files.find(file)
            if name is None:
                source_file.notices.add("files named by a list that do not exist", file)
                name = file[:LONGEST]
            url, location = url or image_folder.url(name), Location(image_folder.under(name))
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


def _is_json_kind(source_file: SourceFile, kind: str) -> bool:
    return source_file.kind == "json" and json_lists.kind(source_file)[0] == kind


def _files_of(source: Source) -> Iterator[SourceFile]:
    """Yield the files of a source, and the folder that `images` names."""
    yield from source_files(source)
    if source.images is not None:
        yield folder(source.images, f"{source.name}:images")


def _named_locations(source_file: SourceFile, source: Source) -> Iterator[Location]:
    """Yield the distinct locations of the images that a list names in its own folder."""
    if source_file.kind in (FOLDER, "tar") or source.images is not None:
        return
    if source_file.kind == "parquet" and parquet_images.column_of(source_file) is not None:
        return
    seen: set[Location] = set()
    list_rows = _rows(dataclasses.replace(source_file, notices=Notices()), source)
    with contextlib.suppress(ValueError):  # the reader of the rows reports this error
        for number, row in enumerate(list_rows):
            if row.location is None:
                if number > _EARLY and not seen:
                    return
            elif row.location not in seen:
                seen.add(row.location)
                yield row.location


def _identity(source_file: SourceFile, source: Source, reader: Reader) -> dict[str, Any]:
    if source_file.kind != FOLDER:
        entry = {"path": source_file.path, **_version(source_file.fs.info(source_file.path))}
        versions = hashlib.sha256()
        is_named = False
        for location in _named_locations(source_file, source):
            is_named = True
            versions.update(digest([_version(reader.info(location))]).encode())
        return {**entry, "files": versions.hexdigest()[:16]} if is_named else entry
    stats = hashlib.sha256()
    size = 0
    for name in source_file.files():
        version = _version(source_file.fs.info(posixpath.join(source_file.path, name)))
        size += version["size"] or 0
        stats.update(digest([name, version]).encode())
    return {"path": source_file.path, "size": size, "version": stats.hexdigest()[:16]}


def _version(info: dict[str, Any]) -> dict[str, Any]:
    keys = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated")
    version = next((info[key] for key in keys if info.get(key) is not None), None)
    return {"size": info.get("size"), "version": str(version)}
