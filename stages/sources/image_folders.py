"""Reads folders of images, including img2dataset's format `files` and this project's exports."""

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
from stages.sources.sidecars import ImageText, Sidecars, ending_of, read_sidecars
from stages.sources.source_files import HIDDEN, SourceFile, is_image

__all__ = ["images", "rows"]

_LISTS = ("csv", "tsv", "jsonl", "json")
METADATA_FILES = {"metadata.jsonl": "jsonl", "metadata.csv": "csv", "metadata.parquet": "parquet"}

NOT_USED = "text files without an image of the same name, which are not used"


def images(source_file: SourceFile) -> Iterator[Row]:
    """Yield a row without a caption for each image of a folder, in order."""
    for folder, names in source_file.walk():
        for name in names:
            if source_file.is_image(path := posixpath.join(folder, name)):
                yield Row(
                    source_file.url(clean(path)), location=Location(source_file.under(clean(path)))
                )


def rows(source_file: SourceFile, source: Source) -> Iterator[Row]:
    """Yield a row for each caption of each image of a folder, and for each image without captions.

    Images that a list in the folder gives captions for come first, in the order of the lists. Lists
    are metadata.jsonl, .csv or .parquet in any subfolder (`file_name` and a caption column, as in
    Hugging Face's imagefolder) and, at the top, other lists of images and captions, such as
    BLIP's, LLaVA's and COCO's JSON. All other images follow, with captions from their sidecar
    files. The names in the lists, and the names in one subfolder, are held in memory.

    Raises:
        ValueError: The folder holds tars too, so it is not clear which are meant.
    """
    captioned: set[str] = set()
    listed: dict[str, ImageText] = {}
    lists: set[str] = set()
    for row in _listed(source_file, source, lists):
        if row.name is None or row.text.captions:
            captioned.add(row.name or "")
            path = row.name or row.record.file or f"{row.path}:{row.record.number}"
            yield from _rows(source_file, path, row.text, row.record)
        else:
            listed.setdefault(row.name, row.text)
    without, first, number = 0, "", 0
    hidden: list[str] = []
    for folder, names in source_file.walk(hidden):
        sidecars = Sidecars(names)
        image_paths: list[str] = []
        for name in names:
            path = posixpath.join(folder, name)
            if name.lower().endswith(".tar"):
                raise ValueError(
                    f"download.source: {source_file.path} holds both images and tars ({path}); "
                    "give a glob for the tars, or the folder of the images"
                )
            if path not in lists and source_file.is_image(path):
                image_paths.append(path)
        for path in image_paths:
            number += 1
            names_beside = sidecars.of(posixpath.basename(path)) if sidecars else {}
            if path in captioned:
                continue
            content = {
                kind: _head(source_file, posixpath.join(folder, n))
                for kind, n in names_beside.items()
            }
            text = read_sidecars(content, source, source_file.notices, path)
            if path in listed:
                listed_text = listed[path]
                text = ImageText(
                    listed_text.url or text.url, text.captions, listed_text.uid or text.uid
                )
            if not text.captions:
                without, first = without + 1, first or path
            yield from _rows(source_file, path, text)
        for name in names:
            path = posixpath.join(folder, name)
            if ending_of(name) in ("txt", "caption") and name not in sidecars.used:
                source_file.notices.add(NOT_USED, path)
    for name in hidden:
        source_file.notices.add(HIDDEN, name)
    if without < number:
        source_file.notices.add(
            "images without a caption, among images that have one", first, without
        )


class _Listed(NamedTuple):
    """One record of the list at `path`; `name` is None if its image does not exist."""

    path: str
    name: str | None
    text: ImageText
    record: Record


def _listed(source_file: SourceFile, source: Source, lists: set[str]) -> Iterator[_Listed]:
    """Yield the records of the lists in a folder, and add the paths of the lists to `lists`."""
    files = Files(source_file)
    for path, list_records in _lists(source_file, source):
        lists.add(path)
        for record in list_records:
            name = None
            if record.file is not None:
                name = files.find(record.file, posixpath.dirname(path))
                if name is None:
                    source_file.notices.add(
                        "files named by a list that do not exist",
                        f"{record.file} of {path}:{record.number}",
                    )
            yield _Listed(path, name, ImageText(record.url, record.captions, record.uid), record)


def _lists(source_file: SourceFile, source: Source) -> Iterator[tuple[str, Iterator[Record]]]:
    """Yield the path and the records of each list in a folder."""
    for folder, names in source_file.walk():
        sidecars = Sidecars(() if folder else names)
        for name in names if sidecars else ():
            if is_image(name):
                sidecars.of(name)
        for name in names:
            path = posixpath.join(folder, name)
            kind = METADATA_FILES.get(name.lower())
            ending = posixpath.splitext(name)[1][1:].lower()
            may_be = not folder and ending in _LISTS and name not in sidecars.used
            if kind is None and not may_be:
                continue
            listed = dataclasses.replace(
                source_file,
                path=posixpath.join(source_file.path, path),
                name=path,
                kind=kind or ending,
                notices=source_file.notices if kind else Notices(),
                known={},
            )
            finder = Finder(listed.path, source, "file", notices=listed.notices)
            if kind is not None:
                yield path, records(listed, finder)
            elif _names_images(listed, finder, Files(source_file)):
                listed = dataclasses.replace(listed, notices=source_file.notices, known={})
                yield (
                    path,
                    _records(listed, dataclasses.replace(finder, notices=source_file.notices)),
                )


def _names_images(source_file: SourceFile, finder: Finder, files: Files) -> bool:
    """Whether a file is a list whose first record names an image in the same folder."""
    try:
        first = next(_records(source_file, finder), None)
    except (ValueError, pa.ArrowException):
        return False
    return first is not None and first.file is not None and files.find(first.file) is not None


def _records(source_file: SourceFile, finder: Finder) -> Iterator[Record]:
    if source_file.kind == "json" and json_lists.kind(source_file)[0] == "coco":
        source = dataclasses.replace(finder.source, images=source_file.path)  # needs no coco_url
        finder = dataclasses.replace(finder, source=source)
    return records(source_file, finder)


def _rows(
    source_file: SourceFile, path: str, text: ImageText, record: Record | None = None
) -> Iterator[Row]:
    """Yield a row for each caption of an image, or one row without a caption."""
    name = clean(path[:LONGEST])
    number = None if record is None else record.number
    if record is not None and record.file is None:
        why = record.why or "names no file"
        caption = next(iter(text.captions), None)
        yield Row(source_file.url(path), caption, text.uid, number=number, why=why)
        return
    row = Row(
        text.url or source_file.url(name), None, text.uid, Location(source_file.under(name)), number
    )
    for caption in text.captions or (None,):
        yield row._replace(caption=caption)


def _head(source_file: SourceFile, path: str) -> bytes:
    with source_file.fs.open(posixpath.join(source_file.path, path), "rb") as stream:
        content: bytes = stream.read(sidecars.LONGEST)
    return content
