"""Which sources a run has, and how their rows are cut into shards."""

from __future__ import annotations

import dataclasses
import difflib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import pydantic

from stages.base import StageConfig

__all__ = ["Source", "SourceConfig"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where rows come from.

    Attributes:
        path: Paths, globs or fsspec URLs. Lists are csv, tsv, parquet, jsonl (or ndjson), json
            (SBU's two arrays, RedCaps, or one array of objects) and txt (a URL a line), each also
            as .gz, .zst or .bz2. A list that has no URLs, but names files, is one of images at
            hand, as BLIP's, LLaVA's and Karpathy's JSON are. JSON Lines of interleaved documents,
            as MMC4 and OBELICS have them, are lists of their images.
            Images at hand are also a folder of images, a COCO captions json, webdataset tars, and
            Parquet files with a column of images; img2dataset's output is one of these, and so is
            every export of this project. A folder of tars or of lists stands for its files.
        name: The `source` column of its rows.
        limit: Take this many of its rows: the first ones, or a sample where there is a seed.
        seed: Of a uniform sample of `limit` rows, in their order.
        url_column: The column with the URLs; null recognises it.
        caption_column: The one column with the captions; null recognises it, and asks the next
            that is recognised where it is null or blank.
        images: The folder of the images that a list names. Null fetches what has URLs, a COCO
            json's `coco_url` too, and takes the list's own folder for what has none.
        split: Which of Karpathy's splits, or several: train, restval, val, test; null takes all.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}

    path: str | tuple[str, ...]
    name: str = "web"
    limit: int | None = None
    seed: int | None = None
    url_column: str | None = None
    caption_column: str | None = None
    images: str | None = None
    split: str | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.path or not all(self.paths):
            raise ValueError("download.source must name a list or images, got nothing")
        if not self.name or "/" in self.name:
            raise ValueError(
                f"download.name, of a source, must be a text without `/`, got {self.name!r}"
            )
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"download.limit must be at least 1, got {self.limit}")
        if self.seed is not None and self.limit is None:
            raise ValueError(f"download.source {self.name!r}: a seed samples `limit` rows; set it")

    @property
    def paths(self) -> tuple[str, ...]:
        """`path` as a tuple."""
        return (self.path,) if isinstance(self.path, str) else self.path

    def __str__(self) -> str:
        return ", ".join(self.paths)


def _parsed(value: Any) -> Any:
    """Mappings as `Source`; a message for each field that is wrong."""
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple) or not any(isinstance(v, Mapping) for v in value):
        return value
    fields = [field.name for field in dataclasses.fields(Source)]
    mistakes, parsed = [], []
    for number, entry in enumerate(value, 1):
        if isinstance(entry, str):
            raise ValueError("must hold texts or mappings, not both; write a text as {path: TEXT}")
        try:
            parsed.append(pydantic.TypeAdapter(Source).validate_python(entry))
        except pydantic.ValidationError as error:
            for detail in error.errors():
                field = ".".join(str(part) for part in detail["loc"])
                message = detail["msg"].removeprefix("Value error, ")
                if detail["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
                    close = difflib.get_close_matches(field, fields, n=1)
                    hint = f"did you mean {close[0]!r}?" if close else ", ".join(fields)
                    message = f"unknown field; {hint}"
                elif detail["type"] != "value_error":
                    message = f"{message}, got {detail['input']!r}"
                mistakes.append(f"[{number}] {field}: {message}".replace(" : ", " "))
    if mistakes:
        raise ValueError("; ".join(mistakes))
    return tuple(parsed)


@dataclass(frozen=True, kw_only=True)
class SourceConfig(StageConfig):
    """Where the rows come from, and how they are cut into shards.

    Attributes:
        source: A path, glob or fsspec URL, or several, all of one source; or mappings with the
            fields of `Source`, each a source with a name of its own.
        name: The `source` column of the rows of a source given as text, like the next three.
        url_column: The column with the URLs; null recognises it.
        caption_column: The column with the captions; null recognises it.
        limit: Stop after this many rows.
        shard_size: Rows of a pool shard.
    """

    source: Annotated[str | tuple[str, ...] | tuple[Source, ...], pydantic.BeforeValidator(_parsed)]
    name: str = "web"
    url_column: str | None = None
    caption_column: str | None = None
    limit: int | None = None
    shard_size: int = 1000

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise ValueError(f"download.shard_size must be at least 1, got {self.shard_size}")
        repeated = [name for name, n in Counter(s.name for s in self.sources).items() if n > 1]
        if repeated:
            raise ValueError(
                f"download.source: each source needs a `name` of its own, got {repeated[0]!r} twice"
            )
        if isinstance(self.source, tuple) and isinstance(self.source[0], Source):
            defaults = {field.name: field.default for field in dataclasses.fields(SourceConfig)}
            for field in ("name", "url_column", "caption_column", "limit"):
                if getattr(self, field) != defaults[field]:
                    raise ValueError(
                        f"download.{field} is for a source given as text; set it in each mapping "
                        "of download.source"
                    )

    @property
    def sources(self) -> tuple[Source, ...]:
        """The sources, in order."""
        given = self.source
        if isinstance(given, tuple) and any(isinstance(entry, Source) for entry in given):
            return given  # type: ignore[return-value]
        return (
            Source(
                path=given,  # type: ignore[arg-type]
                name=self.name,
                limit=self.limit,
                url_column=self.url_column,
                caption_column=self.caption_column,
            ),
        )

    def measurement(self) -> dict[str, Any]:
        """The fields that change the rows, as plain values."""
        fields = super().measurement()
        if not isinstance(self.source, str):
            fields["source"] = [
                dataclasses.asdict(entry) if isinstance(entry, Source) else entry
                for entry in self.source
            ]
        return fields
