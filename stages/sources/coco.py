"""COCO captions: a json of `images` and `annotations` (arXiv:1504.00325), and the images' folder.

Memory holds the file name and the URL of each image.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from stages.sources.columns import text_of, uid_text
from stages.sources.config import Source
from stages.sources.documents import elements
from stages.sources.place import Place, folder
from stages.sources.row import Location, Row

__all__ = ["images", "rows"]


class _Image(NamedTuple):
    file: str | None
    url: str | None


def rows(place: Place, source: Source) -> Iterator[Row]:
    """A row for each annotation, in their order, then one for each image that has none.

    `source_uid` is the id of the image. An annotation of an image that is not listed is a row that
    fails.

    Raises:
        ValueError: The document is broken, or an image can be neither read nor fetched.
    """
    found = _images(place)
    at_hand = None if source.images is None else folder(source.images, place.prefix)
    captioned = set()
    for annotation in elements(place, "annotations"):
        entry = annotation if isinstance(annotation, dict) else {}
        uid, caption = uid_text(entry.get("image_id")), text_of(entry.get("caption"))
        captioned.add(uid)
        yield _row(found.get(uid, _Image(None, None)), uid, caption, at_hand)
    for uid, image in found.items():
        if uid not in captioned:
            yield _row(image, uid, None, at_hand)


def images(place: Place, source: Source) -> Iterator[Row]:
    """A row for each image of the folder that the document lists."""
    if source.images is None:
        raise ValueError(
            f"{place.path} has no images at hand; name their folder too, as `images` of a source"
        )
    at_hand = folder(source.images, place.prefix)
    for uid, image in _images(place).items():
        yield _row(image, uid, None, at_hand)


def _images(place: Place) -> dict[str | None, _Image]:
    """The images by their id."""
    found: dict[str | None, _Image] = {}
    for element in elements(place, "images"):
        entry = element if isinstance(element, dict) else {}
        uid, file = uid_text(entry.get("id")), text_of(entry.get("file_name"))
        if uid is None or file is None:
            raise ValueError(
                f"download.source cannot be read as COCO: {place.path}: an image needs `id` and "
                f"`file_name`, got {str(element)[:80]}"
            )
        found[uid] = _Image(file, text_of(entry.get("coco_url")))
    return found


def _row(image: _Image, uid: str | None, caption: str | None, at_hand: Place | None) -> Row:
    if at_hand is None or image.file is None:
        return Row(image.url or "", caption, uid)
    url = image.url or at_hand.url(image.file)
    return Row(url, caption, uid, Location(at_hand.under(image.file)))
