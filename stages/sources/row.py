"""A row of a list, and the location of its image if it needs no download."""

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
"""The schema of a list shard.

`file`, `offset`, `length` and `row` are a `Location`; `file` is null if the image must be
downloaded from `url`. `fault` is null, or download's reason for a row that has neither a URL nor an
image.
"""

MALFORMED = "malformed"
"""The fault of a record that cannot be read, or that names neither a URL nor an image."""

LONGEST = 2**16
"""Maximum characters of a text: a longer caption or id is cut, a longer URL is a `bad_url`."""


class Location(NamedTuple):
    """Where to read an image: a file, `length` bytes of a tar, or a row of a Parquet file.

    `file` is a path or an fsspec URL; it is relative if the source's path is.
    """

    file: str
    offset: int | None = None
    length: int | None = None
    row: int | None = None


class Row(NamedTuple):
    """A row as the source gives it.

    `url` is the URL of the image. An image without one gets the name NAME/PATH, where NAME is the
    source's name and PATH is relative to the source's path; PATH ends in the member of a tar, or in
    the row number of a Parquet file, from 0. Examples: `web/more/a.jpg`,
    `web/00000.tar/000000003.jpg`, `web/train.parquet/17`. For a source with several paths it is
    NAME/N/PATH, where N is the position of the path, from 0. These names do not change if the
    source is moved. A record with a fault has NAME/FILE:NUMBER, such as `web/list.csv:17`.

    Attributes:
        url: The URL, or the name that replaces it.
        caption: One caption; an image with several captions has several rows.
        source_uid: The source's own id.
        location: Location of an image that needs no download.
        number: Number of the line or record, from 1.
        why: Why the record cannot be read.
        label: Class of the image, used in evaluation.
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
        """Return the row with its texts cut to `LONGEST` characters."""
        url, caption, uid = self.url[:LONGEST], self.caption, self.source_uid
        return self._replace(
            url=url,
            caption=caption and caption[:LONGEST],
            source_uid=uid and uid[:LONGEST],
        )


def clean(text: str) -> str:
    """Replace each lone surrogate in a name or URL by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
