"""COCO captions: a JSON file with `images` and `annotations` (arXiv:1504.00325).

The file name and the URL of every image are held in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from stages.sources.captions import captions_of
from stages.sources.columns import Finder, Record, count_skipped, text_of, uid_text
from stages.sources.json_lists import elements
from stages.sources.source_files import SourceFile

__all__ = ["records"]

_URLS = ("coco_url", "flickr_url", "url")


class _Image(NamedTuple):
    number: int
    file: str
    url: str | None


def records(source_file: SourceFile, finder: Finder) -> Iterator[Record]:
    """Yield a record for each annotation, in order, then one for each image without annotations.

    `uid` is the id of the image. An annotation whose image is not listed gives a record with a
    fault.

    Raises:
        ValueError: The document is broken, or its images have neither a folder nor URLs.
    """
    images = _images(source_file)
    if finder.source.images is None and not any(image.url for image in images.values()):
        raise ValueError(
            f"download.source: the images in {source_file.path} have no `coco_url`; set `images` "
            "of the source to the folder that holds them"
        )
    captioned = set()
    for number, annotation in enumerate(elements(source_file, "annotations"), 1):
        entry = annotation if isinstance(annotation, dict) else {}
        uid = uid_text(entry.get("image_id"))
        captions = captions_of(entry.get("caption"))
        count_skipped(source_file.notices, captions, f"{source_file.path}:{number}")
        if uid is None or uid not in images:
            yield Record(
                number=number,
                captions=captions.texts,
                uid=uid,
                why="is an annotation of an image that is not listed",
            )
            continue
        captioned.add(uid)
        yield _record(images[uid], uid, captions.texts, number)
    for uid, image in images.items():
        if uid not in captioned:
            yield _record(image, uid, (), image.number)


def _record(image: _Image, uid: str, captions: tuple[str, ...], number: int) -> Record:
    return Record(number=number, url=image.url, captions=captions, uid=uid, file=image.file)


def _images(source_file: SourceFile) -> dict[str, _Image]:
    """Return the listed images by id."""
    images: dict[str, _Image] = {}
    for number, element in enumerate(elements(source_file, "images"), 1):
        entry = element if isinstance(element, dict) else {}
        uid, file = uid_text(entry.get("id")), text_of(entry.get("file_name"))
        if uid is None or file is None:
            raise ValueError(
                f"download.source cannot be read as COCO: {source_file.path}: an image must have "
                f"`id` and `file_name`, got {str(element)[:80]}"
            )
        urls = (text_of(entry.get(key)) for key in _URLS)
        images[uid] = _Image(number, file, next(filter(None, urls), None))
    return images
