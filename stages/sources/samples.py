"""Images at hand with all that is said of each: what training, evaluation and human pairs read."""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field

from stages.redaction import redacted
from stages.sources.config import Source, SourceConfig
from stages.sources.dispatch import rows
from stages.sources.notices import Notices
from stages.sources.reader import Reader
from stages.sources.row import Location
from stages.sources.source_files import is_list

__all__ = ["Sample", "named", "samples"]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An image with what is said of it.

    Attributes:
        name: What stands for it in `url`.
        image: Its bytes, or where they lie.
        captions: All its captions, in the order in which they were found.
        label: Its class, where there is one.
        number: Of the first line or record that names it.
        reader: Reads what lies elsewhere.
    """

    name: str
    image: bytes | Location
    captions: tuple[str, ...]
    label: str | None = None
    number: int | None = None
    reader: Reader | None = field(default=None, compare=False, repr=False)

    def read(self) -> bytes:
        """The encoded image.

        Raises:
            FileNotFoundError: It cannot be read; the message says why.
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
    name: str = "web",
    of: str = "train.data",
    notices: Notices | None = None,
) -> list[Sample]:
    """The images of anything that download reads, each once, with all its captions.

    Memory holds every caption.

    Args:
        path: As `Source.path`.
        images: The folder of the images that a list names; by default that of the list.
        name: What `Sample.name` begins with.
        of: The field that names the path, for messages.
        notices: Takes what is worth a warning; null logs it.

    Raises:
        ValueError: It is missing or unreadable, or has a record that cannot be read or that names
            an image by a URL; it names the file and the line.
    """
    is_own = notices is None
    notices = Notices() if notices is None else notices
    if images is None and is_list(path):
        images = posixpath.dirname(path) or "."
    found: dict[Location, tuple[str, int | None, list[str]]] = {}
    labels: dict[Location, str] = {}
    with named(of):
        source = Source(path=path, name=name, images=images)
        reader = Reader(SourceConfig(source=(source,)))
        for row in rows(source, notices):
            if row.location is None:
                why = row.why or "names no `image`"
                if row.fault is None:
                    why = f"`image` must be a path, got {redacted(row.url)!r}"
                raise ValueError(f"{of}: {path}:{row.number}: {why}")
            told = found.setdefault(row.location, (row.url, row.number, []))
            if row.caption is not None:
                told[2].append(row.caption)
            if row.label is not None:
                labels[row.location] = row.label
    bare = [url for place, (url, _, said) in found.items() if not said and place not in labels]
    if len(bare) < len(found):
        notices.add("images without a caption, which are left out", "".join(bare[:1]), len(bare))
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
        for location, (url, number, captions) in found.items()
    ]


@contextlib.contextmanager
def named(of: str) -> Iterator[None]:
    """What is wrong with a source, said of the field that names it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace("download.source", of)) from error
