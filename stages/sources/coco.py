"""COCO captions: a json of `images` and `annotations` (arXiv:1504.00325), and the images' folder.

Memory holds the file name and the URL of each image.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from stages.sources.captions import captions_of
from stages.sources.columns import Finder, Record, note_odd, text_of, uid_text
from stages.sources.json_lists import elements
from stages.sources.source_files import SourceFile

__all__ = ["records"]

_URLS = ("coco_url", "flickr_url", "url")


class _Image(NamedTuple):
    number: int
    file: str
    url: str | None


def records(place: SourceFile, finder: Finder) -> Iterator[Record]:
    """A record for each annotation, in their order, then one for each image that has none.

    `uid` is the id of the image. An annotation of an image that is not listed cannot be read.

    Raises:
        ValueError: The document is broken, or its images can be neither read nor fetched.
    """
    found = _images(place)
    if finder.source.images is None and not any(image.url for image in found.values()):
        raise ValueError(
            f"download.source: the images of {place.path} have no `coco_url`; name their folder, "
            "as `images` of a source"
        )
    captioned = set()
    for number, annotation in enumerate(elements(place, "annotations"), 1):
        entry = annotation if isinstance(annotation, dict) else {}
        uid = uid_text(entry.get("image_id"))
        captions = captions_of(entry.get("caption"))
        note_odd(place.notices, captions, f"{place.path}:{number}")
        if uid is None or uid not in found:
            yield Record(
                number=number,
                captions=captions.texts,
                uid=uid,
                why="is an annotation of no image that is listed",
            )
            continue
        captioned.add(uid)
        yield _record(found[uid], uid, captions.texts, number)
    for uid, image in found.items():
        if uid not in captioned:
            yield _record(image, uid, (), image.number)


def _record(image: _Image, uid: str, captions: tuple[str, ...], number: int) -> Record:
    return Record(number=number, url=image.url, captions=captions, uid=uid, file=image.file)


def _images(place: SourceFile) -> dict[str, _Image]:
    """The images by their id."""
    found: dict[str, _Image] = {}
    for number, element in enumerate(elements(place, "images"), 1):
        entry = element if isinstance(element, dict) else {}
        uid, file = uid_text(entry.get("id")), text_of(entry.get("file_name"))
        if uid is None or file is None:
            raise ValueError(
                f"download.source cannot be read as COCO: {place.path}: an image needs `id` and "
                f"`file_name`, got {str(element)[:80]}"
            )
        urls = (text_of(entry.get(key)) for key in _URLS)
        found[uid] = _Image(number, file, next(filter(None, urls), None))
    return found
