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
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.sources.columns import Columns, Finder, keys, text_of, uid_text
from stages.sources.place import Place
from stages.sources.row import Row, decode

__all__ = ["READERS", "lines", "records", "rows", "texts"]

logger = logging.getLogger(__name__)

Record = tuple[str | None, str | None, str | None, str | None]
"""The url, caption, uid and file of a record, each null where it has none."""

_LONGEST = 16 * 2**20  # characters of a line, and of a record of several
_ROWS = 4096  # of a Parquet file at once, where they are narrow
_BYTES = 2**25  # that these take about
_FEW = 32  # of them, however wide, cost no more than the work on each
_SKEWED = 2**37  # bytes of a row group times its rows at once, as the wide ones may lie together
_END = "\0the end of the file"  # a line that is put after the last one


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
        found = _delimited(stream, place)
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


def _delimited(stream: Any, place: Place) -> Iterator[list[str]]:
    """The records before `_END`, which an open quote would make part of the last."""
    began, length = 1, 0

    def refused(why: str) -> ValueError:
        return ValueError(
            f"download.source cannot be read as {place.kind}: {place.path}: {why} the record that "
            f"begins at line {began}"
        )

    def of_record() -> Iterator[str]:
        nonlocal length
        for line in lines(stream, place):
            length += len(line)
            if length > _LONGEST:
                raise refused(f"a quote is not closed within {_LONGEST >> 20} MiB in")
            yield line
        yield _END

    reader = csv.reader(
        of_record(),
        delimiter="\t" if place.kind == "tsv" else ",",
        quoting=csv.QUOTE_NONE if place.kind == "tsv" else csv.QUOTE_MINIMAL,
    )
    for record in reader:
        if record == [_END]:
            return
        if record and record[-1].endswith(_END):
            raise refused("a quote is never closed in")
        yield record
        began, length = reader.line_num + 1, 0


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
        wanted = columns.wanted()
        for group in range(file.num_row_groups):
            rows = _rows_at_once(file, stream, group, wanted)
            for batch in file.iter_batches(rows, row_groups=[group], columns=wanted):
                yield from _of_batch(batch, columns, place)


def _rows_at_once(file: pq.ParquetFile, stream: Any, group: int, names: list[str]) -> int:
    """How many rows of a row group to decode at once, so that they take some 32 MiB.

    A text that many rows share lies once in the file, in a dictionary, and decoding copies it for
    each of them: the longest text of a dictionary counts as that of every row.
    """
    about = file.metadata.row_group(group)
    most, packed = _ROWS, []
    for index in range(about.num_columns):
        column = about.column(index)
        name, size = column.path_in_schema, max(column.total_uncompressed_size, 1)
        if name not in names or column.physical_type != "BYTE_ARRAY":
            continue
        most = min(most, max(_BYTES * about.num_rows // size, 1), max(_SKEWED // size, _FEW))
        if size * _FEW * 4 < _BYTES:  # no text is longer than all of them
            most = min(most, _BYTES // size)
        elif column.has_dictionary_page:
            packed.append(name)
        elif "DELTA_BYTE_ARRAY" in column.encodings:
            most = min(most, _FEW)
    with pq.ParquetFile(
        stream, metadata=file.metadata, read_dictionary=packed, buffer_size=2**20
    ) as dictionaries:
        for name in packed:
            for batch in dictionaries.iter_batches(16, row_groups=[group], columns=[name]):
                packs: Any = batch.column(0)
                lengths: Any = pc.binary_length(packs.dictionary)
                if len(lengths):
                    most = min(most, max(_BYTES // max(int(lengths.to_numpy().max()), 1), 1))
                    break
    return most


def _read_jsonl(place: Place, finder: Finder) -> Iterator[Record]:
    names = keys(map(_json_object, _filled(place)))
    if names:
        columns = finder.find(names)
        for line in _filled(place):
            yield of_object(_json_object(line), columns)
    elif (first := next(_filled(place), None)) is not None:
        raise ValueError(
            f"download.source must have one JSON object a line: {place.path} starts with "
            f"{first[:40]!r}"
        )


def _filled(place: Place) -> Iterator[bytes]:
    """The lines that are not blank."""
    with place.open() as raw, io.BufferedReader(raw) as stream:
        yield from filter(bytes.strip, lines(stream, place))


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
