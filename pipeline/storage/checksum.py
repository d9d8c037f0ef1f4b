"""Checksums inside Parquet, JSON and HTML files, which show whether a file was changed or cut off.

In a Parquet file the checksum stands where other writers put indexes, so every reader accepts it:

    PAR1 | column chunks | checksum | footer | length of the footer | PAR1

    checksum    for each segment before it (PAR1, and each column chunk) its end and its SHA-256;
                the SHA-256 of these entries and of everything after the checksum; the number of
                entries; a mark

A reader checks the footer once, and each column chunk that it reads. JSON files and pages hold the
SHA-256 of the rest of the file, in the field or comment `seal`.
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
"""Bytes read first at the end of a file; more is read if footer and checksum are longer."""

BLOCK = 1 << 20

Buffer = bytes | memoryview
"""A piece of a file."""

CHANGED = "its bytes are not those that were written"
NO_CHECKSUM = "it has no checksum: capfilt did not write it, or it was cut off or changed"

JSON_END = re.compile(rb'  "seal": "([0-9a-f]{64})"\n}\n\Z')
PAGE_END = re.compile(rb"<!-- seal: ([0-9a-f]{64}) -->\n\Z")


def with_checksum_parquet(content: bytes | pa.Buffer) -> tuple[Buffer, ...]:
    """Add a checksum to a Parquet file; returns its pieces. Equal files get equal checksums."""
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
    """Yield the offset at which each column chunk begins."""
    for group in range(metadata.num_row_groups):
        columns = metadata.row_group(group)
        for index in range(columns.num_columns):
            column = columns.column(index)
            offsets = (column.dictionary_page_offset, column.data_page_offset)
            yield min(offset for offset in offsets if offset is not None)


class _Checksum:
    """The checksum of an open Parquet file, checked against its footer.

    Attributes:
        stops: The offset at which each segment ends, ascending.
        digests: The SHA-256 of each segment.
        metadata: The content of the footer.

    Raises:
        ChecksumError: The file has no checksum, or was cut off or changed.
    """

    def __init__(self, file: Any) -> None:
        size = file.seek(0, os.SEEK_END)
        held = b""

        def last(number: int) -> bytes:
            """The last `number` bytes of the file."""
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
        segments = list(ENTRY.iter_unpack(entries))
        self.stops = [int(stop) for stop, _ in segments]
        self.digests = [bytes(segment_digest) for _, segment_digest in segments]
        if self.stops[-1:] != [size - whole] or self.stops != sorted(self.stops):
            raise ChecksumError(CHANGED)
        self.metadata = pq.read_metadata(pa.BufferReader(last(footer)))


class _Checked(io.RawIOBase):
    """The data of a file with a checksum; whole segments are checked as they are read."""

    def __init__(self, file: Any, checksum: _Checksum) -> None:
        self._file = file
        self._checksum = checksum
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._checksum.stops[-1]}
        self._at = base[whence] + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        stops = self._checksum.stops
        stop = stops[-1] if size < 0 else min(self._at + size, stops[-1])
        if stop <= self._at:
            return b""
        first, last = bisect.bisect_right(stops, self._at), bisect.bisect_left(stops, stop)
        begin = stops[first - 1] if first else 0
        self._file.seek(begin)
        content: bytes = self._file.read(stops[last] - begin)
        view, start = memoryview(content), begin
        for end, digest in zip(
            stops[first : last + 1], self._checksum.digests[first : last + 1], strict=True
        ):
            if hashlib.sha256(view[start - begin : end - begin]).digest() != digest:
                raise ChecksumError(CHANGED)
            start = end
        part = content[self._at - begin : stop - begin]
        self._at = stop
        return part


def has_checksum(file: Any) -> bool:
    """Whether an open Parquet file has the mark of a checksum."""
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
    """Open a Parquet file with a checksum; columns and row groups are checked when they are read.

    Args:
        file: A seekable file, open in binary; the caller closes it.
        pre_buffer: Whether column chunks that lie together are read together.

    Raises:
        ChecksumError: It has no checksum, or was cut off or changed; reads of changed parts raise
            it too.
    """
    checksum = _Checksum(file)
    checked: Any = _Checked(file, checksum)
    return pq.ParquetFile(checked, metadata=checksum.metadata, pre_buffer=pre_buffer)


def check_parquet(file: Any) -> pa.Schema:
    """Check every byte of a Parquet file with a checksum, in little memory; returns its schema.

    Raises:
        ChecksumError: It has no checksum, or was cut off or changed.
    """
    checksum = _Checksum(file)
    file.seek(0)
    start = 0
    for stop, digest in zip(checksum.stops, checksum.digests, strict=True):
        segment = hashlib.sha256()
        while start < stop:
            block = file.read(min(BLOCK, stop - start))
            if not block:
                raise ChecksumError(CHANGED)
            segment.update(block)
            start += len(block)
        if segment.digest() != digest:
            raise ChecksumError(CHANGED)
    return checksum.metadata.schema.to_arrow_schema()


def with_checksum_json(value: Mapping[str, Any]) -> bytes:
    """Write a value as readable JSON with a checksum in the last field, `seal`."""
    text = json.dumps({**value, "seal": ""}, indent=2, ensure_ascii=False, default=str)
    content = (text + "\n").encode()
    digest = hashlib.sha256(content).hexdigest()
    at = len(content) - len('"\n}\n')
    return content[:at] + digest.encode() + content[at:]


def open_json(content: bytes) -> dict[str, Any]:
    """Read the value that `with_checksum_json` wrote.

    Raises:
        ChecksumError: It has no checksum, or was cut off or changed.
    """
    value: dict[str, Any] = json.loads(_without_checksum(content, JSON_END))
    del value["seal"]
    return value


def with_checksum_page(page: str) -> bytes:
    """Add a checksum to an HTML page, in a comment at the end."""
    content = page.encode() + b"<!-- seal:  -->\n"
    digest = hashlib.sha256(content).hexdigest()
    at = len(content) - len(" -->\n")
    return content[:at] + digest.encode() + content[at:]


def check_page(content: bytes) -> None:
    """Check a page of `with_checksum_page`.

    Raises:
        ChecksumError: It has no checksum, or was cut off or changed.
    """
    _without_checksum(content, PAGE_END)


def _without_checksum(content: bytes, pattern: re.Pattern[bytes]) -> bytes:
    """Remove the checksum that a pattern matches, if it is right.

    Raises:
        ChecksumError: There is none, or it is wrong.
    """
    match = pattern.search(content)
    if match is None:
        raise ChecksumError(NO_CHECKSUM)
    rest = content[: match.start(1)] + content[match.end(1) :]
    if hashlib.sha256(rest).hexdigest().encode() != match[1]:
        raise ChecksumError(CHANGED)
    return rest
