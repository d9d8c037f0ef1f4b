"""Verdicts: what became of each row, derived from the annotations whenever it is asked.

Nothing is stored, so that a changed threshold shows at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.manifest.manifest import STAGES
from pipeline.manifest.plan import Plan
from pipeline.storage.run import Run
from stages.base import CRASHED, GlobalStage
from stages.clean import CleanStage
from stages.download import DownloadStage
from stages.filter import FilterStage

__all__ = [
    "DIGEST",
    "KEPT",
    "ConservationError",
    "Judgement",
    "Mask",
    "annotated",
    "check_alignment",
    "check_schema",
    "count",
    "crashed_rows",
    "judge",
    "kept_texts",
    "measured_rows",
    "measured_table",
    "summary_digest",
    "verdict_table",
]

DIGEST = "taken"
"""The column beside `measured` in the file of a stage that takes columns of a summary."""

FIRED = pa.field("clean_fired", pa.int64(), metadata={"bits": ",".join(CleanStage.reasons)})

KEPT = "kept"
"""What stands for the stage in a table of verdicts when no stage rejected the row."""

MEASURED: dict[str, pa.DataType] = {"uid": pa.string(), "measured": pa.bool_()}
"""What the file of a stage has beside the columns it writes."""

SUMMARIZED: dict[str, pa.DataType] = {"uid": pa.string(), "summarized": pa.bool_()}
"""What a summary has beside its columns."""

Mask = npt.NDArray[np.bool_]


class ConservationError(RuntimeError):
    """A stage has lost rows, or made some up."""


@dataclass
class Judgement:
    """The verdicts of one shard, stage by stage.

    Attributes:
        uids: The n rows of the shard.
        live: Rows that no judged stage rejected.
        reached: Rows that were alive when each stage came.
        measured: Rows that each stage has measured, among those that reached it.
        crashed: Rows that reached each stage and cannot be measured, as the process ends.
        reasons: The reason of each stage for each of the n rows, null where it rejects none.
        tables: What each stage measured, as `annotated` gives it, where it has run; of download
            no more than the error.
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
        """Rows that reached a stage and that it has still to measure."""
        waiting: Mask = self.reached[name] & ~self.measured[name] & ~self.crashed[name]
        return waiting


def annotated(run: Run, plan: Plan, name: str, shard: str) -> pa.Table | None:
    """What a stage measured on a shard, its summary beside it, or None where it has not run.

    Returns:
        uid, `measured` and the stage's columns, row for row with the pool. A global stage has
        measured a row only once its summary covers it; a row that crashes is never measured.
    """
    if name == DownloadStage.name:
        columns = [c for c in ("uid", *STAGES[name].writes.names) if c != "image"]
        try:
            return _all_measured(run.read_table("pool", f"{shard}.parquet", columns=columns))
        except FileNotFoundError:
            return None
    found = _annotated(run, plan, name, shard)
    return None if found is None else found[0]


def _all_measured(pool: pa.Table) -> pa.Table:
    """Rows of the pool, all of which download has measured."""
    return pool.append_column("measured", pa.array(np.ones(pool.num_rows, bool)))


def _annotated(run: Run, plan: Plan, name: str, shard: str) -> tuple[pa.Table, Mask] | None:
    """What `annotated` gives of a stage after download, and the rows that crash."""
    file = f"{shard}.parquet"
    try:
        table = measured_table(run, plan, name, shard)
    except FileNotFoundError:
        return None
    measured = measured_rows(run, plan, name, shard, table)
    crashed = measured & crashed_rows(table)
    measured = measured & ~crashed
    stage = plan.stage(name)
    if isinstance(stage, GlobalStage):
        path = (*plan.summary_folder(name), file)
        try:
            summary = run.read_table(*path)
        except FileNotFoundError:
            measured = np.zeros(table.num_rows, bool)
            summary = stage.summary.empty_table().take(pa.nulls(table.num_rows, pa.int64()))
        else:
            check_schema(run, summary, {**SUMMARIZED, **_types(stage.summary)}, *path)
            check_alignment(run, summary["uid"], table["uid"], *path)
            measured = measured & _mask(summary["summarized"])
        for column in stage.summary.names:
            table = table.append_column(column, summary[column])
    table = table.drop_columns([c for c in (DIGEST, CRASHED) if c in table.column_names])
    position = table.schema.get_field_index("measured")
    return table.set_column(position, "measured", pa.array(measured)), crashed


def crashed_rows(table: pa.Table) -> Mask:
    """The rows of a stage's file that crash: measured there, so that none is tried again."""
    if CRASHED not in table.column_names:
        return np.zeros(table.num_rows, bool)
    return _mask(table[CRASHED])


def measured_table(run: Run, plan: Plan, name: str, shard: str, uids: Any = None) -> pa.Table:
    """The file of a stage for a shard: uid, `measured`, the columns that the stage writes.

    Args:
        run: The run.
        plan: Its plan.
        name: The stage, any but download.
        shard: The shard, of which the stage has a file.
        uids: Those of the pool, where the rows are to be held against them.

    Raises:
        DamagedError: The file is not as it was written, lacks a column or is not aligned.
    """
    path = (*plan.folder(name), f"{shard}.parquet")
    table = run.read_table(*path)
    check_schema(run, table, {**MEASURED, **_types(STAGES[name].writes)}, *path)
    if uids is not None:
        check_alignment(run, table["uid"], pa.chunked_array([uids]), *path)
    return table


def kept_texts(plan: Plan, scores: pa.Table) -> pa.Table:
    """Which texts of some rows of `annotated` the filter keeps, as `FilterStage.keep_texts`."""
    stage = plan.stage(FilterStage.name)
    assert isinstance(stage, FilterStage)
    return stage.keep_texts(scores.drop_columns("measured"))


def measured_rows(
    run: Run, plan: Plan, name: str, shard: str, table: pa.Table | None = None
) -> Mask:
    """The rows of a stage's file that are measured, from what its summaries say today.

    The columns of a summary follow thresholds, so a stage that takes some keeps a digest of
    what it took of each row: a changed threshold has those rows measured anew whose part of the
    summary it changed, and no others.

    Args:
        run: The run.
        plan: Its plan.
        name: The stage.
        shard: The shard, of which the stage has a file.
        table: That file, where it has been read.
    """
    if table is None:
        columns = ["measured", DIGEST] if _from_summaries(plan, name) else ["measured"]
        table = run.read_table(*plan.folder(name), f"{shard}.parquet", columns=columns)
    measured = _mask(table["measured"])
    if not measured.any() or (today := summary_digest(run, plan, name, shard)) is None:
        return measured
    check_schema(run, table, {DIGEST: pa.int64()}, *plan.folder(name), f"{shard}.parquet")
    same: Mask = np.asarray(table[DIGEST]) == today
    return measured & same


def summary_digest(run: Run, plan: Plan, name: str, shard: str) -> npt.NDArray[np.int64] | None:
    """A number for what a stage takes of each of n rows out of summaries, 0 for nothing; (n,).

    None where it takes no column of a summary.
    """
    columns: list[Any] = []
    for origin, names in _from_summaries(plan, name).items():
        path = (*plan.summary_folder(origin), f"{shard}.parquet")
        columns += run.read_table(*path, columns=names).columns if run.exists(*path) else []
    if not columns:
        return None
    rows = zip(*(column.to_pylist() for column in columns), strict=True)
    return np.array([_digest(row) for row in rows], np.int64)


def _from_summaries(plan: Plan, name: str) -> dict[str, list[str]]:
    """The columns that a stage takes out of the summary of each earlier global stage."""
    taken: dict[str, list[str]] = {}
    for column, origin in plan.inputs(name).items():
        stage = STAGES[origin]
        if issubclass(stage, GlobalStage) and column in stage.summary.names:
            taken.setdefault(origin, []).append(column)
    return taken


def _digest(values: tuple[Any, ...]) -> int:
    if not any(values):
        return 0
    text = json.dumps(values, default=str).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


def judge(run: Run, plan: Plan, shard: str, names: Iterable[str]) -> Judgement:
    """The verdicts of the stages `names`, in order, on one shard of the pool."""
    names = tuple(names)
    columns = ["uid", "error"] if DownloadStage.name in names else ["uid"]
    pool = run.read_table("pool", f"{shard}.parquet", columns=columns)
    uids = pool["uid"].combine_chunks()
    found = Judgement(uids=uids, live=np.ones(len(uids), bool))
    for name in names:
        found.reached[name] = found.live
        known = (
            (_all_measured(pool), np.zeros(len(uids), bool))
            if name == DownloadStage.name
            else _annotated(run, plan, name, shard)
        )
        if known is None:
            found.measured[name] = found.crashed[name] = np.zeros(len(uids), bool)
            found.reasons[name] = pa.nulls(len(uids), pa.string())
            continue
        table, crashed = known
        check_alignment(run, table["uid"], pool["uid"], *plan.folder(name), f"{shard}.parquet")
        found.tables[name] = table
        measured = found.live & _mask(table["measured"])
        rows = table.drop_columns("measured").filter(pa.array(measured))
        reasons: Any = plan.stage(name).judge(rows)
        if len(reasons) != rows.num_rows:
            raise ValueError(f"{name}: judge gave {len(reasons)} verdicts for {rows.num_rows} rows")
        positions = np.cumsum(measured) - 1
        reasons = reasons.take(pa.array(positions, mask=~measured))
        found.measured[name], found.crashed[name] = measured, found.live & crashed
        if found.crashed[name].any():
            reasons = pc.if_else(pa.array(found.crashed[name]), CRASHED, reasons)
        found.reasons[name] = reasons
        found.live = found.live & ~_mask(found.reasons[name].is_valid())
    return found


def count(run: Run, plan: Plan, names: Iterable[str], shards: Iterable[str]) -> dict[str, Any]:
    """Rows, kept, not measured and reasons of each stage over the shards.

    For each stage `rows = kept + sum(reasons) + not_measured`.

    Raises:
        ConservationError: For a stage it is not.
    """
    names = list(names)
    totals: dict[str, dict[str, Any]] = {
        name: {"rows": 0, "kept": 0, "not_measured": 0, "reasons": {}} for name in names
    }
    for found in run.each(lambda shard: judge(run, plan, shard, names), list(shards)):
        for name in names:
            total = totals[name]
            total["rows"] += int(found.reached[name].sum())
            total["not_measured"] += int(found.waiting(name).sum())
            reasons: Any = found.reasons[name].drop_null()
            done = found.measured[name] | found.crashed[name]
            total["kept"] += int(done.sum()) - len(reasons)
            for entry in reasons.value_counts().to_pylist():
                key = entry["values"]
                total["reasons"][key] = total["reasons"].get(key, 0) + entry["counts"]
    for name, total in totals.items():
        total["reasons"] = dict(sorted(total["reasons"].items(), key=lambda item: -item[1]))
        told = total["kept"] + sum(total["reasons"].values()) + total["not_measured"]
        if total["rows"] != told:
            raise ConservationError(
                f"{name}: {total['rows']:,} rows, but {told:,} kept, rejected or not measured: "
                f"{total}. This is a bug of capfilt or of the stage"
            )
    return totals


def verdict_table(run: Run, plan: Plan, shards: Iterable[str]) -> Iterator[pa.Table]:
    """What became of every row of the pool, a table a shard.

    Returns:
        uid, source, url, caption, stage (the first that rejected it, or `kept`), reason; where
        clean is a stage, clean_fired, all its rules that fired on the row as a bitmask: bit i is
        the i-th of its reasons, which the field's metadata lists.
    """
    for shard in shards:
        found = judge(run, plan, shard, plan.names)
        columns = run.read_table(
            "pool", f"{shard}.parquet", columns=["uid", "source", "url", "caption"]
        )
        stages = np.full(len(found.uids), KEPT, dtype=object)
        reasons: Any = pa.nulls(len(found.uids), pa.string())
        for name in plan.names:
            rejected = _mask(found.reasons[name].is_valid())
            stages[rejected] = name
            reasons = pc.coalesce(reasons, found.reasons[name])
        columns = columns.append_column("stage", pa.array(stages, pa.string()))
        columns = columns.append_column("reason", reasons)
        if CleanStage.name in plan.names:
            columns = columns.append_column(FIRED, _fired(plan, found))
        yield columns


def _fired(plan: Plan, found: Judgement) -> Any:
    """The rules of clean that fired on each row it has measured, null for the others."""
    measured = found.measured[CleanStage.name]
    table = found.tables.get(CleanStage.name)
    stage = plan.stage(CleanStage.name)
    assert isinstance(stage, CleanStage)
    if table is None:
        return pa.nulls(len(measured), pa.int64())
    bits = pa.array(stage.fired(table.filter(pa.array(measured))), pa.int64())
    return bits.take(pa.array(np.cumsum(measured) - 1, mask=~measured))


def _mask(values: Any) -> Mask:
    mask: Mask = values.to_numpy(zero_copy_only=False).astype(bool)
    return mask


def _types(schema: pa.Schema) -> dict[str, pa.DataType]:
    return {field.name: field.type for field in schema}


def check_schema(
    run: Run, table: pa.Table, expected: Mapping[str, pa.DataType], *parts: str
) -> None:
    """Refuse a file of a run without the columns that it should have.

    Raises:
        DamagedError: One is missing, or of another type.
    """
    for name, kind in expected.items():
        index = table.schema.get_field_index(name)  # -1 where it is missing or there twice
        found = table.schema.field(index).type if index >= 0 else "missing"
        if found != kind:
            raise run.damaged(f"its column {name} is {found}, not {kind}", *parts)


def check_alignment(
    run: Run, found: pa.ChunkedArray[Any], expected: pa.ChunkedArray[Any], *parts: str
) -> None:
    """Refuse a file of a run whose uids are not those of the pool, row for row.

    Raises:
        DamagedError: They are not.
    """
    if not found.equals(expected):
        raise run.damaged("its rows are not aligned with the pool", *parts)
