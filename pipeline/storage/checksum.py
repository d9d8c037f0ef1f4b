"""Seals: digests inside a file that tell whether its bytes are still those that were written.

A sealed Parquet file has its seal where other writers put indexes, so that every reader reads it:

    PAR1 | column chunks | seal | footer | length of the footer | PAR1

    seal    for each segment of what precedes it (a column chunk, or PAR1), its end and SHA-256;
            the SHA-256 of these entries and of all that follows the seal; their number; a mark

A reader checks the footer once and each column chunk that it reads, so that no byte reaches it that
was not written, and pays for no other. Sealed JSON and pages hold the SHA-256 of all the rest.
"""

from __future__ import annotations

import bisect
import hashlib
import io
import json
import os
import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from models.errors import ChecksumError

__all__ = [
    "CHANGED",
    "check_page",
    "check_parquet",
    "has_checksum",
    "open_json",
    "open_parquet",
    "with_checksum_json",
    "with_checksum_page",
    "with_checksum_parquet",
]

MARK = b"capfilt1"
PAR1 = b"PAR1"
ENTRY = struct.Struct("<Q32s")
END = struct.Struct("<32sI8s")
FOOTER_END = struct.Struct("<I4s")

FIRST_READ = 1 << 16
"""Of the end of a file, where its footer and its seal are; more is read where they are longer."""

BLOCK = 1 << 20

Buffer = bytes | memoryview
"""A piece of a file."""

CHANGED = "its bytes are not those that were written"
NO_CHECKSUM = "it has no seal: it is none of capfilt's files, or was cut off or changed"

JSON_END = re.compile(rb'  "seal": "([0-9a-f]{64})"\n}\n\Z')
PAGE_END = re.compile(rb"<!-- seal: ([0-9a-f]{64}) -->\n\Z")


def with_checksum_parquet(content: bytes | pa.Buffer) -> tuple[Buffer, ...]:
    """A Parquet file with its seal, in pieces; equal files get equal seals."""
    view = memoryview(content)
    start = len(view) - FOOTER_END.size - FOOTER_END.unpack(view[-FOOTER_END.size :])[0]
    metadata = pq.read_metadata(pa.BufferReader(view[start:]))
    stops = sorted({len(PAR1), start, *_chunks(metadata)})
    entries = b"".join(
        ENTRY.pack(stop, hashlib.sha256(view[begin:stop]).digest())
        for begin, stop in zip([0, *stops], stops, strict=False)
    )
    digest = hashlib.sha256(entries + view[start:]).digest()
    return view[:start], entries, END.pack(digest, len(stops), MARK), view[start:]


def _chunks(metadata: pq.FileMetaData) -> Iterator[int]:
    """Where each column chunk begins."""
    for group in range(metadata.num_row_groups):
        columns = metadata.row_group(group)
        for index in range(columns.num_columns):
            column = columns.column(index)
            offsets = (column.dictionary_page_offset, column.data_page_offset)
            yield min(offset for offset in offsets if offset is not None)


class _Checksum:
    """The seal of an open Parquet file, checked against its footer.

    Attributes:
        stops: Where each segment ends, ascending.
        digests: Their SHA-256.
        metadata: What the footer says.

    Raises:
        ChecksumError: The file has none, or was cut off or changed.
    """

    def __init__(self, file: Any) -> None:
        size = file.seek(0, os.SEEK_END)
        held = b""

        def last(number: int) -> bytes:
            """The last bytes of the file."""
            nonlocal held
            if number > size:
                raise ChecksumError(NO_CHECKSUM)
            if number > len(held):
                file.seek(size - min(size, max(number, FIRST_READ)))
                held = file.read()
            return held[len(held) - number :]

        length, par1 = FOOTER_END.unpack(last(FOOTER_END.size))
        footer = FOOTER_END.size + length
        digest, number, mark = END.unpack(last(footer + END.size)[: END.size])
        if mark != MARK or par1 != PAR1:
            raise ChecksumError(NO_CHECKSUM)
        whole = footer + END.size + number * ENTRY.size
        entries = last(whole)[: number * ENTRY.size]
        if hashlib.sha256(entries + last(footer)).digest() != digest:
            raise ChecksumError(CHANGED)
        found = list(ENTRY.iter_unpack(entries))
        self.stops = [int(stop) for stop, _ in found]
        self.digests = [bytes(one) for _, one in found]
        if self.stops[-1:] != [size - whole] or self.stops != sorted(self.stops):
            raise ChecksumError(CHANGED)
        self.metadata = pq.read_metadata(pa.BufferReader(last(footer)))


class _Checked(io.RawIOBase):
    """The data of a sealed file; what is read of it has been checked, by whole segments."""

    def __init__(self, file: Any, seal: _Checksum) -> None:
        self._file = file
        self._seal = seal
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._seal.stops[-1]}
        self._at = base[whence] + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        stops = self._seal.stops
        stop = stops[-1] if size < 0 else min(self._at + size, stops[-1])
        if stop <= self._at:
            return b""
        first, last = bisect.bisect_right(stops, self._at), bisect.bisect_left(stops, stop)
        begin = stops[first - 1] if first else 0
        self._file.seek(begin)
        content: bytes = self._file.read(stops[last] - begin)
        view, start = memoryview(content), begin
        for end, digest in zip(
            stops[first : last + 1], self._seal.digests[first : last + 1], strict=True
        ):
            if hashlib.sha256(view[start - begin : end - begin]).digest() != digest:
                raise ChecksumError(CHANGED)
            start = end
        found = content[self._at - begin : stop - begin]
        self._at = stop
        return found


def has_checksum(file: Any) -> bool:
    """Whether an open Parquet file has the mark of a seal."""
    size = file.seek(0, os.SEEK_END)
    if size < FOOTER_END.size:
        return False
    file.seek(size - FOOTER_END.size)
    at = size - FOOTER_END.size - FOOTER_END.unpack(file.read())[0] - len(MARK)
    if at < 0:
        return False
    file.seek(at)
    return bool(file.read(len(MARK)) == MARK)


def open_parquet(file: Any, *, pre_buffer: bool = True) -> pq.ParquetFile:
    """A sealed Parquet file to read: any columns, any row groups, each checked when it is read.

    Args:
        file: Open in binary, seekable; it stays the caller's to close.
        pre_buffer: Whether column chunks that lie together are read together.

    Raises:
        ChecksumError: It has no seal, or was cut off or changed; so do reads of what was.
    """
    seal = _Checksum(file)
    checked: Any = _Checked(file, seal)
    return pq.ParquetFile(checked, metadata=seal.metadata, pre_buffer=pre_buffer)


def check_parquet(file: Any) -> pa.Schema:
    """Check every byte of a sealed Parquet file, in little memory, and give its schema.

    Raises:
        ChecksumError: It has no seal, or was cut off or changed.
    """
    seal = _Checksum(file)
    file.seek(0)
    start = 0
    for stop, digest in zip(seal.stops, seal.digests, strict=True):
        found = hashlib.sha256()
        while start < stop:
            block = file.read(min(BLOCK, stop - start))
            if not block:
                raise ChecksumError(CHANGED)
            found.update(block)
            start += len(block)
        if found.digest() != digest:
            raise ChecksumError(CHANGED)
    return seal.metadata.schema.to_arrow_schema()


def with_checksum_json(value: Mapping[str, Any]) -> bytes:
    """A value as readable JSON, its seal in the last field, `seal`."""
    text = json.dumps({**value, "seal": ""}, indent=2, ensure_ascii=False, default=str)
    content = (text + "\n").encode()
    digest = hashlib.sha256(content).hexdigest()
    at = len(content) - len('"\n}\n')
    return content[:at] + digest.encode() + content[at:]


def open_json(content: bytes) -> dict[str, Any]:
    """What `seal_json` was given.

    Raises:
        ChecksumError: It has no seal, or was cut off or changed.
    """
    value: dict[str, Any] = json.loads(_unsealed(content, JSON_END))
    del value["seal"]
    return value


def with_checksum_page(page: str) -> bytes:
    """An HTML page, its seal in a comment at the end."""
    content = page.encode() + b"<!-- seal:  -->\n"
    digest = hashlib.sha256(content).hexdigest()
    at = len(content) - len(" -->\n")
    return content[:at] + digest.encode() + content[at:]


def check_page(content: bytes) -> None:
    """Check a page of `seal_page`.

    Raises:
        ChecksumError: It has no seal, or was cut off or changed.
    """
    _unsealed(content, PAGE_END)


def _unsealed(content: bytes, pattern: re.Pattern[bytes]) -> bytes:
    """The content without the digest that a pattern finds in it, which must be its own."""
    found = pattern.search(content)
    if found is None:
        raise ChecksumError(NO_CHECKSUM)
    rest = content[: found.start(1)] + content[found.end(1) :]
    if hashlib.sha256(rest).hexdigest().encode() != found[1]:
        raise ChecksumError(CHANGED)
    return rest
