"""Verdicts: what each stage measured and decided for every row of a run.

Verdicts are computed from the annotations each time, never stored, so a changed threshold takes
effect at once.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.errors import ConservationError
from pipeline.manifest.plan import Plan
from pipeline.storage.run import Run
from stages.base import CRASHED, GlobalStage
from stages.download import DownloadStage
from stages.filter import FilterStage
from stages.registry import STAGES

__all__ = ["DIGEST", "KEPT", "Judgement", "Mask", "Results", "crashed_rows", "totals_of"]

DIGEST = "taken"
"""Column next to `measured` in the file of a stage that takes columns of a summary."""

KEPT = "kept"
"""The verdict on a row that no stage rejected."""

MEASURED: dict[str, pa.DataType] = {"uid": pa.string(), "measured": pa.bool_()}
"""Columns of a stage's file besides those that the stage writes."""

SUMMARIZED: dict[str, pa.DataType] = {"uid": pa.string(), "summarized": pa.bool_()}
"""Columns of a summary's file besides those of the summary."""

Mask = npt.NDArray[np.bool_]


@dataclass
class Judgement:
    """The verdicts of one shard, stage by stage.

    Attributes:
        uids: The n rows of the shard.
        live: Rows that no judged stage rejected.
        reached: Rows that were alive when each stage came.
        measured: Rows that each stage has measured, among those that reached it.
        crashed: Rows that reached each stage and cannot be measured because the process ends.
        reasons: The reason of each stage for each of the n rows, null where it rejects none.
        tables: What each stage measured, as `Results.annotated` returns it, where it has run; of
            download only the error.
    """

    uids: Any
    live: Mask
    reached: dict[str, Mask] = field(default_factory=dict)
    measured: dict[str, Mask] = field(default_factory=dict)
    crashed: dict[str, Mask] = field(default_factory=dict)
    reasons: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, pa.Table] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether every stage has measured every row that reached it."""
        return not any(self.waiting(name).any() for name in self.reached)

    def waiting(self, name: str) -> Mask:
        """Rows that reached a stage and that it has not measured yet."""
        waiting: Mask = self.reached[name] & ~self.measured[name] & ~self.crashed[name]
        return waiting


class Results:
    """The measurements and verdicts of the stages of a run; read only.

    Args:
        run: The run.
        plan: The plan of the run.
    """

    def __init__(self, run: Run, plan: Plan) -> None:
        self.run = run
        self.plan = plan

    def annotated(self, name: str, shard: str) -> pa.Table | None:
        """Read what a stage measured on a shard, with its summary; None where it has not run.

        Returns:
            uid, `measured` and the stage's columns except `bulky` ones, row for row with the pool.
            A row counts as measured by a global stage only if its summary covers it; a row that
            crashes never does.
        """
        if name == DownloadStage.name:
            columns = [c for c in ("uid", *STAGES[name].writes.names) if c != "image"]
            try:
                pool = self.run.read_table("pool", f"{shard}.parquet", columns=columns)
            except FileNotFoundError:
                return None
            return _all_measured(pool)
        annotations = self._annotated(name, shard)
        return None if annotations is None else annotations[0]

    def _annotated(self, name: str, shard: str) -> tuple[pa.Table, Mask] | None:
        """As `annotated`, for a stage after download, with the mask of rows that crash."""
        try:
            table = self.measured_table(name, shard, is_whole=False)
        except FileNotFoundError:
            return None
        measured = self.measured_rows(name, shard, table)
        crashed = measured & crashed_rows(table)
        measured = measured & ~crashed
        stage = self.plan.stage(name)
        if isinstance(stage, GlobalStage):
            path = (*self.plan.summary_folder(name), f"{shard}.parquet")
            try:
                summary = _with_later(stage, self.run.read_table(*path), stage.summary)
            except FileNotFoundError:
                measured = np.zeros(table.num_rows, bool)
                summary = stage.summary.empty_table().take(pa.nulls(table.num_rows, pa.int64()))
            else:
                self._check_schema(summary, {**SUMMARIZED, **_types(stage.summary)}, *path)
                self.check_alignment(summary["uid"], table["uid"], *path)
                measured = measured & _mask(summary["summarized"])
            for column in stage.summary.names:
                table = table.append_column(column, summary[column])
        table = table.drop_columns([c for c in (DIGEST, CRASHED) if c in table.column_names])
        position = table.schema.get_field_index("measured")
        return table.set_column(position, "measured", pa.array(measured)), crashed

    def measured_table(
        self, name: str, shard: str, uids: Any = None, *, is_whole: bool = True
    ) -> pa.Table:
        """Read the file of a stage for a shard: uid, `measured` and the stage's own columns.

        Args:
            name: The stage, any but download.
            shard: A shard for which the stage has a file.
            uids: The uids of the pool's shard; given, the rows must be the same.
            is_whole: Whether the stage's `bulky` columns are read too.

        Raises:
            DamagedError: The file is not as it was written, lacks a column or is not aligned.
            FileNotFoundError: There is no file.
        """
        path = (*self.plan.folder(name), f"{shard}.parquet")
        stage = self.plan.stage(name)
        left_out = () if is_whole else stage.bulky
        table = self.run.read_table(*path, without=left_out)
        written = pa.schema([field for field in stage.writes if field.name not in left_out])
        table = _with_later(stage, table, written)
        self._check_schema(table, {**MEASURED, **_types(written)}, *path)
        if uids is not None:
            self.check_alignment(table["uid"], pa.chunked_array([uids]), *path)
        return table

    def measured_rows(self, name: str, shard: str, table: pa.Table | None = None) -> Mask:
        """Which rows of a stage's file are measured, given what the summaries say today.

        The columns of a summary follow thresholds, so a stage that takes such columns stores a
        digest of what it took for each row. After a threshold has changed, only the rows whose
        part of the summary changed are measured again.

        Args:
            name: The stage.
            shard: A shard for which the stage has a file.
            table: The content of that file, if it has been read already.
        """
        path = (*self.plan.folder(name), f"{shard}.parquet")
        if table is None:
            columns = ["measured", DIGEST] if self._summaries_taken(name) else ["measured"]
            table = self.run.read_table(*path, columns=columns)
        measured = _mask(table["measured"])
        if not measured.any() or (today := self.summary_digest(name, shard)) is None:
            return measured
        self._check_schema(table, {DIGEST: pa.int64()}, *path)
        same: Mask = np.asarray(table[DIGEST]) == today
        return measured & same

    def summary_digest(self, name: str, shard: str) -> npt.NDArray[np.int64] | None:
        """Hash what a stage takes out of summaries for each of n rows; (n,), 0 for nothing.

        None if the stage takes no column of a summary.
        """
        columns: list[Any] = []
        for origin, names in self._summaries_taken(name).items():
            path = (*self.plan.summary_folder(origin), f"{shard}.parquet")
            if self.run.exists(*path):
                columns += self.run.read_table(*path, columns=names).columns
        if not columns:
            return None
        rows = zip(*(column.to_pylist() for column in columns), strict=True)
        return np.array([_digest(row) for row in rows], np.int64)

    def _summaries_taken(self, name: str) -> dict[str, list[str]]:
        """The columns that a stage takes out of summaries, by the global stage they come from."""
        taken: dict[str, list[str]] = {}
        for column, origin in self.plan.inputs(name).items():
            stage = STAGES[origin]
            if issubclass(stage, GlobalStage) and column in stage.summary.names:
                taken.setdefault(origin, []).append(column)
        return taken

    def kept_texts(self, scores: pa.Table) -> pa.Table:
        """Which texts of some rows the filter keeps; see `FilterStage.keep_texts`.

        Args:
            scores: Rows of `annotated` for the filter.
        """
        stage: Any = self.plan.stage(FilterStage.name)
        kept: pa.Table = stage.keep_texts(scores.drop_columns("measured"))
        return kept

    def judge(self, shard: str, names: Iterable[str] | None = None) -> Judgement:
        """Compute the verdicts on one shard of the pool.

        Args:
            shard: The shard.
            names: The stages whose verdicts count, in order; all stages by default.
        """
        names = self.plan.names if names is None else tuple(names)
        columns = ["uid", "error"] if DownloadStage.name in names else ["uid"]
        pool = self.run.read_table("pool", f"{shard}.parquet", columns=columns)
        uids = pool["uid"].combine_chunks()
        result = Judgement(uids=uids, live=np.ones(len(uids), bool))
        for name in names:
            result.reached[name] = result.live
            annotations = (
                (_all_measured(pool), np.zeros(len(uids), bool))
                if name == DownloadStage.name
                else self._annotated(name, shard)
            )
            if annotations is None:
                result.measured[name] = result.crashed[name] = np.zeros(len(uids), bool)
                result.reasons[name] = pa.nulls(len(uids), pa.string())
                continue
            table, crashed = annotations
            path = (*self.plan.folder(name), f"{shard}.parquet")
            self.check_alignment(table["uid"], pool["uid"], *path)
            result.tables[name] = table
            measured = result.live & _mask(table["measured"])
            result.measured[name], result.crashed[name] = measured, result.live & crashed
            reasons = self._reasons(name, table, measured)
            if result.crashed[name].any():
                reasons = pc.if_else(pa.array(result.crashed[name]), CRASHED, reasons)
            result.reasons[name] = reasons
            result.live = result.live & ~_mask(reasons.is_valid())
        return result

    def _reasons(self, name: str, table: pa.Table, measured: Mask) -> Any:
        """The reason of a stage for each of n rows; null for rows that it keeps or did not measure.

        Raises:
            ConservationError: The stage gave more or fewer verdicts than it was given rows.
        """
        rows = table.drop_columns("measured").filter(pa.array(measured))
        reasons: Any = self.plan.stage(name).judge(rows)
        if len(reasons) != rows.num_rows:
            raise ConservationError(
                f"{name}: judge gave {len(reasons)} verdicts for {rows.num_rows} rows"
            )
        positions = np.cumsum(measured) - 1
        return reasons.take(pa.array(positions, mask=~measured))

    def tally(self, shard: str, names: Sequence[str]) -> list[dict[str, Any]]:
        """Count the verdicts on one shard.

        Returns:
            A line for each stage and verdict, with stage, verdict and rows: a verdict is `kept`, a
            reason, or None for rows that are not measured. A stage has a line of `kept` if it has
            no other.

        Raises:
            ConservationError: The rows that reached a stage are not those of its verdicts.
        """
        judgement = self.judge(shard, names)
        lines: list[dict[str, Any]] = []
        for name in names:
            reached, waiting = int(judgement.reached[name].sum()), judgement.waiting(name)
            reasons: Any = judgement.reasons[name].drop_null()
            done = int((judgement.measured[name] | judgement.crashed[name]).sum())
            numbers: dict[str | None, int] = {KEPT: done - len(reasons)}
            if waiting.any():
                numbers[None] = int(waiting.sum())
            for entry in reasons.value_counts().to_pylist():
                numbers[entry["values"]] = entry["counts"]
            if reached != (accounted := sum(numbers.values())):
                raise ConservationError(
                    f"{name}: {reached:,} rows, but {accounted:,} kept, rejected or not measured: "
                    f"{numbers} in shard {shard}. This is a bug of capfilt or of the stage"
                )
            lines += [{"stage": name, "verdict": v, "rows": n} for v, n in numbers.items()]
        return lines

    def count(self, names: Iterable[str], shards: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Count the rows, kept, not measured and reasons of each stage over some shards.

        For each stage `rows = kept + sum(reasons) + not_measured`.

        Raises:
            ConservationError: For a stage it is not.
        """
        names = list(names)
        return totals_of(names, self.run.each(lambda shard: self.tally(shard, names), shards))

    def check_alignment(
        self, uids: pa.ChunkedArray[Any], expected: pa.ChunkedArray[Any], *parts: str
    ) -> None:
        """Refuse a file of the run whose uids are not those of the pool, row for row.

        Raises:
            DamagedError: They are not.
        """
        if not uids.equals(expected):
            raise self.run.damaged("its rows are not aligned with the pool", *parts)

    def _check_schema(
        self, table: pa.Table, expected: Mapping[str, pa.DataType], *parts: str
    ) -> None:
        """Refuse a file of the run that lacks one of the expected columns, or has another type.

        Raises:
            DamagedError: It does.
        """
        for name, kind in expected.items():
            index = table.schema.get_field_index(name)  # -1 where it is missing or there twice
            actual = table.schema.field(index).type if index >= 0 else "missing"
            if actual != kind:
                raise self.run.damaged(f"its column {name} is {actual}, not {kind}", *parts)


def totals_of(
    names: Iterable[str], tallies: Iterable[Iterable[Mapping[str, Any]]]
) -> dict[str, dict[str, Any]]:
    """Sum what `Results.tally` counted: the rows, kept, not measured and reasons of each stage.

    The most frequent reason comes first, and of equally frequent ones the first by name.
    """
    totals: dict[str, dict[str, Any]] = {
        name: {"rows": 0, "kept": 0, "not_measured": 0, "reasons": {}} for name in names
    }
    for line in itertools.chain.from_iterable(tallies):
        total, verdict, rows = totals[line["stage"]], line["verdict"], line["rows"]
        total["rows"] += rows
        if verdict is None:
            total["not_measured"] += rows
        elif verdict == KEPT:
            total["kept"] += rows
        else:
            total["reasons"][verdict] = total["reasons"].get(verdict, 0) + rows
    for total in totals.values():
        total["reasons"] = dict(
            sorted(total["reasons"].items(), key=lambda item: (-item[1], item[0]))
        )
    return totals


def _with_later(stage: Any, table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A file of a stage with nulls in the columns that older versions did not write."""
    for column in schema:
        if column.name in stage.later and column.name not in table.column_names:
            table = table.append_column(column, pa.nulls(table.num_rows, column.type))
    return table


def crashed_rows(table: pa.Table) -> Mask:
    """The rows of a stage's file that crash; they count as measured, so none is tried again."""
    if CRASHED not in table.column_names:
        return np.zeros(table.num_rows, bool)
    return _mask(table[CRASHED])


def _all_measured(pool: pa.Table) -> pa.Table:
    """Rows of the pool with a column that says that download has measured all of them."""
    return pool.append_column("measured", pa.array(np.ones(pool.num_rows, bool)))


def _digest(values: tuple[Any, ...]) -> int:
    if not any(values):
        return 0
    text = json.dumps(values, default=str).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


def _mask(values: Any) -> Mask:
    mask: Mask = values.to_numpy(zero_copy_only=False).astype(bool)
    return mask


def _types(schema: pa.Schema) -> dict[str, pa.DataType]:
    return {field.name: field.type for field in schema}
