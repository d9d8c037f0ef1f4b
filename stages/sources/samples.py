"""Images with all their captions, for training, evaluation and human pairs."""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field

from stages.redaction import redacted
from stages.sources.config import Conversations, Source, SourceConfig
from stages.sources.dispatch import rows
from stages.sources.notices import Notices
from stages.sources.reader import Reader
from stages.sources.row import Location
from stages.sources.source_files import is_list

__all__ = ["Sample", "named", "samples"]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An image with its captions and class.

    Attributes:
        name: The image's `url`.
        image: Its encoded bytes, or their location.
        captions: All its captions, in the order of the source.
        label: Its class, if it has one.
        number: Number of the first line or record that names it.
        reader: Reads the image if `image` is a location.
    """

    name: str
    image: bytes | Location
    captions: tuple[str, ...]
    label: str | None = None
    number: int | None = None
    reader: Reader | None = field(default=None, compare=False, repr=False)

    def read(self) -> bytes:
        """Return the encoded image.

        Raises:
            FileNotFoundError: The image cannot be read; the message says why.
        """
        if isinstance(self.image, bytes):
            return self.image
        assert self.reader is not None
        content = self.reader.read(self.image)
        if isinstance(content, str):
            raise FileNotFoundError(f"{self.image.file}: {content}")
        return content


def samples(
    path: str,
    images: str | None = None,
    *,
    conversations: bool = False,
    name: str = "web",
    of: str = "train.data",
    notices: Notices | None = None,
) -> list[Sample]:
    """Return each distinct image of a source with all its captions.

    All captions are held in memory.

    Args:
        path: As `Source.path`; any format that download reads without fetching URLs.
        images: Folder of the images that a list names; the folder of the list by default.
        conversations: Whether conversations are read whole; see `Conversations`.
        name: Prefix of `Sample.name`.
        of: The field that gives the path, for messages.
        notices: Collects warnings; None logs them.

    Raises:
        ValueError: The source is missing or unreadable, or has a record that cannot be read or
            that names an image by URL. The message has the file and the line.
    """
    is_own = notices is None
    notices = Notices() if notices is None else notices
    if images is None and is_list(path):
        images = posixpath.dirname(path) or "."
    by_location: dict[Location, tuple[str, int | None, list[str]]] = {}
    labels: dict[Location, str] = {}
    with named(of):
        kind = Conversations if conversations else Source
        source = kind(path=path, name=name, images=images)
        reader = Reader(SourceConfig(source=(source,)))
        for row in rows(source, notices):
            if row.location is None:
                why = row.why or "names no `image`"
                if row.fault is None:
                    why = f"`image` must be a path, got {redacted(row.url)!r}"
                raise ValueError(f"{of}: {path}:{row.number}: {why}")
            entry = by_location.setdefault(row.location, (row.url, row.number, []))
            if row.caption is not None:
                entry[2].append(row.caption)
            if row.label is not None:
                labels[row.location] = row.label
    uncaptioned = [
        url
        for location, (url, _, captions) in by_location.items()
        if not captions and location not in labels
    ]
    if len(uncaptioned) < len(by_location):
        notices.add(
            "images without a caption, which are left out",
            "".join(uncaptioned[:1]),
            len(uncaptioned),
        )
    if is_own:
        notices.warn()
    return [
        Sample(
            name=url,
            image=location,
            captions=tuple(captions),
            label=labels.get(location),
            number=number,
            reader=reader,
        )
        for location, (url, number, captions) in by_location.items()
    ]


@contextlib.contextmanager
def named(of: str) -> Iterator[None]:
    """Make error messages about a source name the field that gives its path."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace("download.source", of)) from error
