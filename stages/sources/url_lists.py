"""Lists of records, csv, tsv, parquet and jsonl, read a block at a time."""

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

from stages.sources.captions import MOST, Captions, captions_of, is_blank, joined, of_cell
from stages.sources.columns import Columns, Finder, Record, is_url, keys, kind_of, note_odd
from stages.sources.encoding import text_of_bytes
from stages.sources.row import LONGEST
from stages.sources.source_files import SourceFile, is_image

__all__ = ["READERS", "lines", "objects", "records"]

_LONGEST = 16 * 2**20  # characters of a line, and of a record of several
_ROWS = 4096  # of a Parquet file at once, where they are narrow
_BYTES = 2**25  # that these take about
_FEW = 32  # of them, however wide, cost no more than the work on each
_SKEWED = 2**37  # bytes of a row group times its rows at once, as the wide ones may lie together
_TEXTS = 2**26  # of the lists of a row group
_END = "\0the end of the file"  # a line that is put after the last one
_HEAD = 100  # records that tell the columns of a list without a header
_BROKEN = re.compile("[\udc80-\udcff]")  # what is not UTF-8, as surrogateescape decodes it
_QUOTED = re.compile(r'"((?:[^"]|"")*)"(?=\t|\Z)')
_QUOTED_LINES = 100  # that a quoted field of TSV may have

Cells = tuple[int, list[str] | None, str]
"""The line that a record begins at, its cells, and what is wrong where it has none."""


def records(place: SourceFile, finder: Finder) -> Iterator[Record]:
    """The records of a list; one that cannot be read says why.

    Raises:
        ValueError: The file cannot be read as what its name says, or lacks a column.
    """
    with place.read_as(place.kind, csv.Error, pa.ArrowException):
        yield from READERS[place.kind](place, finder)


def _read_delimited(place: SourceFile, finder: Finder) -> Iterator[Record]:
    """CSV and TSV.

    A file whose first record holds a URL, or the name of an image, has no header. Of two columns
    that with URLs has the URLs and the other the captions, as in CC3M (caption, URL) and CC12M
    (URL, caption); of more, one must plainly hold URLs and one words.
    """
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST))
    with (
        place.open() as raw,
        io.TextIOWrapper(
            io.BufferedReader(raw), encoding="utf-8-sig", errors="surrogateescape", newline=""
        ) as stream,
    ):
        found = (_tabbed if place.kind == "tsv" else _commas)(stream, place)
        first = next((one for one in found if one[1] is None or _is_filled(one[1])), None)
        if first is None:
            return
        head = first[1]
        if head is None:
            raise _refused(place, f"line {first[0]}, which should name the columns, {first[2]}")
        if not finder.is_told and any(is_url(cell) or is_image(cell) for cell in head):
            sample = [first, *itertools.islice(found, _HEAD - 1)]
            columns, names = _without_header(place, sample)
            found = itertools.chain(sample, found)
        else:
            columns, names = finder.find(head), head
        width = len(names)
        read = _reader_of_cells(place, columns, names)
        for number, cells, why in found:
            if cells is None:
                yield Record(number, why=why)
                continue
            if not _is_filled(cells):
                continue
            if len(cells) > width and not _is_filled(cells[width:]):
                del cells[width:]
            if len(cells) != width:
                yield Record(number, why=f"{len(cells)} columns in place of {width}")
                continue
            yield read(number, cells)


def _is_filled(cells: Sequence[str]) -> bool:
    return bool(cells) and (cells[0] > "!" or any(map(str.strip, cells)))


def _reader_of_cells(
    place: SourceFile, columns: Columns, names: Sequence[str]
) -> Callable[[int, Sequence[str]], Record]:
    """What makes a record of the line and the cells of each."""
    places = [names.index(name) for name in columns.captions]
    url, uid, file, label = (
        None if name is None else names.index(name)
        for name in (columns.url, columns.uid, columns.file, columns.label)
    )

    def cell(cells: Sequence[str], index: int | None) -> str | None:
        return None if index is None or is_blank(cells[index]) else cells[index]

    def read(number: int, cells: Sequence[str]) -> Record:
        found = joined(*[of_cell(cells[index]) for index in places])
        if found.odd:
            note_odd(place.notices, found, f"{place.path}:{number}")
        return Record(
            number,
            cell(cells, url),
            found.texts,
            cell(cells, uid),
            cell(cells, file),
            cell(cells, label),
        )

    return read


def _without_header(place: SourceFile, sample: Sequence[Cells]) -> tuple[Columns, list[str]]:
    """The columns of a list without a header, by what they hold, and names for all of them."""
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
            place,
            f"its first line names no columns, and of its {width} columns {len(urls)} hold URLs, "
            f"{len(files)} images, and {len(words)} plainly words, so that it is not clear "
            "what is meant; write the names of the columns in a first line, as in url,caption",
        )
    if width > 2:
        what = "URLs" if urls else "images"
        place.notices.add(
            "lists without a line that names the columns, told by what these hold",
            f"{place.path}: column {images[0]} has the {what}, column {words[0]} the captions",
        )
    url, file = (images[0], None) if urls else (None, images[0])
    return Columns(url=url, captions=tuple(words), file=file), names


def _commas(stream: Any, place: SourceFile) -> Iterator[Cells]:
    """The records of a CSV before `_END`, which an open quote would make part of the last.

    A blank before a quote is forgiven.
    """
    began, length, is_broken = 1, 0, False

    def refused(why: str) -> ValueError:
        return _refused(place, f"{why} the record that begins at line {began}")

    def of_record() -> Iterator[str]:
        nonlocal length, is_broken
        for line in lines(stream, place):
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
        yield (began, None, "is not UTF-8") if is_broken else (began, record, "")
        began, length, is_broken = reader.line_num + 1, 0, False


def _tabbed(stream: Any, place: SourceFile) -> Iterator[Cells]:
    """The records of a TSV.

    A field is quoted where it begins with a quote, its end is a quote before a tab or the end of a
    line, and every quote between is doubled; it may hold tabs and line ends, though no line that
    has a URL of its own after a tab or before one. Any other quote is text.
    """
    waiting: list[str] = []
    number = 1
    source = lines(stream, place)
    while (line := waiting.pop(0) if waiting else next(source, None)) is not None:
        began, taken = number, 1
        text = line.rstrip("\r\n")
        if '"' not in text:
            cells: list[str] | None = text.split("\t")
        else:
            cells = _cells(text)
            while cells is None and taken < _QUOTED_LINES and len(text) < LONGEST:
                if taken > len(waiting):
                    more = next(source, None)
                    if more is None:
                        break
                    waiting.append(more)
                more = waiting[taken - 1]
                if any(map(_is_scheme, more.split("\t"))):
                    break
                text = f"{text}\n{more.rstrip(chr(13) + chr(10))}"
                taken += 1
                cells = _cells(text)
            if cells is None:
                text, taken = line.rstrip("\r\n"), 1
                cells = _cells(text, is_last=True)
            del waiting[: taken - 1]
        number += taken
        if not text.isascii() and _BROKEN.search(text):
            yield began, None, "is not UTF-8"
        else:
            yield began, cells, ""


def _is_scheme(cell: str) -> bool:
    return is_url(cell, bare=False)


def _cells(text: str, *, is_last: bool = False) -> list[str] | None:
    """The cells of a record of TSV; nothing where a quoted one may end on a later line."""
    cells = []
    at = 0
    while True:
        if text.startswith('"', at):
            if found := _QUOTED.match(text, at):
                cells.append(found[1].replace('""', '"'))
                at = found.end() + 1
                if found.end() == len(text):
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


def lines(stream: Any, place: SourceFile) -> Iterator[Any]:
    """The lines of a stream of text or of bytes."""
    while line := stream.readline(_LONGEST):
        if len(line) == _LONGEST:
            raise _refused(place, f"a line is longer than {_LONGEST >> 20} MiB")
        yield line


def _refused(place: SourceFile, why: str) -> ValueError:
    return ValueError(f"download.source cannot be read as {place.kind}: {place.path}: {why}")


def _read_txt(place: SourceFile, finder: Finder) -> Iterator[Record]:
    """URLs, one a line."""
    is_first = True
    for number, line in _filled(place):
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
                place,
                f"line {number} is no URL: {url[:40]!r}; a .txt list has a URL a line",
            )
        else:
            yield Record(number=number, why="no URL")
        is_first = False


def _read_parquet(place: SourceFile, finder: Finder) -> Iterator[Record]:
    with place.open() as stream, pq.ParquetFile(stream, buffer_size=2**20) as plain:
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
                    yield from _of_batch(batch, columns, place, number)
                    number += batch.num_rows


def _nested(file: pq.ParquetFile, columns: Columns) -> list[str]:
    """The paths of the texts in lists, which are read as a dictionary, each once.

    Raises:
        ValueError: A row group has more of them than can be read at once.
    """
    names = []
    for group in range(file.num_row_groups):
        about = file.metadata.row_group(group)
        for index in range(about.num_columns):
            column = about.column(index)
            name, _, inner = column.path_in_schema.partition(".")
            if name not in columns.captions or not inner or column.physical_type != "BYTE_ARRAY":
                continue
            if column.num_values > max(_TEXTS, MOST * about.num_rows):
                raise pa.ArrowInvalid(f"column {name!r} has too many texts in one row group")
            names.append(column.path_in_schema)
    return list(dict.fromkeys(names))


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
        if name.split(".")[0] not in names or column.physical_type != "BYTE_ARRAY":
            continue
        most = min(most, max(_BYTES * about.num_rows // size, 1), max(_SKEWED // size, _FEW))
        if size * _FEW * 4 < _BYTES:  # no text is longer than all of them
            most = min(most, _BYTES // size)
        elif column.has_dictionary_page and "." not in name:
            packed.append(name)
        elif "." in name or "DELTA_BYTE_ARRAY" in column.encodings:
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


def _read_jsonl(place: SourceFile, finder: Finder) -> Iterator[Record]:
    names = keys((one for _, one, _ in objects(place) if one is not None), finder.named)
    if names:
        finder.find(names, is_all=False)
        is_told = False
        for number, entry, why in objects(place):
            record = finder.record(number, entry) if not why else Record(number=number, why=why)
            is_told = is_told or bool(record.captions) or record.label is not None
            yield record
        if not is_told:
            finder.no_captions(names)
    elif (first := next(_filled(place), None)) is not None:
        raise ValueError(
            f"download.source must have one JSON object a line: {place.path} starts with "
            f"{first[1][:40]!r}"
        )


def objects(place: SourceFile) -> Iterator[tuple[int, dict[str, Any] | None, str]]:
    """The number of each line that is not blank, its object, and what is wrong if it has none."""
    for number, line in _filled(place):
        try:
            entry = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            yield number, None, "is not UTF-8"
        except (ValueError, RecursionError) as error:
            yield number, None, f"is no JSON ({str(error)[:80]})"
        else:
            is_object = isinstance(entry, dict)
            yield number, entry if is_object else None, "" if is_object else "is no JSON object"


def _filled(place: SourceFile) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, by their numbers."""
    with place.open() as raw, io.BufferedReader(raw) as stream:
        for number, line in enumerate(lines(stream, place), 1):
            if line.strip():
                yield number, line


READERS = {
    "csv": _read_delimited,
    "tsv": _read_delimited,
    "txt": _read_txt,
    "parquet": _read_parquet,
    "jsonl": _read_jsonl,
}


def _of_batch(
    batch: pa.RecordBatch, columns: Columns, place: SourceFile, before: int
) -> Iterator[Record]:
    nothing: list[str | None] = [None] * batch.num_rows

    def column(name: str | None) -> list[str | None]:
        return nothing if name is None else _texts(batch.column(name), name, place)

    uids = nothing if columns.uid is None else _uids(batch.column(columns.uid))
    label = columns.label if columns.label in batch.schema.names else None
    labels = nothing if label is None else _uids(batch.column(label))
    places = [_captions(batch.column(name)) for name in columns.captions]
    urls, files = column(columns.url), column(columns.file)
    told = zip(*places, strict=True) if places else itertools.repeat(())
    for index, captions in zip(range(batch.num_rows), told, strict=False):
        number = before + index + 1
        found = joined(*captions)
        if found.odd:
            note_odd(place.notices, found, f"{place.path}:{number}")
        yield Record(number, urls[index], found.texts, uids[index], files[index], labels[index])


def _captions(column: pa.Array[Any]) -> Iterator[Captions]:
    """What each value of a column of captions holds; lists one at a time, as they may be wide."""
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
            number = min(starts[index + 1] - starts[index], MOST + 1) * is_valid
            yield captions_of(_listed(values.slice(starts[index], number)))
    else:
        try:
            yield from map(captions_of, column.to_pylist())
        except (ValueError, OverflowError, pa.ArrowException):  # as of dates beyond those of Python
            yield from map(captions_of, [object()] * len(column))


def _listed(some: pa.Array[Any]) -> list[Any]:
    """The values of a list, of texts no more than tells that they are too long."""
    if not _is_text(some.type):
        return some.to_pylist()
    if isinstance(some, pa.DictionaryArray):
        indices: Any = some.indices.to_pylist()
        found: list[Any] = [None if i is None else some.dictionary[i] for i in indices]
    else:
        found = list(some)
    texts: list[str | bytes | None] = []
    length = 0
    for one in found:
        is_text = one is not None and one.is_valid
        texts.append(_decoded(one.as_buffer().to_pybytes()) if is_text else None)
        length += len(texts[-1] or "")
        if length > LONGEST:  # of which no more is read
            break
    return texts


def _texts(column: pa.Array[Any], name: str, place: SourceFile) -> list[str | None]:
    """A column as strings; null where it is blank, or bytes in no known encoding."""
    if not _is_text(column.type):
        try:
            column = column.cast(pa.string())
        except pa.ArrowException as error:  # lists, structs and the like are no text
            raise ValueError(
                f"download.source: column {name!r} of {place.path} must hold text, holds "
                f"{column.type}; name another with download.url_column"
            ) from error
    found = [
        text_of_bytes(value) if isinstance(value, bytes) else value for value in _strings(column)
    ]
    return [None if value is None or is_blank(value) else value for value in found]


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
    """The values of a column of texts; as bytes those that are no UTF-8."""
    if pa.types.is_null(column.type):
        return [None] * len(column)
    # As bytes, since a file may hold what is no UTF-8 under the type of texts.
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
