"""Settings that name the sources of a run and how their rows are split into shards."""

from __future__ import annotations

import dataclasses
import difflib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import pydantic

from stages.base import StageConfig

__all__ = ["Conversations", "Source", "SourceConfig"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """One source of rows.

    Attributes:
        path: Paths, globs or fsspec URLs. Lists are csv, tsv, parquet, jsonl (or ndjson), json
            (SBU's two arrays, RedCaps, or one array of objects) and txt (one URL per line), each
            also as .gz, .zst or .bz2. A list may name image files in place of URLs, as BLIP's,
            LLaVA's and Karpathy's JSON do. JSON Lines of interleaved documents (MMC4, OBELICS)
            count as lists of their images.
            Images that need no download are read from a folder of images, COCO captions JSON,
            webdataset tars, or Parquet files with an image column; this includes img2dataset's
            output and every export of this project but mds. A folder of tars or of lists stands
            for the files in it.
        name: Value of the `source` column of its rows.
        limit: Number of rows to take: the first ones, or a random sample if `seed` is set.
        seed: Seed of a uniform sample of `limit` rows, which keep their order.
        url_column: Column with the URLs; null recognises it by name.
        caption_column: The only column with captions. Null recognises caption columns by name and
            takes the first one that has a caption in a row.
        images: Folder of the images that a list names. Null downloads images that have a URL
            (COCO's `coco_url` too) and looks for the others in the list's own folder.
        split: One or several of Karpathy's splits: train, restval, val, test; null takes all.
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
            raise ValueError("download.source must name a list or images, got an empty path")
        if not self.name or "/" in self.name:
            raise ValueError(f"download.source: `name` must be text without `/`, got {self.name!r}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"download.limit must be at least 1, got {self.limit}")
        if self.seed is not None and self.limit is None:
            raise ValueError(
                f"download.source {self.name!r}: `seed` needs `limit`, the number of rows to "
                "sample; set it"
            )

    @property
    def paths(self) -> tuple[str, ...]:
        """`path` as a tuple."""
        return (self.path,) if isinstance(self.path, str) else self.path

    def __str__(self) -> str:
        return ", ".join(self.paths)


def _parsed(value: Any) -> Any:
    """Convert mappings to `Source` objects; the error lists every wrong field."""
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple) or not any(isinstance(v, Mapping) for v in value):
        return value
    fields = [field.name for field in dataclasses.fields(Source)]
    mistakes, parsed = [], []
    for number, entry in enumerate(value, 1):
        if isinstance(entry, str):
            raise ValueError(
                "must be a list of paths or of mappings, not both; write a path as {path: PATH}"
            )
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
class Conversations(Source):
    """A source whose conversations are read whole, as `models.text.conversation` writes them.

    Trainings alone read conversations so; elsewhere the answer of one turn is a caption.
    """


@dataclass(frozen=True, kw_only=True)
class SourceConfig(StageConfig):
    """The sources of the rows, and the size of the shards.

    Attributes:
        source: A path, glob or fsspec URL, or a list of them, which form one source; or a list of
            mappings with the fields of `Source`, each a source with its own name.
        name: Value of the `source` column. This field and the next three are for a `source` given
            as paths; a mapping sets its own.
        url_column: Column with the URLs; null recognises it by name.
        caption_column: Column with the captions; null recognises it by name.
        limit: Stop after this many rows.
        shard_size: Rows per pool shard.
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
                f"download.source: each source needs its own `name`, got {repeated[0]!r} twice"
            )
        if isinstance(self.source, tuple) and isinstance(self.source[0], Source):
            defaults = {field.name: field.default for field in dataclasses.fields(SourceConfig)}
            for field in ("name", "url_column", "caption_column", "limit"):
                if getattr(self, field) != defaults[field]:
                    raise ValueError(
                        f"download.{field} is for a source given as a path; set it in each "
                        "mapping of download.source"
                    )

    @property
    def sources(self) -> tuple[Source, ...]:
        """All sources, in order."""
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
