"""Folders of images, also those of img2dataset's format `files`."""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Iterator

from stages.sources import sidecars
from stages.sources.columns import Finder
from stages.sources.config import Source
from stages.sources.lists import records
from stages.sources.place import Place, is_image
from stages.sources.row import LONGEST, Location, Row, clean
from stages.sources.sidecars import SIDECARS, told

__all__ = ["rows"]

METADATA_FILES = {"metadata.jsonl": "jsonl", "metadata.csv": "csv", "metadata.parquet": "parquet"}


def rows(place: Place, source: Source) -> Iterator[Row]:
    """The images of a folder, each with its captions.

    First those that metadata.jsonl, .csv or .parquet lists (`file_name` and a caption column, as
    Hugging Face's imagefolder has it; several rows for one image are several captions), in its
    order; then all others, each with what the .txt and .json beside it say, and without a caption
    where there are none. Memory holds the names that the metadata lists, and those of one folder.

    Raises:
        ValueError: There are tars too, so that it is not clear what is meant.
    """
    listed = set()
    for row, name in _listed(place, source):
        listed.add(name)
        yield row
    for folder, names in place.walk():
        for name in names:
            if name.lower().endswith(".tar"):
                raise ValueError(
                    f"download.source: {place.path} holds both images and tars "
                    f"({posixpath.join(folder, name)}); name the tars by a glob, or the images' "
                    "folder"
                )
        there = set(names)
        for name in names:
            path = posixpath.join(folder, name)
            if is_image(name) and path not in listed:
                stem = posixpath.splitext(name)[0]
                beside = {
                    kind: _head(place, posixpath.join(folder, f"{stem}.{kind}"))
                    for kind in SIDECARS
                    if f"{stem}.{kind}" in there
                }
                found = told(beside.get("txt"), beside.get("json"), source)
                yield _row(place, path, found.url, found.caption, found.uid)


def _listed(place: Place, source: Source) -> Iterator[tuple[Row, str]]:
    """The rows of the metadata file of a folder, each with the path of its image."""
    for file, kind in METADATA_FILES.items():
        path = posixpath.join(place.path, file)
        if not place.fs.exists(path):
            continue
        metadata = dataclasses.replace(place, path=path, name=file, kind=kind)
        for url, caption, uid, name in records(metadata, Finder(path, source, needs="file")):
            if name:
                name = posixpath.normpath(name[:LONGEST])
                yield _row(place, name, url, caption, uid), name
            else:
                yield Row("", caption, uid), ""
        return


def _row(place: Place, path: str, url: str | None, caption: str | None, uid: str | None) -> Row:
    location = Location(place.under(clean(path)))
    return Row(url or place.url(clean(path)), caption, uid, location)


def _head(place: Place, path: str) -> bytes:
    with place.fs.open(posixpath.join(place.path, path), "rb") as stream:
        content: bytes = stream.read(sidecars.LONGEST)
    return content
