"""Reads Parquet files with an image column: Hugging Face's, img2dataset's, and this project's."""

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

__all__ = ["ParquetImages", "column", "column_of", "rows"]

BINARY_COLUMNS = frozenset({"image", "img", "image_bytes", "jpg", "jpeg", "png", "webp"})
"""Names, in any case, that mark a column of plain bytes as an image column."""

_BATCH = 16  # rows read at once
_KEPT = 8  # batches kept in memory, since threads do not read exactly in order


def rows(source_file: SourceFile, source: Source, image: str) -> Iterator[Row]:
    """Yield a row for each caption of each image of a file.

    A null image gives a row too; it fails when its image is read.

    Args:
        source_file: The file.
        source: The source, which may name columns.
        image: The image column, as `column_of` returns it.

    Raises:
        ValueError: The file cannot be read, or lacks a column that the source names.
    """
    finder = Finder(source_file.path, source, None, image.split(".")[0], source_file.notices)
    for number, record in enumerate(records(source_file, finder)):
        row = Row(
            record.url or source_file.url(number),
            None,
            record.uid,
            Location(source_file.file, row=number),
            number=number + 1,
            label=record.label,
        )
        for caption in record.captions or (None,):
            yield row._replace(caption=caption)


def column_of(source_file: SourceFile) -> str | None:
    """Return the image column of a Parquet file; None if it has none."""
    with (
        source_file.read_as("parquet", pa.ArrowException),
        source_file.open() as stream,
        pq.ParquetFile(stream) as file,
    ):
        return column(file.schema_arrow)


def column(schema: pa.Schema) -> str | None:
    """Return the column with the image bytes, or None.

    It is the field `bytes` of a struct with `path`, or a column of bytes with a known name.
    """
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


class ParquetImages:
    """The images of one Parquet file by row number; fast if rows are read in order.

    Up to 128 images are held in memory, and what Parquet needs to decode a page.

    Args:
        stream: The file.

    Raises:
        ValueError: The file has no image column.
    """

    def __init__(self, stream: Any) -> None:
        self._file = pq.ParquetFile(stream, buffer_size=2**20)
        image_column = column(self._file.schema_arrow)
        if image_column is None:
            raise ValueError("it has no image column")
        self._column = image_column
        metadata = self._file.metadata
        lengths = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        self._starts = [0, *itertools.accumulate(lengths)]  # first row of each group, and the end
        self._kept: deque[tuple[int, pa.Array[Any]]] = deque(maxlen=_KEPT)
        self._next = 0
        self._batches: Iterator[pa.RecordBatch] = iter(())

    def __getitem__(self, row: int) -> bytes | None:
        """Return the bytes of an image; None if it is null or there is no such row."""
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
