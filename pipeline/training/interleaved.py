"""Reads the interleaved documents that an export writes, in a seeded order.

Such a folder holds NNNNN.jsonl, with `text` and `images`, and beside each images-NNNNN.parquet.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import fsspec
import pyarrow.compute as pc

from pipeline.manifest.train_config import Source
from pipeline.training.data import Stream
from pipeline.training.units import Unit, open_parquet
from stages.documents import EOC, IMAGE

__all__ = ["Interleaved", "Page"]

logger = logging.getLogger(__name__)

UNITS_A_FILE = 16


@dataclass(frozen=True, kw_only=True)
class Page:
    """An interleaved document.

    Attributes:
        text: The text, with `<image>` where an image stands.
        images: The encoded image and its SHA-256 for each `<image>`; no bytes if it is missing.
        epoch: The number of earlier epochs.
    """

    text: str
    images: tuple[tuple[bytes, str], ...]
    epoch: int = 0

    def with_readable(self, is_readable: Sequence[bool]) -> Page | None:
        """The document without the images that cannot be opened; None if none is left.

        As with images that the stages reject, `<image>` goes too, with the `<EOC>` before it.
        """
        if not any(is_readable):
            return None
        text, *rest = self.text.split(IMAGE)
        for piece, is_there in zip(rest, is_readable, strict=True):
            text = (text + IMAGE if is_there else text.removesuffix(EOC)) + piece
        images = tuple(itertools.compress(self.images, is_readable))
        return dataclasses.replace(self, text=text, images=images)


class Lines:
    """Some lines of a file of documents; images are read with them.

    Args:
        path: The file.
        first: The number of the first line.
        start: The byte at which it begins.
        number: How many lines there are.
        length: Their bytes.
    """

    def __init__(self, path: str, first: int, start: int, number: int, length: int) -> None:
        self.path = path
        self.first = first
        self.start = start
        self.num_images = number
        self.length = length

    def load(self) -> list[Page]:
        """The documents of these lines."""
        fs, path = fsspec.core.url_to_fs(self.path)
        content = fs.cat_file(path, start=self.start, end=self.start + self.length)
        lines = content.removesuffix(b"\n").split(b"\n")
        told = [_told(line, f"{self.path}:{self.first + i}") for i, line in enumerate(lines)]
        folder, _, name = self.path.rpartition("/")
        file = f"{folder}/images-{name.removesuffix('.jsonl')}.parquet"
        images = _images(file, {uid for _, uids in told for uid in uids})
        missing = {uid for _, uids in told for uid in uids} - images.keys()
        for uid in sorted(missing):
            logger.warning("%s: no image %s", file, uid)
        nothing = (b"", "")
        return [
            Page(text=text, images=tuple(images.get(uid, nothing) for uid in uids))
            for text, uids in told
        ]


def _told(line: bytes, place: str) -> tuple[str, list[str]]:
    """The text of a line, and the uids of its images.

    Raises:
        ValueError: The line is not a document of an export; the message names file and line.
    """
    try:
        record = json.loads(line)
        text, uids = record["text"], record["images"]
        if not isinstance(text, str) or not all(isinstance(uid, str) for uid in uids):
            raise TypeError("`text` must be a text, and `images` a list of texts")
        if text.count(IMAGE) != len(uids) or not uids:
            raise ValueError(f"{len(uids)} images for {text.count(IMAGE)} {IMAGE} in the text")
    except (ValueError, TypeError, KeyError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{place}: not a document of an export: {why}; export again") from None
    return text, list(uids)


def _images(file: str, uids: set[str]) -> dict[str, tuple[bytes, str]]:
    """The images of some uids, with their SHA-256, from the row groups that hold them."""
    with open_parquet(file) as opened:
        names = opened.read(columns=["uid"])["uid"].to_pylist()
        sizes = [opened.metadata.row_group(i).num_rows for i in range(opened.num_row_groups)]
        ends = list(itertools.accumulate(sizes))
        rows = (row for row, uid in enumerate(names) if uid in uids)
        groups = sorted({bisect.bisect_right(ends, row) for row in rows})
        found = opened.read_row_groups(groups, columns=["uid", "image"])
    encoded = pc.struct_field(found["image"], "bytes")
    images = {}
    for row, uid in enumerate(found["uid"].to_pylist()):
        if uid in uids:
            image = encoded[row].as_py() or b""
            images[uid] = (image, hashlib.sha256(image).hexdigest())
    return images


class Interleaved(Stream[Page]):
    """A stream of documents. What `Stream` says of images is so of documents."""

    kind = noun = "documents"
    field = "document_batch_size"

    def units_of(self, file: str, source: Source) -> Sequence[Unit]:
        """The units of a file of a source; images belong to the units of their documents."""
        return list(_units(file)) if file.endswith(".jsonl") else []

    def example(self, sample: Page, epoch: int) -> Page:
        """The document in an epoch."""
        return dataclasses.replace(sample, epoch=epoch)


def _units(file: str) -> Iterator[Lines]:
    with fsspec.open(file, "rb") as stream:
        ends = list(itertools.accumulate(map(len, stream), initial=0))
    size = max(1, (len(ends) - 1) // UNITS_A_FILE)
    for first in range(0, len(ends) - 1, size):
        last = min(first + size, len(ends) - 1)
        yield Lines(file, first + 1, ends[first], last - first, ends[last] - ends[first])
