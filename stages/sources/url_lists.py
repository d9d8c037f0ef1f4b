"""Reads lists of records (csv, tsv, txt, parquet, jsonl) one block at a time."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.sources.captions import (
    MAX_CAPTIONS,
    Captions,
    captions_of,
    captions_of_cell,
    first_nonempty,
    is_blank,
)
from stages.sources.columns import Columns, Finder, Record, count_skipped, is_url, keys, kind_of
from stages.sources.encoding import text_of_bytes
from stages.sources.row import LONGEST
from stages.sources.source_files import SourceFile, is_image

__all__ = ["READERS", "lines", "objects", "records"]

_LONGEST = 16 * 2**20  # maximum characters of a line, and of a record of several lines
_ROWS = 4096  # maximum rows of a Parquet file decoded at once
_BYTES = 2**25  # target size of the rows decoded at once
_FEW = 32  # decoding fewer rows than this at once is slow
_SKEWED = 2**37  # bytes of a row group times rows at once, in case its long texts are adjacent
_TEXTS = 2**26  # maximum texts in the lists of a row group
_END = "\0the end of the file"  # a line added after the last one
_HEAD = 100  # records used to recognise the columns of a list without a header
_BROKEN = re.compile("[\udc80-\udcff]")  # bytes that are not UTF-8, after surrogateescape
_QUOTED = re.compile(r'"((?:[^"]|"")*)"(?=\t|\Z)')
_QUOTED_LINES = 100  # maximum lines of a quoted field of TSV

Cells = tuple[int, list[str] | None, str]
"""First line of a record, its cells, and why it has none."""


def records(source_file: SourceFile, finder: Finder) -> Iterator[Record]:
    """Yield the records of a list; a record that cannot be read has a `why`.

    Raises:
        ValueError: The file does not have the format of its extension, or lacks a column.
    """
    with source_file.read_as(source_file.kind, csv.Error, pa.ArrowException):
        yield from READERS[source_file.kind](source_file, finder)


def _read_delimited(source_file: SourceFile, finder: Finder) -> Iterator[Record]:
    """Read CSV and TSV.

    A file whose first record contains a URL or the name of an image has no header. If it has two
    columns, one holds the URLs and the other the captions, as in CC3M (caption, URL) and CC12M
    (URL, caption). If it has more, exactly one must hold URLs or image names, and exactly one must
    hold words.
    """
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST))
    with (
        source_file.open() as raw,
        io.TextIOWrapper(
            io.BufferedReader(raw), encoding="utf-8-sig", errors="surrogateescape", newline=""
        ) as stream,
    ):
        rows = (_read_tsv if source_file.kind == "tsv" else _read_csv)(stream, source_file)
        first = next((row for row in rows if row[1] is None or _is_filled(row[1])), None)
        if first is None:
            return
        head = first[1]
        if head is None:
            raise _refused(source_file, f"line {first[0]}, which must name the columns, {first[2]}")
        if not finder.has_named_columns and any(is_url(cell) or is_image(cell) for cell in head):
            sample = [first, *itertools.islice(rows, _HEAD - 1)]
            columns, names = _without_header(source_file, sample)
            rows = itertools.chain(sample, rows)
        else:
            columns, names = finder.find(head), head
        width = len(names)
        make_record = _reader_of_cells(source_file, columns, names)
        for number, cells, why in rows:
            if cells is None:
                yield Record(number, why=why)
                continue
            if not _is_filled(cells):
                continue
            if len(cells) > width and not _is_filled(cells[width:]):
                del cells[width:]
            if len(cells) != width:
                yield Record(number, why=f"{len(cells)} columns instead of {width}")
                continue
            yield make_record(number, cells)


def _is_filled(cells: Sequence[str]) -> bool:
    return bool(cells) and (cells[0] > "!" or any(map(str.strip, cells)))


def _reader_of_cells(
    source_file: SourceFile, columns: Columns, names: Sequence[str]
) -> Callable[[int, Sequence[str]], Record]:
    """Return a function that makes a record from a line number and cells."""
    caption_indices = [names.index(name) for name in columns.captions]
    url, uid, file, label = (
        None if name is None else names.index(name)
        for name in (columns.url, columns.uid, columns.file, columns.label)
    )

    def cell(cells: Sequence[str], index: int | None) -> str | None:
        return None if index is None or is_blank(cells[index]) else cells[index]

    def read(number: int, cells: Sequence[str]) -> Record:
        captions = first_nonempty(*[captions_of_cell(cells[index]) for index in caption_indices])
        if captions.skipped:
            count_skipped(source_file.notices, captions, f"{source_file.path}:{number}")
        return Record(
            number,
            cell(cells, url),
            captions.texts,
            cell(cells, uid),
            cell(cells, file),
            cell(cells, label),
        )

    return read


def _without_header(source_file: SourceFile, sample: Sequence[Cells]) -> tuple[Columns, list[str]]:
    """Recognise the columns of a list without a header by their content.

    Returns:
        The columns, and a name for each column: its position from 1.
    """
    width = len(sample[0][1] or ())
    fitting = [cells for _, cells, _ in sample if cells is not None and len(cells) == width]
    names = [str(index + 1) for index in range(width)]
    kinds = [kind_of([cells[index] for cells in fitting]) for index in range(width)]
    urls, files, words = (
        [name for name, kind in zip(names, kinds, strict=True) if kind == wanted]
        for wanted in ("url", "file", "words")
    )
    images = urls or files
    if width == 2 and len(images) == 1:
        words = [name for name in names if name not in images]
    if len(images) != 1 or len(words) != (width > 1):
        raise _refused(
            source_file,
            f"its first line does not name the columns, and they cannot be recognised: of {width} "
            f"columns, {len(urls)} hold URLs, {len(files)} image names and {len(words)} words; "
            "add a first line with the names of the columns, such as url,caption",
        )
    if width > 2:
        what = "URLs" if urls else "images"
        source_file.notices.add(
            "lists without a header, whose columns are recognised by their content",
            f"{source_file.path}: column {images[0]} holds {what}, column {words[0]} captions",
        )
    url, file = (images[0], None) if urls else (None, images[0])
    return Columns(url=url, captions=tuple(words), file=file), names


def _read_csv(stream: Any, source_file: SourceFile) -> Iterator[Cells]:
    """Yield the records of a CSV file; a space before a quote is allowed.

    `_END` is added as a last line, so that a quote that is never closed is noticed: it makes `_END`
    part of the last record.
    """
    first_line, length, is_broken = 1, 0, False

    def refused(why: str) -> ValueError:
        return _refused(source_file, f"{why} the record that begins at line {first_line}")

    def of_record() -> Iterator[str]:
        nonlocal length, is_broken
        for line in lines(stream, source_file):
            length += len(line)
            if length > _LONGEST:
                raise refused(f"a quote is not closed within {_LONGEST >> 20} MiB in")
            if not line.isascii() and _BROKEN.search(line):
                is_broken = True
            yield line
        yield _END

    reader = csv.reader(of_record(), skipinitialspace=True)
    for record in reader:
        if record == [_END]:
            return
        if record and record[-1].endswith(_END):
            raise refused("a quote is never closed in")
        yield (first_line, None, "is not UTF-8") if is_broken else (first_line, record, "")
        first_line, length, is_broken = reader.line_num + 1, 0, False


def _read_tsv(stream: Any, source_file: SourceFile) -> Iterator[Cells]:
    """Yield the records of a TSV file.

    A field is quoted if it begins with a quote, ends with a quote before a tab or a line end, and
    doubles every quote in between. A quoted field may contain tabs and line ends, but no further
    line with a cell that is a URL. Any other quote is ordinary text.
    """
    pending: list[str] = []
    number = 1
    source = lines(stream, source_file)
    while (line := pending.pop(0) if pending else next(source, None)) is not None:
        first_line, num_lines = number, 1
        text = line.rstrip("\r\n")
        if '"' not in text:
            cells: list[str] | None = text.split("\t")
        else:
            cells = _cells(text)
            while cells is None and num_lines < _QUOTED_LINES and len(text) < LONGEST:
                if num_lines > len(pending):
                    next_line = next(source, None)
                    if next_line is None:
                        break
                    pending.append(next_line)
                next_line = pending[num_lines - 1]
                if any(map(_is_scheme, next_line.split("\t"))):
                    break
                text = f"{text}\n{next_line.rstrip(chr(13) + chr(10))}"
                num_lines += 1
                cells = _cells(text)
            if cells is None:
                text, num_lines = line.rstrip("\r\n"), 1
                cells = _cells(text, is_last=True)
            del pending[: num_lines - 1]
        number += num_lines
        if not text.isascii() and _BROKEN.search(text):
            yield first_line, None, "is not UTF-8"
        else:
            yield first_line, cells, ""


def _is_scheme(cell: str) -> bool:
    return is_url(cell, bare=False)


def _cells(text: str, *, is_last: bool = False) -> list[str] | None:
    """Return the cells of a TSV record; None if a quoted cell may end on a later line."""
    cells = []
    at = 0
    while True:
        if text.startswith('"', at):
            if match := _QUOTED.match(text, at):
                cells.append(match[1].replace('""', '"'))
                at = match.end() + 1
                if match.end() == len(text):
                    return cells
                continue
            if not is_last and '"' not in text[at + 1 :].replace('""', "").rstrip("\n"):
                return None
        end = text.find("\t", at)
        if end < 0:
            cells.append(text[at:])
            return cells
        cells.append(text[at:end])
        at = end + 1


def lines(stream: Any, source_file: SourceFile) -> Iterator[Any]:
    """Yield the lines of a stream of text or bytes.

    Raises:
        ValueError: A line is too long.
    """
    while line := stream.readline(_LONGEST):
        if len(line) == _LONGEST:
            raise _refused(source_file, f"a line is longer than {_LONGEST >> 20} MiB")
        yield line


def _refused(source_file: SourceFile, why: str) -> ValueError:
    return ValueError(
        f"download.source cannot be read as {source_file.kind}: {source_file.path}: {why}"
    )


def _read_txt(source_file: SourceFile, finder: Finder) -> Iterator[Record]:
    """Read one URL per line."""
    is_first = True
    for number, line in _filled(source_file):
        try:
            url = line.decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            yield Record(number=number, why="is not UTF-8")
            continue
        if is_blank(url):
            continue
        if is_url(url):
            yield Record(number=number, url=url)
        elif is_first:
            raise _refused(
                source_file,
                f"line {number} is not a URL: {url[:40]!r}; a .txt list must have one URL per line",
            )
        else:
            yield Record(number=number, why="is not a URL")
        is_first = False


def _read_parquet(source_file: SourceFile, finder: Finder) -> Iterator[Record]:
    with source_file.open() as stream, pq.ParquetFile(stream, buffer_size=2**20) as plain:
        columns = finder.find(plain.schema_arrow.names)
        wanted = columns.wanted()
        nested = _nested(plain, columns)
        number = 0
        with pq.ParquetFile(
            stream, metadata=plain.metadata, read_dictionary=nested, buffer_size=2**20
        ) as file:
            for group in range(file.num_row_groups):
                rows = _rows_at_once(file, stream, group, wanted)
                for batch in file.iter_batches(rows, row_groups=[group], columns=wanted):
                    yield from _records_of_batch(batch, columns, source_file, number)
                    number += batch.num_rows


def _nested(file: pq.ParquetFile, columns: Columns) -> list[str]:
    """Return the Parquet paths of texts in lists, which are read as dictionaries to save memory.

    Raises:
        pyarrow.ArrowInvalid: A row group has more of them than can be read at once.
    """
    names = []
    for group in range(file.num_row_groups):
        metadata = file.metadata.row_group(group)
        for index in range(metadata.num_columns):
            column = metadata.column(index)
            name, _, inner = column.path_in_schema.partition(".")
            if name not in columns.captions or not inner or column.physical_type != "BYTE_ARRAY":
                continue
            if column.num_values > max(_TEXTS, MAX_CAPTIONS * metadata.num_rows):
                raise pa.ArrowInvalid(f"column {name!r} has too many texts in one row group")
            names.append(column.path_in_schema)
    return list(dict.fromkeys(names))


def _rows_at_once(file: pq.ParquetFile, stream: Any, group: int, names: list[str]) -> int:
    """Return how many rows of a row group to decode at once, so that they take about 32 MiB.

    A text that many rows share is stored once, in a dictionary, and decoding copies it for each
    row. So every row is assumed to have the longest text of the dictionary.
    """
    metadata = file.metadata.row_group(group)
    limit, dictionary_columns = _ROWS, []
    for index in range(metadata.num_columns):
        column = metadata.column(index)
        name, size = column.path_in_schema, max(column.total_uncompressed_size, 1)
        if name.split(".")[0] not in names or column.physical_type != "BYTE_ARRAY":
            continue
        limit = min(limit, max(_BYTES * metadata.num_rows // size, 1), max(_SKEWED // size, _FEW))
        if size * _FEW * 4 < _BYTES:  # no text is longer than all of them
            limit = min(limit, _BYTES // size)
        elif column.has_dictionary_page and "." not in name:
            dictionary_columns.append(name)
        elif "." in name or "DELTA_BYTE_ARRAY" in column.encodings:
            limit = min(limit, _FEW)
    with pq.ParquetFile(
        stream, metadata=file.metadata, read_dictionary=dictionary_columns, buffer_size=2**20
    ) as dictionaries:
        for name in dictionary_columns:
            for batch in dictionaries.iter_batches(16, row_groups=[group], columns=[name]):
                values: Any = batch.column(0)
                lengths: Any = pc.binary_length(values.dictionary)
                if len(lengths):
                    limit = min(limit, max(_BYTES // max(int(lengths.to_numpy().max()), 1), 1))
                    break
    return limit


def _read_jsonl(source_file: SourceFile, finder: Finder) -> Iterator[Record]:
    names = keys((entry for _, entry, _ in objects(source_file) if entry is not None), finder.named)
    if names:
        finder.find(names, is_all=False)
        has_captions = False
        for number, entry, why in objects(source_file):
            record = finder.record(number, entry) if not why else Record(number=number, why=why)
            has_captions = has_captions or bool(record.captions) or record.label is not None
            yield record
        if not has_captions:
            finder.no_captions(names)
    elif (first := next(_filled(source_file), None)) is not None:
        raise ValueError(
            f"download.source must have one JSON object per line: {source_file.path} starts with "
            f"{first[1][:40]!r}"
        )


def objects(source_file: SourceFile) -> Iterator[tuple[int, dict[str, Any] | None, str]]:
    """Yield for each non-blank line its number, its object, and why it has none."""
    for number, line in _filled(source_file):
        try:
            entry = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            yield number, None, "is not UTF-8"
        except (ValueError, RecursionError) as error:
            yield number, None, f"is not JSON ({str(error)[:80]})"
        else:
            is_object = isinstance(entry, dict)
            yield number, entry if is_object else None, "" if is_object else "is not a JSON object"


def _filled(source_file: SourceFile) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the bytes of each line that is not blank."""
    with source_file.open() as raw, io.BufferedReader(raw) as stream:
        for number, line in enumerate(lines(stream, source_file), 1):
            if line.strip():
                yield number, line


READERS = {
    "csv": _read_delimited,
    "tsv": _read_delimited,
    "txt": _read_txt,
    "parquet": _read_parquet,
    "jsonl": _read_jsonl,
}


def _records_of_batch(
    batch: pa.RecordBatch, columns: Columns, source_file: SourceFile, before: int
) -> Iterator[Record]:
    nulls: list[str | None] = [None] * batch.num_rows

    def column(name: str | None) -> list[str | None]:
        return nulls if name is None else _texts(batch.column(name), name, source_file)

    uids = nulls if columns.uid is None else _uids(batch.column(columns.uid))
    label = columns.label if columns.label in batch.schema.names else None
    labels = nulls if label is None else _uids(batch.column(label))
    caption_columns = [_captions(batch.column(name)) for name in columns.captions]
    urls, files = column(columns.url), column(columns.file)
    captions_of_rows = (
        zip(*caption_columns, strict=True) if caption_columns else itertools.repeat(())
    )
    for index, captions in zip(range(batch.num_rows), captions_of_rows, strict=False):
        number = before + index + 1
        chosen = first_nonempty(*captions)
        if chosen.skipped:
            count_skipped(source_file.notices, chosen, f"{source_file.path}:{number}")
        yield Record(number, urls[index], chosen.texts, uids[index], files[index], labels[index])


def _captions(column: pa.Array[Any]) -> Iterator[Captions]:
    """Yield the captions of each value of a column; lists are read one at a time to save memory."""
    if _is_text(column.type):
        yield from map(captions_of, _strings(column))
    elif isinstance(column, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        values: Any = column.values
        if isinstance(column, pa.FixedSizeListArray):
            size = column.type.list_size
            starts: Any = [(column.offset + index) * size for index in range(len(column) + 1)]
        else:
            starts = column.offsets.to_pylist()
        for index, is_valid in enumerate(column.is_valid().to_pylist()):
            number = min(starts[index + 1] - starts[index], MAX_CAPTIONS + 1) * is_valid
            yield captions_of(_listed(values.slice(starts[index], number)))
    else:
        try:
            yield from map(captions_of, column.to_pylist())
        except (ValueError, OverflowError, pa.ArrowException):  # such as dates that Python lacks
            yield from map(captions_of, [object()] * len(column))


def _listed(values: pa.Array[Any]) -> list[Any]:
    """Return the values of a list; texts stop after `LONGEST` characters in total."""
    if not _is_text(values.type):
        return values.to_pylist()
    if isinstance(values, pa.DictionaryArray):
        indices: Any = values.indices.to_pylist()
        scalars: list[Any] = [None if i is None else values.dictionary[i] for i in indices]
    else:
        scalars = list(values)
    texts: list[str | bytes | None] = []
    length = 0
    for scalar in scalars:
        is_text = scalar is not None and scalar.is_valid
        texts.append(_decoded(scalar.as_buffer().to_pybytes()) if is_text else None)
        length += len(texts[-1] or "")
        if length > LONGEST:
            break
    return texts


def _texts(column: pa.Array[Any], name: str, source_file: SourceFile) -> list[str | None]:
    """Return a column as strings, with None for blanks and bytes in an unknown encoding."""
    if not _is_text(column.type):
        try:
            column = column.cast(pa.string())
        except pa.ArrowException as error:  # lists and structs are not text
            raise ValueError(
                f"download.source: column {name!r} of {source_file.path} must hold text, but holds "
                f"{column.type}; set download.url_column to another column"
            ) from error
    values = [
        text_of_bytes(value) if isinstance(value, bytes) else value for value in _strings(column)
    ]
    return [None if value is None or is_blank(value) else value for value in values]


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(
        is_kind(kind)
        for is_kind in (
            *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
            *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
            *(pa.types.is_fixed_size_binary, pa.types.is_null),
        )
    )


def _strings(column: pa.Array[Any]) -> list[str | bytes | None]:
    """Return the values of a text column; values that are not UTF-8 are returned as bytes."""
    if pa.types.is_null(column.type):
        return [None] * len(column)
    # Read as bytes, since a string column of a file may hold bytes that are not UTF-8.
    if isinstance(column, pa.DictionaryArray):
        texts = column.dictionary.cast(pa.large_binary())
        column = pa.DictionaryArray.from_arrays(column.indices, texts).dictionary_decode()
    else:
        column = column.cast(pa.large_binary())
    values: list[bytes | None] = column.to_pylist()
    return [None if value is None else _decoded(value) for value in values]


def _decoded(value: bytes) -> str | bytes:
    try:
        return value.decode()[: LONGEST + 1]
    except UnicodeDecodeError:
        return value


def _uids(column: pa.Array[Any]) -> list[str | None]:
    """Return a column of ids as strings; all None if it holds neither text nor integers."""
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
