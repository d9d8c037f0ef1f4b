"""Reads sampled rows with everything that a report shows of them, including thumbnails."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from models.image.decode import ImageError, open_rgb
from pipeline.results.sampling import RowLocation
from pipeline.results.verdicts import Results
from pipeline.storage.run import Run
from stages.caption import CaptionStage
from stages.clean import CleanStage
from stages.dedup import DedupStage
from stages.download import DownloadStage
from stages.filter import FilterStage
from stages.redaction import redacted
from stages.registry import STAGES

__all__ = ["Example", "Text", "Thumbnail", "examples", "locate"]

THUMBNAIL = 160
QUALITY = 50
MAX_TEXT = 280
MAX_VALUE = 40
INTERNAL = ("hash", "_cluster", "_key", "_duplicate")
"""Endings of columns that only group rows, and mean nothing to a reader."""


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """A small WebP as a data URI, with its size in pixels."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Text:
    """A caption, or a sentence of one, with the filter's scores; None where it has no score.

    Attributes:
        text: The text.
        score: The ITM probability.
        similarity: The CLIP similarity.
        is_kept: Whether the filter keeps it.
        unread: The number of its tokens that the filter did not read.
        sentences: Its sentences, if the filter judged them separately.
    """

    text: str
    score: float | None = None
    similarity: float | None = None
    is_kept: bool | None = None
    unread: int | None = None
    sentences: Sequence[Text] = ()


@dataclass(frozen=True, kw_only=True)
class Example:
    """A row as a report shows it.

    Attributes:
        uid: The uid.
        url: The URL, shortened.
        error: The reason of a failed download.
        image: A thumbnail; None if the download failed.
        size: Original width and height.
        caption: The original web caption.
        web: The web caption that the filter judged; None if there is none.
        further: Web captions of copies of the image.
        synthetic: The synthetic captions.
        measures: By stage, the numbers and short texts that it measured for the row.
        cluster: The uid of the representative of its near-duplicates.
    """

    uid: str
    url: str
    error: str | None
    image: Thumbnail | None
    size: tuple[int, int] | None
    caption: str | None
    web: Text | None
    further: Sequence[Text]
    synthetic: Sequence[Text]
    measures: dict[str, dict[str, str]] = field(default_factory=dict)
    cluster: str | None = None


def locate(run: Run, uids: Iterable[str]) -> dict[str, RowLocation]:
    """The locations of the rows with these uids; reads the uids of the whole pool."""
    wanted = set(uids)
    if not wanted:
        return {}
    return {
        uid: RowLocation(shard, row)
        for shard in run.shards("pool")
        for row, uid in enumerate(
            run.read_table("pool", f"{shard}.parquet", columns=["uid"])["uid"].to_pylist()
        )
        if uid in wanted
    }


def examples(
    results: Results, names: Sequence[str], places: Iterable[RowLocation]
) -> dict[RowLocation, Example]:
    """Read rows, one shard at a time.

    Args:
        results: The results of the run.
        names: The stages whose columns to read.
        places: The locations of the rows.
    """
    by_shard: dict[str, set[int]] = defaultdict(set)
    for location in places:
        by_shard[location.shard].add(location.row)
    by_location = {}
    for shard, chosen in sorted(by_shard.items()):
        rows = sorted(chosen)
        index = pa.array(rows)
        columns = ["uid", "url", "caption", "error", "image", "original_width", "original_height"]
        table = results.run.read_table("pool", f"{shard}.parquet", columns=columns)
        pool = table.take(index).to_pylist()
        tables = {
            name: annotations.take(index)
            for name in names
            if name != DownloadStage.name
            and (annotations := results.annotated(name, shard)) is not None
        }
        keeps = _keeps(results, tables, len(rows))
        notes = {name: table.to_pylist() for name, table in tables.items()}
        for number, row in enumerate(rows):
            known = {name: values[number] for name, values in notes.items()}
            known = {name: values for name, values in known.items() if values["measured"]}
            by_location[RowLocation(shard, row)] = _example(pool[number], known, keeps[number])
    return by_location


def _keeps(results: Results, tables: dict[str, pa.Table], number: int) -> list[dict[str, Any]]:
    """The filter's verdicts on the texts of each of `number` rows; empty if not measured."""
    verdicts: list[dict[str, Any]] = [{} for _ in range(number)]
    if FilterStage.name in tables:
        table = tables[FilterStage.name]
        kept_texts = iter(results.kept_texts(table.filter(table["measured"])).to_pylist())
        for row, is_measured in enumerate(table["measured"].to_pylist()):
            if is_measured:
                verdicts[row] = next(kept_texts)
    return verdicts


def _example(
    pool: dict[str, Any], notes: dict[str, dict[str, Any]], keep: dict[str, Any]
) -> Example:
    scores = notes.get(FilterStage.name, {})
    text = notes[CleanStage.name]["text"] if CleanStage.name in notes else pool["caption"]
    deduped = notes.get(DedupStage.name, {})
    size = (pool["original_width"], pool["original_height"])
    return Example(
        uid=pool["uid"],
        url=_short(redacted(pool["url"]), 120),
        error=pool["error"],
        image=thumbnail(pool["image"]),
        size=size if all(size) else None,
        caption=None if pool["caption"] is None else _short(pool["caption"]),
        web=None if text is None else _texts("web", [text], scores, keep)[0],
        further=_texts("further", deduped.get("further_captions") or [], scores, keep),
        synthetic=_texts(
            "synthetic", notes.get(CaptionStage.name, {}).get("synthetic") or [], scores, keep
        ),
        measures={name: _measures(name, values) for name, values in notes.items()},
        cluster=deduped.get("image_cluster"),
    )


def _texts(
    kind: str, texts: Sequence[str], scores: dict[str, Any], keep: dict[str, Any]
) -> list[Text]:
    """The texts of a kind with the filter's scores."""
    columns = {
        name: scores.get(f"{name}_{kind}") for name in ("itm", "clip", "unread", "sentences")
    }
    columns |= {name: keep.get(f"{name}_{kind}") for name in ("keep", "sentences_kept")}
    if kind == "web":
        columns = {name: [value] for name, value in columns.items()}
    rows = zip(*(values or [None] * len(texts) for values in columns.values()), strict=True)
    return [
        Text(
            text=_short(text),
            score=itm,
            similarity=clip,
            is_kept=is_kept,
            unread=unread,
            sentences=[
                Text(
                    text=_short(sentence["text"].strip()),
                    score=sentence["itm"],
                    similarity=sentence["clip"],
                    is_kept=sentence_kept,
                )
                for sentence, sentence_kept in zip(sentences or (), kept or (), strict=True)
            ],
        )
        for text, (itm, clip, unread, sentences, is_kept, kept) in zip(texts, rows, strict=True)
    ]


def thumbnail(image: bytes | None) -> Thumbnail | None:
    """A small WebP of an image; None if there is no image or it cannot be decoded."""
    if image is None:
        return None
    try:
        small = open_rgb(image, min_size=(THUMBNAIL, THUMBNAIL))
    except ImageError:
        return None
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=QUALITY, method=6)
    uri = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Thumbnail(uri=uri, width=small.width, height=small.height)


def _measures(name: str, values: dict[str, Any]) -> dict[str, str]:
    """The numbers and short texts that a stage measured, without `INTERNAL` columns."""
    measures = {}
    for column in STAGES[name].columns():
        value = values.get(column.name)  # large columns are not read
        if value is None or column.name == "text" or column.name.endswith(INTERNAL):
            continue
        if isinstance(value, bool):
            measures[column.name] = "yes" if value else "no"
        elif isinstance(value, int):
            measures[column.name] = f"{value:,}"
        elif isinstance(value, float):
            measures[column.name] = f"{value or 0.0:.3g}"  # no -0
        elif isinstance(value, str) and len(value) <= MAX_VALUE:
            measures[column.name] = value
    return measures


def _short(text: str, length: int = MAX_TEXT) -> str:
    return text if len(text) <= length else text[: length - 1] + "\u2026"
