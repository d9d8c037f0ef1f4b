"""What each format of a source is read by, what it holds, and what tells a changed one."""

from __future__ import annotations

import hashlib
import json
import logging
import posixpath
from collections.abc import Iterator
from typing import Any

from stages.base import digest
from stages.documents import Document
from stages.sources import coco, documents, folders, interleaved, lists, pictures, tars
from stages.sources.columns import Finder
from stages.sources.config import Source, SourceConfig
from stages.sources.place import FOLDER, Place, folder, is_image, places
from stages.sources.reader import Reader
from stages.sources.row import LONGEST, Location, Row

__all__ = ["content_digest", "identity", "images", "pages", "rows"]

logger = logging.getLogger(__name__)


def rows(source: Source) -> Iterator[Row]:
    """All rows of a source, in order, their texts cut after `LONGEST` characters.

    Raises:
        ValueError: It is missing, unreadable, or lacks a column.
    """
    for place in places(source):
        if source.images is not None and not _is_coco(place):
            raise ValueError(
                f"download.source: `images` is the folder of a COCO json, which {place.path} is not"
            )
        cut = 0
        for row in _rows(place, source):
            url, caption, uid, _ = row
            if (
                len(url) > LONGEST
                or (caption and len(caption) > LONGEST)
                or (uid and len(uid) > LONGEST)
            ):
                cut += 1
                row = row.cut()
            yield row
        if cut:
            logger.warning(
                "%s: %d rows have a text of more than %d characters; the rest of it is left out, "
                "and a URL as long is not fetched",
                place.path,
                cut,
                LONGEST,
            )


def images(source: str | Source) -> Iterator[tuple[str, bytes]]:
    """The images of a source of images at hand, as they lie there, each once, in order.

    Args:
        source: A folder of images, tars or Parquet files, or a `Source`, as a COCO json needs one
            to tell the folder of its images.

    Yields:
        What stands for the image in `url`, without the name of the source, or its own URL; and the
        encoded bytes.

    Raises:
        ValueError: The source holds no images but URLs, or one of its images cannot be read.
    """
    if isinstance(source, str):
        source = Source(path=source)
    reader = Reader(SourceConfig(source=(source,)))
    for place in places(source):
        if place.kind == "parquet" and pictures.column_of(place) is None:
            raise ValueError(f"download.source: {place.path} holds no images, but URLs")
        for row in _images(place, source):
            if row.location is None:
                raise ValueError(f"download.source: {place.path} holds no images, but URLs")
            content = reader.read(row.location)
            if isinstance(content, str):
                raise ValueError(f"{row.url}, an image of {place.path}, cannot be read: {content}")
            yield row.url.removeprefix(f"{source.name}/"), content


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
        files.
    """
    return {source.name: [_identity(place) for place in _all(source)] for source in config.sources}


def content_digest(config: SourceConfig) -> str:
    """SHA-256 over the bytes of the sources, in order: lists, images and their captions.

    Names count relative to the source, so sources that were moved keep their digest.
    """
    total = hashlib.sha256()
    for source in config.sources:
        for place in _all(source):
            for name, stream in place.streams():
                with stream:
                    inner = hashlib.sha256()
                    while block := stream.read(2**20):
                        inner.update(block)
                total.update(json.dumps([place.prefix, name, inner.hexdigest()]).encode())
    return total.hexdigest()


def _rows(place: Place, source: Source) -> Iterator[Row]:
    if place.kind == FOLDER:
        return folders.rows(place, source)
    if place.kind == "tar":
        return tars.rows(place, source)
    if place.kind == "parquet" and (image := pictures.column_of(place)) is not None:
        return pictures.rows(place, source, image)
    if place.kind == "json":
        return _document(place, source)
    if interleaved.is_interleaved(place):
        return interleaved.rows(place)
    return lists.rows(place, Finder(place.path, source))


def _document(place: Place, source: Source) -> Iterator[Row]:
    """COCO, SBU, or one array of objects, told by the first key that tells."""
    kind = documents.kind(place)
    if kind == "coco":
        return coco.rows(place, source)
    if kind == "sbu":
        found = documents.pairs(place)
    else:
        found = documents.records(place, Finder(place.path, source))
    return (Row(url or "", caption, uid) for url, caption, uid, _ in found)


def _images(place: Place, source: Source) -> Iterator[Row]:
    """The rows of a place, one an image."""
    if place.kind == FOLDER:
        names = (name for name in place.files() if is_image(name))
        return (Row(place.url(name), location=Location(place.under(name))) for name in names)
    return coco.images(place, source) if _is_coco(place) else _rows(place, source)


def _is_coco(place: Place) -> bool:
    return place.kind == "json" and documents.kind(place) == "coco"


def _all(source: Source) -> Iterator[Place]:
    """The places of a source, and the folder of the images of a COCO json."""
    yield from places(source)
    if source.images is not None:
        yield folder(source.images, f"{source.name}:images")


def _identity(place: Place) -> dict[str, Any]:
    if place.kind != FOLDER:
        return {"path": place.path, **_version(place.fs.info(place.path))}
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
