"""Parquet files with a column of images: Hugging Face's, img2dataset's, and this project's own."""

from __future__ import annotations

import bisect
import itertools
from collections import deque
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.sources.columns import Finder
from stages.sources.config import Source
from stages.sources.row import Location, Row
from stages.sources.source_files import SourceFile
from stages.sources.url_lists import records

__all__ = ["Pictures", "column", "column_of", "rows"]

BINARY_COLUMNS = frozenset({"image", "img", "image_bytes", "jpg", "jpeg", "png", "webp"})
"""Names, in any case, under which a column of plain bytes is one of images."""

_BATCH = 16  # rows read at once
_KEPT = 8  # batches that stay, since threads do not ask quite in order


def rows(place: SourceFile, source: Source, image: str) -> Iterator[Row]:
    """The rows of a file, one for each caption of an image; one whose image is null fails.

    Args:
        place: The file.
        source: What may name columns.
        image: The column of images, of `column_of`.

    Raises:
        ValueError: The file cannot be read, or lacks a column that the source names.
    """
    finder = Finder(place.path, source, None, image.split(".")[0], place.notices)
    for number, record in enumerate(records(place, finder)):
        row = Row(
            record.url or place.url(number),
            None,
            record.uid,
            Location(place.file, row=number),
            number=number + 1,
            label=record.label,
        )
        for caption in record.captions or (None,):
            yield row._replace(caption=caption)


def column_of(place: SourceFile) -> str | None:
    """The column of images of a Parquet file, if it has one."""
    with (
        place.read_as("parquet", pa.ArrowException),
        place.open() as stream,
        pq.ParquetFile(stream) as file,
    ):
        return column(file.schema_arrow)


def column(schema: pa.Schema) -> str | None:
    """Where the bytes of the images are: a struct of bytes and path, or a known name of bytes."""
    for field in schema:
        if pa.types.is_struct(field.type):
            inner = {entry.name: entry.type for entry in field.type}
            if "path" in inner and _is_binary(inner.get("bytes")):
                return f"{field.name}.bytes"
    return next(
        (f.name for f in schema if f.name.lower() in BINARY_COLUMNS and _is_binary(f.type)), None
    )


def _is_binary(kind: pa.DataType | None) -> bool:
    return kind is not None and any(
        is_kind(kind)
        for is_kind in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    )


class Pictures:
    """The images of one Parquet file by row number, cheap where rows are asked for in order.

    Memory holds 128 images and what Parquet needs to decode a page.

    Args:
        stream: The file.

    Raises:
        ValueError: It has no column of images.
    """

    def __init__(self, stream: Any) -> None:
        self._file = pq.ParquetFile(stream, buffer_size=2**20)
        found = column(self._file.schema_arrow)
        if found is None:
            raise ValueError("it has no column of images")
        self._column = found
        metadata = self._file.metadata
        lengths = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        self._starts = [0, *itertools.accumulate(lengths)]  # of the row groups, and the end
        self._kept: deque[tuple[int, pa.Array[Any]]] = deque(maxlen=_KEPT)
        self._next = 0
        self._batches: Iterator[pa.RecordBatch] = iter(())

    def __getitem__(self, row: int) -> bytes | None:
        """The bytes of an image, or nothing where it is null or there is no such row."""
        if not 0 <= row < self._starts[-1]:
            return None
        group = bisect.bisect_right(self._starts, row) - 1
        if not self._kept or row < self._kept[0][0] or self._starts[group] > self._next:
            self._seek(group)
        while row >= self._next:
            batch = next(self._batches)
            values = batch.column(0)
            if isinstance(values, pa.StructArray):
                (values,) = values.flatten()
            self._kept.append((self._next, values))
            self._next += batch.num_rows
        for start, values in self._kept:
            if start <= row < start + len(values):
                content: bytes | None = values[row - start].as_py()
                return content
        raise AssertionError(row)

    def _seek(self, group: int) -> None:
        self._kept.clear()
        self._next = self._starts[group]
        groups = list(range(group, len(self._starts) - 1))
        self._batches = self._file.iter_batches(
            batch_size=_BATCH, row_groups=groups, columns=[self._column]
        )
