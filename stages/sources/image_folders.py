"""Folders of images, also those of img2dataset's format `files`, and this project's exports."""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa

from stages.sources import json_lists, sidecars
from stages.sources.columns import Finder, Record
from stages.sources.config import Source
from stages.sources.files import Files
from stages.sources.notices import Notices
from stages.sources.records import records
from stages.sources.row import LONGEST, Location, Row, clean
from stages.sources.sidecars import Beside, Told, ending_of, told
from stages.sources.source_files import HIDDEN, SourceFile, is_image

__all__ = ["images", "rows"]

_LISTS = ("csv", "tsv", "jsonl", "json")
METADATA_FILES = {"metadata.jsonl": "jsonl", "metadata.csv": "csv", "metadata.parquet": "parquet"}

NOT_USED = "texts beside no image, which are not used"


def images(place: SourceFile) -> Iterator[Row]:
    """A row for each image of a folder, in order, without a caption."""
    for folder, names in place.walk():
        for name in names:
            if place.is_image(path := posixpath.join(folder, name)):
                yield Row(place.url(clean(path)), location=Location(place.under(clean(path))))


def rows(place: SourceFile, source: Source) -> Iterator[Row]:
    """The images of a folder, a row for each of their captions.

    First those that lists in the folder name, in their order: metadata.jsonl, .csv or .parquet in
    any folder below (`file_name` and a column of captions, as Hugging Face's imagefolder has it),
    and at the top other lists of images and captions, as BLIP's, LLaVA's and COCO's JSON. Then all
    others, and those that are listed without a caption, each with what the files beside it say, and
    without a caption where these say nothing. Memory holds the names that the lists have, and those
    of one folder.

    Raises:
        ValueError: There are tars too, so that it is not clear what is meant.
    """
    captioned: set[str] = set()
    listed: dict[str, Told] = {}
    lists: set[str] = set()
    for row in _listed(place, source, lists):
        if row.name is None or row.told.captions:
            captioned.add(row.name or "")
            path = row.name or row.record.file or f"{row.path}:{row.record.number}"
            yield from _rows(place, path, row.told, row.record)
        else:
            listed.setdefault(row.name, row.told)
    without, first, number = 0, "", 0
    hidden: list[str] = []
    for folder, names in place.walk(hidden):
        beside = Beside(names)
        there: list[str] = []
        for name in names:
            path = posixpath.join(folder, name)
            if name.lower().endswith(".tar"):
                raise ValueError(
                    f"download.source: {place.path} holds both images and tars ({path}); name the "
                    "tars by a glob, or the images' folder"
                )
            if path not in lists and place.is_image(path):
                there.append(path)
        for path in there:
            number += 1
            found = beside.of(posixpath.basename(path)) if beside else {}
            if path in captioned:
                continue
            content = {kind: _head(place, posixpath.join(folder, n)) for kind, n in found.items()}
            said = told(content, source, place.notices, path)
            if path in listed:
                known = listed[path]
                said = Told(known.url or said.url, said.captions, known.uid or said.uid)
            if not said.captions:
                without, first = without + 1, first or path
            yield from _rows(place, path, said)
        for name in names:
            path = posixpath.join(folder, name)
            if ending_of(name) in ("txt", "caption") and name not in beside.used:
                place.notices.add(NOT_USED, path)
    for name in hidden:
        place.notices.add(HIDDEN, name)
    if without < number:
        place.notices.add("images without a caption, beside others that have one", first, without)


class _Listed(NamedTuple):
    """What a list at a path says of an image; `name` is null where there is no such image."""

    path: str
    name: str | None
    told: Told
    record: Record


def _listed(place: SourceFile, source: Source, lists: set[str]) -> Iterator[_Listed]:
    """What the lists in a folder say, and which they are."""
    files = Files(place)
    for path, found in _lists(place, source):
        lists.add(path)
        for record in found:
            name = None
            if record.file is not None:
                name = files.find(record.file, posixpath.dirname(path))
                if name is None:
                    place.notices.add(
                        "files that a list names and that are not there",
                        f"{record.file} of {path}:{record.number}",
                    )
            yield _Listed(path, name, Told(record.url, record.captions, record.uid), record)


def _lists(place: SourceFile, source: Source) -> Iterator[tuple[str, Iterator[Record]]]:
    """The path of each list in a folder, and its records."""
    for folder, names in place.walk():
        beside = Beside(() if folder else names)
        for name in names if beside else ():
            if is_image(name):
                beside.of(name)
        for name in names:
            path = posixpath.join(folder, name)
            kind = METADATA_FILES.get(name.lower())
            ending = posixpath.splitext(name)[1][1:].lower()
            may_be = not folder and ending in _LISTS and name not in beside.used
            if kind is None and not may_be:
                continue
            listed = dataclasses.replace(
                place,
                path=posixpath.join(place.path, path),
                name=path,
                kind=kind or ending,
                notices=place.notices if kind else Notices(),
                known={},
            )
            finder = Finder(listed.path, source, "file", notices=listed.notices)
            if kind is not None:
                yield path, records(listed, finder)
            elif _names_images(listed, finder, Files(place)):
                listed = dataclasses.replace(listed, notices=place.notices, known={})
                yield path, _records(listed, dataclasses.replace(finder, notices=place.notices))


def _names_images(place: SourceFile, finder: Finder, files: Files) -> bool:
    """Whether a file at the top of a folder is a list whose first record names an image there."""
    try:
        first = next(_records(place, finder), None)
    except (ValueError, pa.ArrowException):
        return False
    return first is not None and first.file is not None and files.find(first.file) is not None


def _records(place: SourceFile, finder: Finder) -> Iterator[Record]:
    if place.kind == "json" and json_lists.kind(place)[0] == "coco":
        source = dataclasses.replace(finder.source, images=place.path)  # they are at hand
        finder = dataclasses.replace(finder, source=source)
    return records(place, finder)


def _rows(place: SourceFile, path: str, said: Told, record: Record | None = None) -> Iterator[Row]:
    """A row for each caption of an image."""
    name = clean(path[:LONGEST])
    number = None if record is None else record.number
    if record is not None and record.file is None:
        why = record.why or "names no file"
        caption = next(iter(said.captions), None)
        yield Row(place.url(path), caption, said.uid, number=number, why=why)
        return
    row = Row(said.url or place.url(name), None, said.uid, Location(place.under(name)), number)
    for caption in said.captions or (None,):
        yield row._replace(caption=caption)


def _head(place: SourceFile, path: str) -> bytes:
    with place.fs.open(posixpath.join(place.path, path), "rb") as stream:
        content: bytes = stream.read(sidecars.LONGEST)
    return content
