"""A row of a list, and where the bytes of its image lie when they are at hand."""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa

from stages.schema import POOL

__all__ = ["LIST", "LONGEST", "MALFORMED", "Location", "Row", "clean"]

LIST = pa.schema(
    [POOL.field(name) for name in ("uid", "source", "source_uid", "url", "caption", "repeats")]
    + [
        pa.field("file", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("length", pa.int64()),
        pa.field("row", pa.int64()),
        pa.field("fault", pa.string()),
    ]
)
"""A row of a list shard.

Four are a `Location`; `file` is null where the image is to be fetched from `url`. `fault` is null,
or why there is neither an image at hand nor a URL: one of the reasons of download.
"""

MALFORMED = "malformed"
"""The fault of a record that cannot be read, or that names neither a URL nor an image."""

LONGEST = 2**16
"""Characters of a text of a row: a longer caption or id is cut there, a longer URL is none."""


class Location(NamedTuple):
    """Where the bytes of an image lie: a file, `length` bytes of a tar, or a row of a Parquet file.

    `file` is a path or an fsspec URL, written as the source's path was: relative where that was.
    """

    file: str
    offset: int | None = None
    length: int | None = None
    row: int | None = None


class Row(NamedTuple):
    """A row as found.

    `url` is that of the sample wherever it has one. An image at hand without one has NAME/PATH,
    where PATH leads from the source's path to the image, in a tar to its member and in a Parquet
    file to the number of its row, from 0: `web/more/a.jpg`, `web/00000.tar/000000003.jpg`,
    `web/train.parquet/17`. A source of several paths has NAME/N/PATH, N the position of the path,
    from 0. So where a folder lies on a machine does not matter. A record that is at fault has
    NAME/FILE:NUMBER: `web/list.csv:17`.

    Attributes:
        url: The URL, or what stands in its place.
        caption: One caption; an image with several has several rows.
        source_uid: The id that the source itself gives.
        location: Where an image at hand lies.
        number: Of the line or record, from 1.
        why: What is wrong with a record that cannot be read.
        label: The class of the image, which evaluation reads.
        fault: See `LIST`.
    """

    url: str
    caption: str | None = None
    source_uid: str | None = None
    location: Location | None = None
    number: int | None = None
    why: str | None = None
    label: str | None = None
    fault: str | None = None

    @property
    def is_long(self) -> bool:
        """Whether a text has more than `LONGEST` characters."""
        url, caption, uid = self.url, self.caption or "", self.source_uid or ""
        return len(url) > LONGEST or len(caption) > LONGEST or len(uid) > LONGEST

    def cut(self) -> Row:
        """The row with its texts cut."""
        url, caption, uid = self.url[:LONGEST], self.caption, self.source_uid
        return self._replace(
            url=url,
            caption=caption and caption[:LONGEST],
            source_uid=uid and uid[:LONGEST],
        )


def clean(text: str) -> str:
    """A name or a URL with each lone surrogate replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
