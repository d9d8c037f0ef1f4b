"""Finds the columns of a list, or the keys of a record, that hold URLs, captions, ids and files."""

from __future__ import annotations

import difflib
import functools
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from models.text.conversation import Turn, as_text
from stages.sources.captions import (
    Captions,
    captions_of,
    drop_lone_surrogates,
    first_nonempty,
    is_blank,
)
from stages.sources.config import Conversations, Source
from stages.sources.notices import Notices
from stages.sources.row import LONGEST, clean
from stages.sources.source_files import is_image

__all__ = [
    "CAPTION_COLUMNS",
    "FILE_COLUMNS",
    "UID_COLUMNS",
    "URL_COLUMNS",
    "Columns",
    "Finder",
    "Record",
    "count_skipped",
    "is_url",
    "keys",
    "kind_of",
    "recognise",
    "text_of",
    "uid_text",
]

URL_COLUMNS = ("url", "image_url", "img_url", "imageurl", "uri", "link", "coco_url")
CAPTION_COLUMNS = (
    *("captions", "texts", "caption", "text", "alt_text", "alttext", "alt", "title", "txt"),
    *("sentences", "raw", "raw_caption"),
)
UID_COLUMNS = ("uid", "id", "sample_id", "key", "image_id")
FILE_COLUMNS = (
    *("file_name", "filename", "image", "path", "file", "image_path", "img_path", "image_file"),
    *("image_file_name", "filepath", "img"),
)
"""Recognised names, in order of preference and in any case."""

_HEAD = 1000  # number of records searched for keys
_WIDEST = 2**20  # total length of the keys, in characters
_SCHEME = re.compile(r"(?:https?:[/\\]{1,2}|[/\\]{2})[^\s/\\]", re.I)
_BARE = re.compile(r"(?:[\w-]+\.)+[a-z\d]{2,}(?::\d+)?/\S*|[\d.]+:\d+/\S*", re.I)
_UNSEEN = "\ufeff\u200b\u200c\u200d\u2060\u00a0 \t\r\n"
_ASIAN = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
)


class Record(NamedTuple):
    """One entry of a list, before it becomes a row.

    Attributes:
        number: Line number, or the position from 1 in a list without lines.
        url: URL of the image.
        captions: Captions of the image.
        uid: The source's own id.
        file: File name of the image.
        label: Class of the image.
        why: Why the record cannot be read; empty if it can.
    """

    number: int
    url: str | None = None
    captions: tuple[str, ...] = ()
    uid: str | None = None
    file: str | None = None
    label: str | None = None
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The names of the columns of a list, by what they hold.

    Attributes:
        url: Column of URLs.
        captions: Columns of captions; a row takes the first one that has a caption.
        uid: Column of the source's own ids.
        file: Column of image files.
        label: Column of image classes.
    """

    url: str | None = None
    captions: tuple[str, ...] = ()
    uid: str | None = None
    file: str | None = None
    label: str | None = None

    @property
    def caption(self) -> str | None:
        """The caption column that is tried first."""
        return self.captions[0] if self.captions else None

    def wanted(self) -> list[str]:
        """All these names, without repeats."""
        names = (self.url, *self.captions, self.uid, self.file, self.label)
        return list(dict.fromkeys(name for name in names if name is not None))


@dataclass(frozen=True)
class Finder:
    """Finds the columns of one list.

    Attributes:
        path: Path of the list, for messages.
        source: The source, which may name columns.
        needs: `row` if the list must have a column of URLs or files, `file` if it must have a
            column of files.
        without: A column that is never chosen.
        notices: Collects warnings.
    """

    path: str
    source: Source
    needs: Literal["row", "file"] | None = "row"
    without: str | None = None
    notices: Notices = field(default_factory=Notices, compare=False, repr=False)

    @property
    def named(self) -> list[str]:
        """The columns that the source names."""
        names = (self.source.url_column, self.source.caption_column)
        return [name for name in names if name is not None]

    @property
    def has_named_columns(self) -> bool:
        """Whether the source names a column, so that the list must have a header."""
        return bool(self.named)

    def find(self, columns: Sequence[str], *, is_all: bool = True) -> Columns:
        """Choose the columns, and check that the list has what it needs.

        Args:
            columns: The names of all columns.
            is_all: Whether no later record has further columns.

        Raises:
            ValueError: A column that the source names is missing, or a needed column is not
                recognised.
        """
        for name_of in ("url_column", "caption_column"):
            name = getattr(self.source, name_of)
            if name is not None and name not in columns:
                close = difflib.get_close_matches(name.lower(), [c.lower() for c in columns], n=1)
                meant = [c for c in columns if close and c.lower() == close[0]]
                hint = f"; did you mean {meant[0]!r}?" if meant else ""
                raise ValueError(
                    f"download.{name_of}: {self.path} has no column {name!r}; its columns are "
                    f"{_listed(columns)}{hint}"
                )
        chosen = self.among(columns)
        if self.needs == "row" and chosen.file is None and self.source.images is not None:
            raise ValueError(
                f"download.source: {self.path} names no images: it has no column with a known "
                f"name for image files, such as `image`; its columns are {_listed(columns)}"
            )
        if self.needs == "row" and chosen.url is None and chosen.file is None:
            raise ValueError(
                f"download.url_column: {self.path} has no column with a known name for URLs or "
                f"image files; its columns are {_listed(columns)}; set download.url_column"
            )
        if self.needs == "file" and chosen.file is None:
            raise ValueError(
                f"download.source: {self.path} needs a column `file_name`; its columns are "
                f"{_listed(columns)}"
            )
        for name in chosen.wanted():
            if columns.count(name) > 1:
                raise ValueError(
                    f"download.source: {self.path} has more than one column {name!r}; its columns "
                    f"are {_listed(columns)}; give each column its own name"
                )
        if is_all and not chosen.captions and chosen.label is None:
            self.no_captions(columns)
        return chosen

    def no_captions(self, columns: Sequence[str]) -> None:
        """Warn that the list has no captions, if it has more than one column."""
        if len(columns) > 1:
            self.notices.add(
                "lists without a recognised caption column (set download.caption_column)",
                f"{self.path} with {_listed(columns)}",
            )

    def among(self, columns: Sequence[str]) -> Columns:
        """Choose the columns without checking that any is there."""
        others = [name for name in columns if name != self.without]
        url = self.source.url_column or recognise(others, URL_COLUMNS)
        caption = self.source.caption_column
        captions = (caption,) if caption is not None else _all(others, CAPTION_COLUMNS)
        file = recognise(others, FILE_COLUMNS)
        if self.needs is None or (self.needs == "row" and url and self.source.images is None):
            file = None
        return Columns(
            url=url,
            captions=tuple(name for name in captions if name not in (url, file)),
            uid=recognise(others, UID_COLUMNS),
            file=file,
            label=recognise(others, ("label",)),
        )

    def record(self, number: int, entry: Any) -> Record:
        """Return the record of a JSON object."""
        if not isinstance(entry, dict):
            return Record(number=number, why="is not a JSON object")
        columns = self._of_keys(tuple(entry))
        captions = [captions_of(entry.get(name)) for name in columns.captions]
        if "conversations" in entry and self.source.caption_column is None:
            is_whole = isinstance(self.source, Conversations)
            read = _conversation if is_whole else _answers
            captions.append(read(entry["conversations"]))
        chosen = first_nonempty(*captions)
        if chosen.skipped:
            count_skipped(self.notices, chosen, f"{self.path}:{number}")
        url, uid, file, label = columns.url, columns.uid, columns.file, columns.label
        class_name = None if label is None else entry.get(label)
        return Record(
            number,
            None if url is None else _filled(entry.get(url)),
            chosen.texts,
            None if uid is None else uid_text(entry.get(uid)),
            None if file is None else _filled(entry.get(file)),
            None
            if class_name is None or isinstance(class_name, list | dict)
            else clean(str(class_name)),
        )

    @functools.cached_property
    def _of_keys(self) -> Any:
        return functools.lru_cache(maxsize=256)(self.among)


def count_skipped(notices: Notices, captions: Captions, where: str) -> None:
    """Count a caption value of which a part was skipped."""
    if captions.skipped:
        notices.add(
            "caption values that are not text, which are left out",
            f"{where} ({captions.skipped})",
        )


def _answers(value: Any) -> Captions:
    """Return the answer of a conversation with one turn, in LLaVA's format."""
    turns = value if isinstance(value, list) else []
    answers = [turn.get("value") for turn in turns if isinstance(turn, dict) and _is_answer(turn)]
    return (
        captions_of(answers[0])
        if len(answers) == 1
        else Captions((), "a conversation without exactly one answer")
    )


def _conversation(value: Any) -> Captions:
    """Return the whole conversation as one text, in the order question, answer, question, ..."""
    turns = value if isinstance(value, list) else []
    is_alternating = all(
        isinstance(turn, dict)
        and isinstance(turn.get("value"), str)
        and _is_answer(turn) == bool(place % 2)
        for place, turn in enumerate(turns)
    )
    texts = [drop_lone_surrogates(turn["value"]) for turn in turns] if is_alternating else []
    if not texts or len(texts) % 2 or any(map(is_blank, texts)):
        return Captions((), "a conversation that is not turns of a question and an answer")
    pairs = zip(texts[::2], texts[1::2], strict=True)
    return Captions((as_text([Turn(*pair) for pair in pairs]),))


def _is_answer(turn: Mapping[str, Any]) -> bool:
    return turn.get("from") in ("gpt", "assistant", "model")


def _all(columns: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Return all columns that have one of the names, in the order of `names`."""
    lowered = _lowered(columns)
    return tuple(lowered[name] for name in names if name in lowered)


def _lowered(columns: Sequence[str]) -> dict[str, str]:
    return {column.strip().lower().replace(" ", "_"): column for column in reversed(columns)}


def is_url(text: str, *, bare: bool = True) -> bool:
    """Whether a browser would take a text for a URL.

    Args:
        text: The text of a cell.
        bare: Whether a URL without a scheme counts, such as example.org/a.jpg.
    """
    text = text.strip(_UNSEEN)
    if len(text.split(None, 1)) > 1 and not _SCHEME.match(text):
        return False
    return _SCHEME.match(text) is not None or (bare and _BARE.fullmatch(text) is not None)


def kind_of(cells: Sequence[str]) -> Literal["url", "file", "words", "other"]:
    """Classify the cells of a column as URLs, image file names, words, or none of these."""
    filled = [cell for cell in cells if not is_blank(cell)]
    if not filled:
        return "other"
    if sum(map(is_url, filled)) * 10 >= 9 * len(filled):
        return "url"
    if all(map(is_image, filled)):
        return "file"
    texts = sum(
        len(_ASIAN.findall(cell)) >= 4 or sum(any(map(str.isalpha, w)) for w in cell.split()) >= 2
        for cell in filled
    )
    return "words" if texts * 2 > len(filled) and not any(map(is_url, filled)) else "other"


def keys(records: Iterable[Mapping[str, Any]], named: Sequence[str] = ()) -> list[str]:
    """Return the distinct keys of the first thousand records, since a record may lack a key.

    Args:
        records: The records.
        named: Keys that are searched for in all records if the first thousand lack them.
    """
    distinct: dict[str, None] = {}
    size = 0
    records = iter(records)
    for record in itertools.islice(records, _HEAD):
        for key in record:
            if key not in distinct:
                distinct[key] = None
                size += len(key)
        if size > _WIDEST:
            break
    if not distinct.keys() >= set(named):
        for record in records:
            distinct |= dict.fromkeys(name for name in named if name in record)
            if distinct.keys() >= set(named):
                break
    return list(distinct)


def recognise(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the column that has the first of the names that any column has."""
    lowered = _lowered(columns)
    return next((lowered[name] for name in names if name in lowered), None)


def text_of(value: Any) -> str | None:
    """Return a string of a JSON record, cut one character after the maximum length."""
    return clean(value[: LONGEST + 1]) if isinstance(value, str) else None


def _filled(value: Any) -> str | None:
    """Return a string that is not blank."""
    text = text_of(value)
    return None if text is None or is_blank(text) else text


def uid_text(value: Any) -> str | None:
    """Return the id of a JSON record as text; None if it is neither text nor an integer."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text_of(value)


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(map(repr, columns))
