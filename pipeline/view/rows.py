"""All rows of a run in memory, without images, to be searched, filtered and sorted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.results.image_numbers import ISOLATION, MOST, image_numbers, isolation
from pipeline.results.sampling import RowLocation, ranks_of
from pipeline.results.tables import INTERNAL
from pipeline.results.verdicts import KEPT, Judgement, Mask, Results
from stages.base import Floats, floats, is_numeric
from stages.caption import CaptionStage
from stages.clean import CleanStage
from stages.download import DownloadStage
from stages.filter import FilterStage
from stages.redaction import redacted

__all__ = ["Query", "RowIndex"]

BINS = 40
Rows = npt.NDArray[np.int64]
Fate = Literal["any", "kept", "rejected"]


@dataclass(frozen=True, kw_only=True)
class Query:
    """Which rows to show, and in which order.

    Attributes:
        text: A part of a caption, URL, uid or reason, in any case.
        fate: kept, rejected or any.
        stage: The stage that rejected the row.
        reason: The reason.
        source: The source in the list.
        language: The language of the web caption.
        captions: Rows that have a text of this source: web, synthetic.
        column: The measured column that `low`, `high` and `sort` are about.
        low: The least value of the column.
        high: The greatest value of the column.
        sort: up or down, by the column; rows without a value come last.
    """

    text: str = ""
    fate: Fate = "any"
    stage: str = ""
    reason: str = ""
    source: str = ""
    language: str = ""
    captions: str = ""
    column: str = ""
    low: float | None = None
    high: float | None = None
    sort: str = ""


class RowIndex:
    """The rows of a run with verdicts, texts and numbers; about 1 kB a row.

    Attributes:
        table: uid, source, url, caption, stage, reason, language, web, synthetic, texts (all that
            is searched), shard, row; row for row with the pool.
        numbers: The measured columns, as `STAGE.COLUMN`, NaN where a row has no value; of each
            threshold, as `STAGE.FIELD`, the number that it is compared with.
        limits: The thresholds, by the same names.
        reasons: The reason that each threshold decides, by the same names.
    """

    def __init__(self, results: Results) -> None:
        self.results = results
        self.limits: dict[str, float] = {}
        self.reasons: dict[str, str] = {}
        tables, numbers = [], []
        for shard in results.run.shards("pool"):
            judgement = results.judge(shard)
            table, columns = self._read(shard, judgement)
            tables.append(table)
            numbers.append(columns)
        if not tables:
            raise ValueError(f"{results.run.root}: nothing is downloaded yet; `capfilt run` it")
        self.table = pa.concat_tables(tables).combine_chunks()
        names = dict.fromkeys(name for columns in numbers for name in columns)
        self.numbers: dict[str, Floats] = {
            name: np.concatenate(
                [
                    columns.get(name, np.full(len(table), np.nan))
                    for columns, table in zip(numbers, tables, strict=True)
                ]
            )
            for name in names
        }
        self.numbers[f"image.{ISOLATION}"] = self._isolation()
        self.numbers = {k: v for k, v in self.numbers.items() if not np.isnan(v).all()}

    def _isolation(self) -> Floats:
        """How far each image is from the nearest other one; of a large run, of a sample of rows."""
        ranks = ranks_of(self.table["uid"].combine_chunks(), self.results.plan.manifest.seed)
        shards, rows = self.table["shard"].to_pylist(), self.table["row"].to_pylist()
        index_of = {
            RowLocation(shards[index], rows[index]): index
            for index in np.argsort(ranks, kind="stable")[:MOST].tolist()
        }
        found = np.full(self.table.num_rows, np.nan)
        for location, distance in isolation(self.results, index_of).items():
            found[index_of[location]] = distance
        return found

    def _read(self, shard: str, judgement: Judgement) -> tuple[pa.Table, dict[str, Floats]]:
        """The rows of a shard, and its measured columns."""
        run, plan = self.results.run, self.results.plan
        columns = ["uid", "source", "url", "caption", "original_width", "original_height"]
        pool = run.read_table("pool", f"{shard}.parquet", columns=columns)
        number = pool.num_rows
        stages = np.full(number, KEPT, dtype=object)
        reasons: Any = pa.nulls(number, pa.string())
        for name in plan.names:
            stages[judgement.waiting(name)] = f"not measured by {name} yet"
            rejected = judgement.reasons[name].is_valid().to_numpy(zero_copy_only=False)
            stages[rejected] = name
            reasons = pc.coalesce(reasons, judgement.reasons[name])
        tables = {n: t for n, t in judgement.tables.items() if n != DownloadStage.name}
        web: Any = pool["caption"].combine_chunks()
        language: Any = pa.nulls(number, pa.string())
        if (clean := tables.get(CleanStage.name)) is not None:
            web = pc.coalesce(clean["text"].combine_chunks(), web)
            language = clean["language"].combine_chunks()
        synthetic: Any = pa.nulls(number, pa.list_(pa.string()))
        if (written := tables.get(CaptionStage.name)) is not None:
            synthetic = written["synthetic"].combine_chunks()
        urls = pa.array([redacted(str(url)) for url in pool["url"].to_pylist()], pa.string())
        texts: list[Any] = [pool["uid"], urls, pool["caption"], web, reasons]
        if written is not None:
            texts.append(pc.binary_join(pc.fill_null(synthetic, []), " "))
        joined: Any = pc.binary_join_element_wise(
            *(pc.fill_null(_whole(part), "") for part in texts), "\n"
        )
        values = {
            "download.width": floats(pool["original_width"]),
            "download.height": floats(pool["original_height"]),
        }
        for key, numbers in image_numbers(pool, tables).items():
            values[f"image.{key}"] = numbers
        for name, table in tables.items():
            values |= _numbers(name, table)
            values |= dict(self._compared(name, table, judgement.measured[name]))
        made = pool.select(["uid", "source", "caption"])
        for name, column in (
            ("url", urls),
            ("stage", pa.array(stages, pa.string())),
            ("reason", reasons),
            ("language", language),
            ("web", web),
            ("synthetic", synthetic),
            ("texts", joined),
            ("shard", pa.array([shard] * number, pa.string())),
            ("row", pa.array(range(number), pa.int32())),
        ):
            made = made.append_column(name, column)
        return made, values

    def facts(self) -> dict[str, Any]:
        """What the page offers to choose from."""
        plan = self.results.plan
        counts: Counter[tuple[str, str]] = Counter(
            (str(stage), reason)
            for stage, reason in zip(
                self.table["stage"].to_pylist(), self.table["reason"].to_pylist(), strict=True
            )
            if reason is not None
        )
        return {
            "name": plan.manifest.name,
            "run": self.results.run.root,
            "rows": self.table.num_rows,
            "kept": int(np.sum(np.asarray(self.table["stage"].to_pylist(), object) == KEPT)),
            "reasons": [
                {
                    "stage": stage,
                    "reason": reason,
                    "rows": number,
                    "why": plan.stage(stage).every_reason().get(reason, ""),
                }
                for (stage, reason), number in sorted(
                    counts.items(),
                    key=lambda entry: (plan.names.index(entry[0][0]), -entry[1], entry[0][1]),
                )
            ],
            "sources": _tally(self.table["source"]),
            "languages": _tally(self.table["language"]),
            "columns": [
                {"name": name, "limit": self.limits.get(name)} for name in sorted(self.numbers)
            ],
        }

    def _compared(self, name: str, table: pa.Table, measured: Mask) -> Iterator[tuple[str, Floats]]:
        """What each threshold of a stage that is set is compared with, as `STAGE.FIELD`."""
        for cutoff in self.results.plan.stage(name).cutoffs(table.filter(pa.array(measured))):
            if cutoff.limit is not None:
                values = np.full(len(measured), np.nan)
                values[measured] = cutoff.values
                self.limits[f"{name}.{cutoff.name}"] = cutoff.limit
                self.reasons[f"{name}.{cutoff.name}"] = cutoff.reason
                yield f"{name}.{cutoff.name}", values

    def select(self, query: Query) -> tuple[Rows, dict[str, Any] | None]:
        """Return the rows of a query in order, and the histogram of its column.

        The histogram is of the rows before `low` and `high` choose among them, so that it shows
        what another threshold would take; None without a column.

        Raises:
            ValueError: There is no such column.
        """
        mask = self._mask(query)
        if not query.column:
            return np.flatnonzero(mask), None
        if query.column not in self.numbers:
            raise ValueError(f"no column {query.column!r}")
        values = self.numbers[query.column]
        counts = self._histogram(values, mask)
        low, high = query.low, query.high
        with np.errstate(invalid="ignore"):
            if low is not None:
                mask &= values >= low
            if high is not None:
                mask &= values <= high
        chosen = np.flatnonzero(mask)
        if query.sort in ("up", "down"):
            keys = values[chosen] if query.sort == "up" else -values[chosen]
            chosen = chosen[np.lexsort((chosen, keys))]  # NaN is last
        return chosen, counts

    def tally(self, chosen: Rows, column: str) -> dict[str, Any]:
        """Count among rows those that are kept, and those that the threshold of a column rejects.

        Of rows that a moved threshold would let through, these are what it keeps for certain, and
        what it hands on to the later rules.
        """
        stages, reasons = (
            np.asarray(self.table[name].to_pylist(), object)[chosen] for name in ("stage", "reason")
        )
        reason = self.reasons.get(column)
        decided = (reasons == reason) & (stages == column.partition(".")[0])
        return {
            "kept": int(np.sum(stages == KEPT)),
            "reason": reason,
            "rejected": int(np.sum(decided)),
        }

    def _mask(self, query: Query) -> Mask:
        table = self.table
        mask = np.ones(table.num_rows, bool)

        def keep(found: Any) -> None:
            nonlocal mask
            mask &= np.asarray(pc.fill_null(_whole(found), False))

        for word in query.text.split():
            keep(pc.match_substring(table["texts"], word, ignore_case=True))
        for name in ("stage", "reason", "source", "language"):
            if value := getattr(query, name):
                keep(pc.equal(table[name], pa.scalar(value)))
        if query.fate == "kept":
            keep(pc.equal(table["stage"], pa.scalar(KEPT)))
        elif query.fate == "rejected":
            keep(table["reason"].is_valid())
        if query.captions == "web":
            keep(table["web"].is_valid())
        elif query.captions == "synthetic":
            keep(pc.greater(pc.list_value_length(table["synthetic"]), pa.scalar(0)))
        return mask

    def _histogram(self, values: Floats, mask: Mask) -> dict[str, Any]:
        """Counts of a column in bins of equal width, of all rows of the mask and of kept ones."""
        there = mask & np.isfinite(values)
        if not there.any():
            return {"edges": [0.0, 1.0], "rows": [0], "kept": [0]}
        kept = np.asarray(self.table["stage"].to_pylist(), object) == KEPT
        rows, edges = np.histogram(values[there], BINS)
        among, _ = np.histogram(values[there & kept], edges)
        return {"edges": edges.tolist(), "rows": rows.tolist(), "kept": among.tolist()}

    def rows(self, chosen: Sequence[int]) -> list[dict[str, Any]]:
        """What the page shows of some rows: texts, verdict, and the numbers that there are."""
        found = self.table.select(
            ["uid", "source", "url", "caption", "stage", "reason", "language", "web", "synthetic"]
        ).take(pa.array(chosen, pa.int64()))
        scores = {kind: self.numbers.get(f"filter.itm_{kind}") for kind in ("web", "synthetic")}
        answers = []
        for index, row in zip(chosen, found.to_pylist(), strict=True):
            for kind, values in scores.items():
                number = None if values is None else float(values[index])
                row[f"itm_{kind}"] = None if number is None or np.isnan(number) else number
            row["numbers"] = {
                name: float(values[index])
                for name, values in self.numbers.items()
                if not np.isnan(values[index])
            }
            answers.append({"index": int(index), **row})
        return answers

    def place(self, index: int) -> tuple[str, int]:
        """The shard of a row, and its position there."""
        return str(self.table["shard"][index]), int(self.table["row"][index].as_py())


def _numbers(name: str, table: pa.Table) -> dict[str, Floats]:
    """The columns of numbers of a stage; of lists the greatest of each row."""
    measured: dict[str, Floats] = {}
    for field in table.schema:
        if field.name == "measured" or field.name.endswith(INTERNAL):
            continue
        kind: Any = field.type
        if is_numeric(kind):
            measured[f"{name}.{field.name}"] = floats(table[field.name])
        elif pa.types.is_list(kind) and is_numeric(kind.value_type) and name == FilterStage.name:
            lists = table[field.name].to_pylist()
            most = [max((v for v in one or () if v is not None), default=np.nan) for one in lists]
            measured[f"{name}.{field.name}"] = np.array(most, np.float64)
    return measured


def _tally(column: Any) -> list[dict[str, Any]]:
    counts = [entry for entry in column.value_counts().to_pylist() if entry["values"]]
    counts.sort(key=lambda entry: (-entry["counts"], entry["values"]))
    return [{"name": entry["values"], "rows": entry["counts"]} for entry in counts]


def _whole(column: Any) -> Any:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
