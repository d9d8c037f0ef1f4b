"""Lists of records, csv, tsv, parquet and jsonl, read a block at a time."""

from __future__ import annotations

import csv
import io
import itertools
import json
import logging
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.sources.columns import Columns, Finder, text_of, uid_text
from stages.sources.place import Place
from stages.sources.row import Row, decode

__all__ = ["READERS", "lines", "records", "rows", "texts"]

logger = logging.getLogger(__name__)

Record = tuple[str | None, str | None, str | None, str | None]
"""The url, caption, uid and file of a record, each null where it has none."""

BATCH = 4096
_LONGEST = 16 * 2**20  # characters of a line
_END = "\0the end of the file"  # a line that is put after the last one
_HEAD = 1000  # records of JSON Lines that tell the columns


def rows(place: Place, finder: Finder) -> Iterator[Row]:
    """The rows of a list of URLs."""
    for url, caption, uid, _ in records(place, finder):
        yield Row(url or "", caption, uid)


def records(place: Place, finder: Finder) -> Iterator[Record]:
    """The records of a list; one that cannot be read is empty.

    Raises:
        ValueError: The file cannot be read as what its name says, or lacks a column.
    """
    with place.read_as(place.kind, csv.Error, pa.ArrowException):
        yield from READERS[place.kind](place, finder)


def _read_delimited(place: Place, finder: Finder) -> Iterator[Record]:
    """CSV, and TSV, whose quotes are part of the text.

    A file whose first record holds a URL has no header: that column has the URLs, the first other
    column the captions, as in CC3M (caption, URL) and CC12M (URL, caption).
    """
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST))
    with (
        place.open() as raw,
        io.TextIOWrapper(
            io.BufferedReader(raw), encoding="utf-8-sig", errors="replace", newline=""
        ) as stream,
    ):
        reader = csv.reader(
            itertools.chain(lines(stream, place), [_END]),
            delimiter="\t" if place.kind == "tsv" else ",",
            quoting=csv.QUOTE_NONE if place.kind == "tsv" else csv.QUOTE_MINIMAL,
        )
        found = _closed(reader, place)
        first = next((record for record in found if any(map(str.strip, record))), None)
        if first is None:
            return
        urls = [index for index, value in enumerate(first) if _looks_like_url(value)]
        if urls and not finder.is_told:
            others = [index for index in range(len(first)) if index not in urls]
            indices: list[int | None] = [urls[0], others[0] if others else None, None, None]
            found = itertools.chain([first], found)
        else:
            columns = finder.find(first)
            names = (columns.url, columns.caption, columns.uid, columns.file)
            indices = [None if name is None else first.index(name) for name in names]
        wrong = 0
        for record in found:
            if len(record) == len(first):
                url, caption, uid, file = (
                    None if index is None else record[index] for index in indices
                )
                yield url, caption, uid, file
            elif record:
                wrong += 1
                yield None, None, None, None
    if wrong:
        logger.warning("%s: %d records have a wrong number of columns", place.path, wrong)


def _closed(reader: Any, place: Place) -> Iterator[list[str]]:
    """The records before `_END`, which an open quote would make part of the last."""
    began = 1
    for record in reader:
        if record == [_END]:
            return
        if record and record[-1].endswith(_END):
            raise ValueError(
                f"download.source cannot be read as {place.kind}: {place.path}: a quote in the "
                f"record that begins at line {began} is never closed"
            )
        yield record
        began = reader.line_num + 1


def lines(stream: Any, place: Place) -> Iterator[Any]:
    """The lines of a stream of text or of bytes."""
    while line := stream.readline(_LONGEST):
        if len(line) == _LONGEST:
            raise ValueError(
                f"download.source cannot be read as {place.kind}: {place.path}: a line is longer "
                f"than {_LONGEST >> 20} MiB"
            )
        yield line


def _looks_like_url(text: str) -> bool:
    return text.strip().lower().startswith(("http://", "https://", "//"))


def _read_parquet(place: Place, finder: Finder) -> Iterator[Record]:
    with place.open() as stream, pq.ParquetFile(stream, buffer_size=2**20) as file:
        columns = finder.find(file.schema_arrow.names)
        for batch in file.iter_batches(batch_size=BATCH, columns=columns.wanted()):
            yield from _of_batch(batch, columns, place)


def _read_jsonl(place: Place, finder: Finder) -> Iterator[Record]:
    with place.open() as raw, io.BufferedReader(raw) as stream:
        filled = (line for line in lines(stream, place) if line.strip())
        # A record may leave out a key, so the columns are those of many records.
        head = list(itertools.islice(filled, _HEAD))
        if not head:
            return
        keys = list(dict.fromkeys(key for line in head for key in _json_object(line)))
        if not keys:
            raise ValueError(
                f"download.source must have one JSON object a line: {place.path} starts with "
                f"{head[0][:40]!r}"
            )
        columns = finder.find(keys)
        for line in itertools.chain(head, filled):
            yield of_object(_json_object(line), columns)


READERS = {
    "csv": _read_delimited,
    "tsv": _read_delimited,
    "parquet": _read_parquet,
    "jsonl": _read_jsonl,
}


def of_object(record: dict[str, Any], columns: Columns) -> Record:
    """What a JSON object has under the names of the columns."""

    def get(name: str | None) -> Any:
        return None if name is None else record.get(name)

    return (
        text_of(get(columns.url)),
        text_of(get(columns.caption)),
        uid_text(get(columns.uid)),
        text_of(get(columns.file)),
    )


def _json_object(line: bytes) -> dict[str, Any]:
    """The object on a line; empty where there is none."""
    try:
        record = json.loads(decode(line))
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _of_batch(batch: pa.RecordBatch, columns: Columns, place: Place) -> Iterator[Record]:
    nothing: list[str | None] = [None] * batch.num_rows

    def column(name: str | None) -> list[str | None]:
        return nothing if name is None else texts(batch.column(name), name, place)

    uids = nothing if columns.uid is None else _uids(batch.column(columns.uid))
    return zip(
        column(columns.url), column(columns.caption), uids, column(columns.file), strict=True
    )


def texts(column: pa.Array[Any], name: str, place: Place) -> list[str | None]:
    """A column as strings; what is not UTF-8 becomes U+FFFD."""
    try:
        values: list[bytes | None] = column.cast(pa.string()).cast(pa.binary()).to_pylist()
    except pa.ArrowInvalid:
        values = column.cast(pa.binary()).to_pylist()
    except pa.ArrowNotImplementedError as error:
        raise ValueError(
            f"download.source: column {name!r} of {place.path} must hold text, holds "
            f"{column.type}; name another with download.url_column or download.caption_column"
        ) from error
    return [None if value is None else value.decode("utf-8", "replace") for value in values]


def _uids(column: pa.Array[Any]) -> list[str | None]:
    """A column of ids as strings; null where it holds neither text nor whole numbers."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (
        pa.types.is_integer(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    ):
        return [None] * len(column)
    try:
        return column.cast(pa.string()).to_pylist()
    except pa.ArrowInvalid:
        values = column.cast(pa.binary()).to_pylist()
        return [None if value is None else value.decode("utf-8", "replace") for value in values]
