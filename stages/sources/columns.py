"""Which columns of a list, or keys of a record, hold what."""

from __future__ import annotations

import difflib
import functools
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from stages.sources.captions import Captions, captions_of, is_blank, joined
from stages.sources.config import Source
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
    "is_url",
    "keys",
    "kind_of",
    "note_odd",
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

_HEAD = 1000  # records that tell the keys
_WIDEST = 2**20  # characters of all keys
_SCHEME = re.compile(r"(?:https?:[/\\]{1,2}|[/\\]{2})[^\s/\\]", re.I)
_BARE = re.compile(r"(?:[\w-]+\.)+[a-z\d]{2,}(?::\d+)?/\S*|[\d.]+:\d+/\S*", re.I)
_UNSEEN = "\ufeff\u200b\u200c\u200d\u2060\u00a0 \t\r\n"
_ASIAN = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
)


class Record(NamedTuple):
    """What a list says of an image, before it is a row.

    Attributes:
        number: Of its line, or its position from 1 where a list has no lines.
        url: Its URL.
        captions: Its captions.
        uid: The source's own id.
        file: Its file.
        label: Its class.
        why: What is wrong with a record that cannot be read; empty for one that can.
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
    """The names of the columns that hold what.

    Attributes:
        url: The URL.
        captions: The captions, of which the first that has one counts.
        uid: The source's own id.
        file: The file of the image.
        label: Its class.
    """

    url: str | None = None
    captions: tuple[str, ...] = ()
    uid: str | None = None
    file: str | None = None
    label: str | None = None

    @property
    def caption(self) -> str | None:
        """The column of captions that is asked first."""
        return self.captions[0] if self.captions else None

    def wanted(self) -> list[str]:
        """The names, each once."""
        names = (self.url, *self.captions, self.uid, self.file, self.label)
        return list(dict.fromkeys(name for name in names if name is not None))


@dataclass(frozen=True)
class Finder:
    """Finds the columns of a list among those it has.

    Attributes:
        path: The list, for messages.
        source: What may name columns.
        needs: row, where the list is of no use without a column of URLs or of files; file, without
            one of files.
        without: A column that is none of these.
        notices: Where it tells what is worth a warning.
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
    def is_told(self) -> bool:
        """Whether the source names a column, so that there must be names."""
        return bool(self.named)

    def find(self, columns: Sequence[str], *, is_all: bool = True) -> Columns:
        """The columns among those with these names.

        Args:
            columns: The names.
            is_all: Whether no later record has others.

        Raises:
            ValueError: A named column is missing, or the needed one is not recognised.
        """
        for name_of in ("url_column", "caption_column"):
            name = getattr(self.source, name_of)
            if name is not None and name not in columns:
                close = difflib.get_close_matches(name.lower(), [c.lower() for c in columns], n=1)
                meant = [c for c in columns if close and c.lower() == close[0]]
                hint = f"; did you mean {meant[0]!r}?" if meant else ""
                raise ValueError(
                    f"download.{name_of}: {self.path} has no column {name!r}, it has "
                    f"{_listed(columns)}{hint}"
                )
        found = self.among(columns)
        if self.needs == "row" and found.file is None and self.source.images is not None:
            raise ValueError(
                f"download.source: {self.path} holds no images: no column has a name known for "
                f"their files, as `image`, it has {_listed(columns)}"
            )
        if self.needs == "row" and found.url is None and found.file is None:
            raise ValueError(
                f"download.url_column: no column of {self.path} has a name known for URLs, or for "
                f"files of images, it has {_listed(columns)}; set download.url_column"
            )
        if self.needs == "file" and found.file is None:
            raise ValueError(
                f"download.source: {self.path} needs a column `file_name`, it has "
                f"{_listed(columns)}"
            )
        for name in found.wanted():
            if columns.count(name) > 1:
                raise ValueError(
                    f"download.source: {self.path} has more than one column {name!r}, it has "
                    f"{_listed(columns)}; give each a name of its own"
                )
        if is_all and not found.captions and found.label is None:
            self.no_captions(columns)
        return found

    def no_captions(self, columns: Sequence[str]) -> None:
        """Tell that the rows of a list have no captions, if it has more than one column."""
        if len(columns) > 1:
            self.notices.add(
                "lists whose rows have no captions, as no column has a name known for them (set "
                "download.caption_column)",
                f"{self.path} with {_listed(columns)}",
            )

    def among(self, columns: Sequence[str]) -> Columns:
        """The columns among those with these names, as far as there are any."""
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
        """What a JSON object says of an image."""
        if not isinstance(entry, dict):
            return Record(number=number, why="no JSON object")
        columns = self._of_keys(tuple(entry))
        captions = [captions_of(entry.get(name)) for name in columns.captions]
        if "conversations" in entry and self.source.caption_column is None:
            captions.append(_answers(entry["conversations"]))
        found = joined(*captions)
        if found.odd:
            note_odd(self.notices, found, f"{self.path}:{number}")
        url, uid, file, label = columns.url, columns.uid, columns.file, columns.label
        said = None if label is None else entry.get(label)
        return Record(
            number,
            None if url is None else _filled(entry.get(url)),
            found.texts,
            None if uid is None else uid_text(entry.get(uid)),
            None if file is None else _filled(entry.get(file)),
            None if said is None or isinstance(said, list | dict) else clean(str(said)),
        )

    @functools.cached_property
    def _of_keys(self) -> Any:
        return functools.lru_cache(maxsize=256)(self.among)


def note_odd(notices: Notices, found: Captions, where: str) -> None:
    """Count what a place of captions holds that is none."""
    if found.odd:
        notices.add("values in the place of captions that are left out", f"{where} ({found.odd})")


def _answers(value: Any) -> Captions:
    """The answer of a conversation of one turn, as LLaVA has it."""
    turns = value if isinstance(value, list) else []
    said = [turn.get("value") for turn in turns if isinstance(turn, dict) and _is_answer(turn)]
    return captions_of(said[0]) if len(said) == 1 else Captions((), "a conversation of more turns")


def _is_answer(turn: Mapping[str, Any]) -> bool:
    return turn.get("from") in ("gpt", "assistant", "model")


def _all(columns: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """All columns that have one of the names, the names in order of preference."""
    lowered = _lowered(columns)
    return tuple(lowered[name] for name in names if name in lowered)


def _lowered(columns: Sequence[str]) -> dict[str, str]:
    return {column.strip().lower().replace(" ", "_"): column for column in reversed(columns)}


def is_url(text: str, *, bare: bool = True) -> bool:
    """Whether a text is what browsers take for the URL of an image.

    Args:
        text: A cell.
        bare: Whether one without a scheme is one too, as example.org/a.jpg.
    """
    text = text.strip(_UNSEEN)
    if len(text.split(None, 1)) > 1 and not _SCHEME.match(text):
        return False
    return _SCHEME.match(text) is not None or (bare and _BARE.fullmatch(text) is not None)


def kind_of(cells: Sequence[str]) -> Literal["url", "file", "words", "other"]:
    """What some cells of a column plainly are: URLs, names of images, words, or none of them."""
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
    """The keys of the first thousand records, each once, since a record may leave out a key.

    Args:
        records: The records.
        named: Keys that are looked for beyond the first thousand where these do not have them.
    """
    found: dict[str, None] = {}
    size = 0
    records = iter(records)
    for record in itertools.islice(records, _HEAD):
        for key in record:
            if key not in found:
                found[key] = None
                size += len(key)
        if size > _WIDEST:
            break
    if not found.keys() >= set(named):
        for record in records:
            found |= dict.fromkeys(name for name in named if name in record)
            if found.keys() >= set(named):
                break
    return list(found)


def recognise(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The first column that has one of the names, the names in order of preference."""
    lowered = _lowered(columns)
    return next((lowered[name] for name in names if name in lowered), None)


def text_of(value: Any) -> str | None:
    """A text of a JSON record, of which no more is kept than tells that it is too long."""
    return clean(value[: LONGEST + 1]) if isinstance(value, str) else None


def _filled(value: Any) -> str | None:
    """A text that is not blank."""
    found = text_of(value)
    return None if found is None or is_blank(found) else found


def uid_text(value: Any) -> str | None:
    """The id that a JSON record gives, as text, or nothing where it is no text or whole number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text_of(value)


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(map(repr, columns))
