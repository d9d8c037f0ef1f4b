"""A row of a list, and where the bytes of its image lie when they are at hand."""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa

from stages.schema import POOL

__all__ = ["LIST", "LONGEST", "Location", "Row", "clean", "decode"]

LIST = pa.schema(
    [POOL.field(name) for name in ("uid", "source", "source_uid", "url", "caption", "repeats")]
    + [
        pa.field("file", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("length", pa.int64()),
        pa.field("row", pa.int64()),
    ]
)
"""A row of a list shard.

The last four are a `Location`. `file` is null where the image is to be fetched from `url`.
"""

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
    from 0. So where a folder lies on a machine does not matter.
    """

    url: str
    caption: str | None = None
    source_uid: str | None = None
    location: Location | None = None

    def cut(self) -> Row:
        """The row with its texts cut; a URL that is to be fetched is left out instead."""
        url, caption, uid, location = self
        if location is None and len(url) > LONGEST:
            url = ""
        return Row(url[:LONGEST], caption and caption[:LONGEST], uid and uid[:LONGEST], location)


def clean(text: str) -> str:
    """The text with each lone surrogate replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def decode(content: bytes) -> str:
    """UTF-8 as text, a byte order mark left out; what is not UTF-8 becomes U+FFFD."""
    return content.decode("utf-8-sig", "replace")
