"""Map and reduce: the summary of a global stage over a pool that is too large for one process.

The steps follow one another. Each step has tasks that run on all workers; a task is idempotent and
commits one file, so that a killed run continues where it was. Rows are numbered through the pool; a
*group* is a number of shards. The rows of a task's table that go to the same task of the next step
are in one Parquet row group, so that the next task reads only these. What a step reads -> writes:

    lines       group -> the lines of `KeyedStage.lines`, by key
    reduce      keys -> the result of `KeyedStage.reduce`, by group
    conclude    group -> the summary of its shards

    sample      group -> a sample of the result of `RankedStage.ranks`
    cuts        all samples -> where the order is cut into parts; one task
    ranks       group -> the result of `RankedStage.ranks`, by part
    take        part -> its rows that are taken, by group
    conclude    group -> the summary of its shards

    ties        group -> the results of `ClusteredStage.ties`, by key, and of `points`
    edges       keys -> the rows that they link
    clusters    all edges -> the clusters, packed into bins of the size of a part; one task
    rows        group -> its rows in clusters, by bin
    decide      bin -> the result of `GlobalStage.summarize`, by group
    conclude    group -> the summary of its shards, including rows in no cluster
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from models.errors import ContractError
from models.random import splitmix
from pipeline.results.verdicts import Mask, Results, crashed_rows
from pipeline.storage.checksum import with_checksum_parquet
from pipeline.storage.records import BinsRecord, PartsRecord
from stages.base import InParts, digest, in_order
from stages.download import DownloadStage

__all__ = ["PART_ROWS", "PartitionedSummary", "commit_summary", "measured", "spread"]

PART_ROWS = 2_000_000
"""The most rows that one process summarises; more are summarised in parts."""

GROUP_ROWS = 250_000
"""Rows of a group."""

NEAR_PARTS = 64
"""The most tasks that share the search for near hashes, since each of them reads all hashes."""

GROUP_MOST = 2**24
"""The most rows of a Parquet row group."""

MARK = "_parts.json"
"""The file with the `PartsRecord`, in the folder of the summary; parts are in parts-DIGEST/."""

SAMPLE_ROWS = 1024
"""Rows of a group that are sampled to decide where the order is cut into parts."""

STEPS: dict[InParts, tuple[str, ...]] = {
    "keys": ("lines", "reduce", "conclude"),
    "ranks": ("sample", "cuts", "ranks", "take", "conclude"),
    "clusters": ("ties", "edges", "clusters", "rows", "decide", "conclude"),
}
"""The steps, by how a stage is summarised in parts."""

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PartitionedSummary:
    """One summary in parts.

    Attributes:
        results: The results of the run.
        name: The global stage.
        shards: The shards of the pool.
        part_rows: Rows of a part.
        group_rows: Rows of a group.
        folder: The folder of the parts. Its name is a digest of what they depend on, so that late
            files of a worker that survived an earlier driver are never read.
    """

    results: Results
    name: str
    shards: Sequence[str]
    part_rows: int
    group_rows: int
    folder: str

    @classmethod
    def begin(
        cls, results: Results, name: str, shards: Sequence[str], reached: str
    ) -> PartitionedSummary | None:
        """Begin a summary, or continue it; None if one process can make it, or must.

        Args:
            results: The results of the run.
            name: The global stage.
            shards: The shards of the pool.
            reached: A digest of what the live rows depend on; parts for other rows are removed.
        """
        run, plan = results.run, results.plan
        stage: Any = plan.stage(name)
        config: Any = plan.manifest.stages[DownloadStage.name]
        most = len(shards) * config.shard_size
        if not stage.in_parts or most <= PART_ROWS:
            return None
        sizes = {"part_rows": PART_ROWS, "group_rows": min(GROUP_ROWS, PART_ROWS)}
        folder = digest({"reached": reached, "shards": list(shards), **sizes})[:8]
        record = PartsRecord(
            reached=reached, shards=list(shards), folder=f"parts-{folder}", **sizes
        )
        summary = cls._of(record, results, name)
        path = (*plan.summary_folder(name), MARK)
        if run.find_record(PartsRecord, *path, damaged_ok=True) != record:
            summary.remove()
            run.write_record(record, *path)
        return summary

    @classmethod
    def open(cls, results: Results, name: str) -> PartitionedSummary:
        """Open the summary that has begun."""
        path = (*results.plan.summary_folder(name), MARK)
        return cls._of(results.run.read_record(PartsRecord, *path), results, name)

    @classmethod
    def _of(cls, record: PartsRecord, results: Results, name: str) -> PartitionedSummary:
        return cls(
            results=results,
            name=name,
            shards=record.shards,
            part_rows=record.part_rows,
            group_rows=record.group_rows,
            folder=record.folder,
        )

    def steps(self) -> Iterator[tuple[str, list[str]]]:
        """Yield each step with its tasks that are not done; later steps depend on earlier ones."""
        for step in STEPS[self.stage.in_parts]:
            there = set(self.results.run.names(*self._at()))
            number = self._tasks(step)
            names = [f"{step}:{task:05d}" for task in range(number)]
            yield step, [name for name in names if f"{name.replace(':', '-')}.parquet" not in there]

    def rows(self) -> int:
        """Count the rows that have a summary, once all steps are done."""
        groups = range(len(self.groups))
        return sum(int(self._read("conclude", group)["rows"][0].as_py()) for group in groups)

    def remove(self) -> None:
        """Remove all parts, also those for other rows."""
        run, folder = self.results.run, self.results.plan.summary_folder(self.name)
        parts = [name for name in run.names(*folder) if name.startswith("parts-")]
        for name in (MARK, *parts):
            run.remove(*folder, name)

    def work(self, task: str) -> dict[str, Any]:
        """Do a task of `steps`.

        Returns:
            rows and reasons, as of `Worker.work`.
        """
        step, number = task.split(":")
        rows: int = getattr(self, f"_{step}")(int(number))
        return {"rows": rows, "reasons": {}}

    @property
    def stage(self) -> Any:
        """The stage, not loaded."""
        return self.results.plan.stage(self.name)

    @property
    def shard_rows(self) -> int:
        """The most rows of a shard; the rows of shard i are numbered from i times this number."""
        config: Any = self.results.plan.manifest.stages[DownloadStage.name]
        return int(config.shard_size)

    @property
    def groups(self) -> list[Sequence[str]]:
        """The shards of each group."""
        size = self._group_shards
        return [self.shards[i : i + size] for i in range(0, len(self.shards), size)]

    @property
    def parts(self) -> int:
        """The number of parts of keys and orders: more than of rows, since a row has many keys."""
        return -(-4 * len(self.shards) * self.shard_rows // self.part_rows)

    @property
    def _group_shards(self) -> int:
        return max(self.group_rows // self.shard_rows, 1)

    def _tasks(self, step: str) -> int:
        if step in ("reduce", "edges", "take"):
            return self.parts
        if step == "decide":
            return self.results.run.read_record(BinsRecord, *self._at("bins.json")).bins
        return 1 if step in ("cuts", "clusters") else len(self.groups)

    # Shared by all kinds of summaries

    def _measured(self, group: int) -> _Group:
        first = group * self._group_shards
        masks, tables, numbers = {}, [], []
        for index, shard in enumerate(self.groups[group], first):
            masks[shard], table = measured(self.results, self.name, shard)
            tables.append(table)
            numbers.append(np.flatnonzero(masks[shard]) + index * self.shard_rows)
        rows = pa.concat_tables(tables).combine_chunks()
        return _Group(masks=masks, rows=rows, numbers=np.concatenate(numbers))

    def _group_of(self, numbers: Int64s) -> Int64s:
        return numbers // (self._group_shards * self.shard_rows)

    def _by_key(self, step: str, group: int, lines: pa.Table, numbers: Int64s) -> None:
        """Write lines, grouped by the task that gets their key."""
        lines = _with_row(lines, numbers[np.asarray(lines["row"])])
        # The upper bits choose the task, so the lower bits of its keys are still evenly spread.
        part = (np.asarray(lines["key"]) >> np.uint64(32)) % np.uint64(self.parts)
        self._write(step, group, lines, part.astype(np.int64))

    def _summarized(self, group: int, masks: Mapping[str, Mask], summary: pa.Table) -> int:
        """Commit the summary of a group, and last the number of its rows."""
        rows = commit_summary(self.results, self.name, masks, summary)
        self._write("conclude", group, pa.table({"rows": [rows]}), np.zeros(1, np.int64))
        return rows

    # By keys

    def _lines(self, group: int) -> int:
        live = self._measured(group)
        self._by_key("lines", group, self.stage.lines(live.rows), live.numbers)
        return live.rows.num_rows

    def _reduce(self, part: int) -> int:
        reduced = self.stage.reduce(self._gather("lines", len(self.groups), part))
        self._write("reduce", part, reduced, self._group_of(np.asarray(reduced["row"])))
        return int(reduced.num_rows)

    def _conclude(self, group: int) -> int:
        if self.stage.in_parts == "clusters":
            return self._conclude_clusters(group)
        live = self._measured(group)
        before = STEPS[self.stage.in_parts][-2]
        reduced = self._gather(before, self.parts, group)
        reduced = _with_row(reduced, np.searchsorted(live.numbers, np.asarray(reduced["row"])))
        return self._summarized(group, live.masks, self.stage.conclude(live.rows, reduced))

    # By ranks

    def _sample(self, group: int) -> int:
        ranked = self.stage.ranks(self._measured(group).rows)
        # Hashed again, since the order may consist of the lots alone.
        sample = np.argsort(splitmix(~np.asarray(ranked["lot"])), kind="stable")[:SAMPLE_ROWS]
        self._write("sample", group, ranked.take(sample), np.zeros(len(sample), np.int64))
        return len(sample)

    def _cuts(self, task: int) -> int:
        sample = self._gather("sample", len(self.groups), 0)
        sample = sample.take(in_order(_with_row(sample, np.arange(len(sample)))))
        positions = np.arange(1, self.parts) * len(sample) // self.parts
        cuts = sample.take(positions) if len(sample) else sample
        self._write("cuts", task, cuts, np.zeros(len(cuts), np.int64))
        return len(cuts)

    def _ranks(self, group: int) -> int:
        live = self._measured(group)
        ranked = self.stage.ranks(live.rows)
        cuts = self._gather("cuts", 1, 0)
        # A cut comes before the rows of its own rank and lot.
        both = pa.concat_tables([cuts, ranked])
        order = in_order(_with_row(both, np.arange(len(both))))
        part = np.empty(len(both), np.int64)
        part[order] = np.cumsum(order < len(cuts))
        numbers = live.numbers[np.asarray(ranked["row"])]
        self._write("ranks", group, _with_row(ranked, numbers), part[len(cuts) :])
        return len(ranked)

    def _take(self, part: int) -> int:
        sizes = np.zeros(self.parts, np.int64)
        for group in range(len(self.groups)):
            sizes += self._sizes("ranks", group)
        left = self.stage.size(int(sizes.sum())) - int(sizes[:part].sum())
        ranked = self._gather("ranks", len(self.groups), part)
        taken = in_order(ranked)[: max(left, 0)]
        self._write("take", part, pa.table({"row": taken}), self._group_of(taken))
        return len(taken)

    # By clusters

    def _ties(self, group: int) -> int:
        live = self._measured(group)
        points = self.stage.points(live.rows)
        points = _with_row(points, live.numbers[np.asarray(points["row"])])
        self._write("points", group, points, np.zeros(len(points), np.int64))
        self._by_key("ties", group, self.stage.ties(live.rows), live.numbers)
        return live.rows.num_rows

    def _edges(self, part: int) -> int:
        ties = self._gather("ties", len(self.groups), part)
        key, row = np.asarray(ties["key"]), np.asarray(ties["row"])
        order = np.argsort(key)
        is_same = key[order[1:]] == key[order[:-1]]
        forest = _Forest()
        forest.link(row[order[:-1]][is_same], row[order[1:]][is_same])
        del ties, key, row, order
        if part < NEAR_PARTS:
            forest.link(*self._near(part, min(self.parts, NEAR_PARTS)))
        edges = pa.table({"row": forest.row, "root": forest.root})
        self._write("edges", part, edges, np.zeros(len(edges), np.int64))
        return edges.num_rows

    def _near(self, part: int, parts: int) -> tuple[Int64s, Int64s]:
        """The pairs of rows with near hashes that one part of the search finds."""
        points = self._gather("points", len(self.groups), 0)
        hashes, first = np.unique(np.asarray(points["hash"]), return_index=True)
        row = np.asarray(points["row"])[first]
        pairs = [np.zeros((2, 0), np.int64)]
        pairs += [np.stack([row[i], row[j]]) for i, j in self.stage.near(hashes, part, parts)]
        a, b = np.concatenate(pairs, axis=1)
        return a, b

    def _clusters(self, task: int) -> int:
        forest = _Forest()
        for part in range(self.parts):
            edges = self._gather("edges", [part], 0)
            forest.link(np.asarray(edges["row"]), np.asarray(edges["root"]))
        roots, cluster, size = np.unique(forest.root, return_inverse=True, return_counts=True)
        # The largest come first, so a bin is larger than a part only if one cluster is.
        order = np.argsort(-size, kind="stable")
        bins = np.empty(len(roots), np.int64)
        bins[order] = np.maximum(np.cumsum(size[order]) - 1, 0) // self.part_rows
        row_bins = np.unique(bins, return_inverse=True)[1][cluster]
        table = pa.table({"row": forest.row, "bin": row_bins})
        record = BinsRecord(bins=int(row_bins.max(initial=-1)) + 1)
        self.results.run.write_record(record, *self._at("bins.json"))
        self._write("clusters", task, table, self._group_of(forest.row))
        return len(row_bins)

    def _bins(self, group: int, numbers: Int64s) -> Int64s:
        """The bin of each row of a group; -1 for rows in no cluster."""
        clusters = self._gather("clusters", 1, group)
        bins = np.full(len(numbers), -1)
        bins[np.searchsorted(numbers, np.asarray(clusters["row"]))] = np.asarray(clusters["bin"])
        return bins

    def _rows(self, group: int) -> int:
        live = self._measured(group)
        bins = self._bins(group, live.numbers)
        has_bin = bins >= 0
        rows = live.rows.filter(pa.array(has_bin))
        rows = rows.append_column("row", pa.array(live.numbers[has_bin]))
        self._write("rows", group, rows, bins[has_bin])
        return int(has_bin.sum())

    def _decide(self, one: int) -> int:
        numbers: list[Int64s] = []

        def tables() -> Iterator[pa.Table]:
            for group in range(len(self.groups)):
                table = self._gather("rows", [group], one)
                numbers.append(np.asarray(table["row"]))
                yield table.drop_columns("row")

        summary = self.stage.summarize(tables())
        row = np.concatenate(numbers)
        summary = summary.append_column("row", pa.array(row))
        self._write("decide", one, summary, self._group_of(row))
        return int(summary.num_rows)

    def _conclude_clusters(self, group: int) -> int:
        live = self._measured(group)
        bins = self._bins(group, live.numbers)
        alone = self.stage.summarize(iter([live.rows.filter(pa.array(bins < 0))]))
        alone = alone.append_column("row", pa.array(live.numbers[bins < 0]))
        decided = (self._read("decide", one, group) for one in range(self._tasks("decide")))
        both = pa.concat_tables([alone, *decided])
        order: Any = np.argsort(np.asarray(both["row"]))
        return self._summarized(group, live.masks, both.take(order).drop_columns("row"))

    # Files

    def _at(self, *parts: str) -> tuple[str, ...]:
        return (*self.results.plan.summary_folder(self.name), self.folder, *parts)

    def _write(self, step: str, task: int, table: pa.Table, to: Int64s) -> None:
        """Commit a table with a row group for each task of the next step.

        Args:
            step: The step.
            task: The task.
            table: n rows.
            to: (n,) the task of the next step that gets each row.
        """
        order: Any = np.argsort(to, kind="stable")
        table, to = table.take(order), to[order]
        is_first = np.diff(to, prepend=-1) != 0
        is_first[::GROUP_MOST] = True
        starts = np.flatnonzero(is_first)
        schema = table.schema.with_metadata({"to": json.dumps(to[starts].tolist())})
        buffer = io.BytesIO()
        with pq.ParquetWriter(buffer, schema, compression="zstd", compression_level=1) as writer:
            numbers = np.diff(starts, append=len(to)).tolist()
            for start, number in zip(starts.tolist(), numbers, strict=True):
                writer.write_table(table.slice(start, number), number)
        self.results.run.write(
            with_checksum_parquet(buffer.getvalue()), *self._at(f"{step}-{task:05d}.parquet")
        )

    def _gather(self, step: str, tasks: int | Sequence[int], to: int) -> pa.Table:
        """Read what some tasks of a step, or the first so many, sent to a task."""
        tasks = range(tasks) if isinstance(tasks, int) else tasks
        return pa.concat_tables(self._read(step, task, to) for task in tasks)

    def _sizes(self, step: str, task: int) -> Int64s:
        """Count the rows that a task sent to each task of the next step; (parts,)."""
        with self.results.run.open_table(*self._at(f"{step}-{task:05d}.parquet")) as parquet:
            sent = _sent(parquet)
            numbers = [parquet.metadata.row_group(index).num_rows for index in range(len(sent))]
        return np.bincount(sent, numbers, self.parts).astype(np.int64)

    def _read(self, step: str, task: int, to: int = 0) -> pa.Table:
        with self.results.run.open_table(*self._at(f"{step}-{task:05d}.parquet")) as parquet:
            groups = [index for index, one in enumerate(_sent(parquet)) if one == to]
            return parquet.read_row_groups(groups).replace_schema_metadata()


@dataclass(frozen=True, kw_only=True)
class _Group:
    """The rows of a group that are summarised.

    Attributes:
        masks: The rows of each shard.
        rows: Their measurements.
        numbers: Their numbers in the pool.
    """

    masks: Mapping[str, Mask]
    rows: pa.Table
    numbers: Int64s


class _Forest:
    """Connected components of linked rows; memory grows with the number of linked rows.

    Attributes:
        row: (n,) the linked rows, ascending.
        root: (n,) one row for each component.
    """

    def __init__(self) -> None:
        self.row = np.zeros(0, np.int64)
        self.root = np.zeros(0, np.int64)

    def link(self, a: Int64s, b: Int64s) -> None:
        """Link the rows of m pairs."""
        if not len(a):
            return
        ends = np.concatenate([self.row, a]), np.concatenate([self.root, b])
        self.row, positions = np.unique(np.concatenate(ends), return_inverse=True)
        i, j = positions.reshape(2, -1)
        number = len(self.row)
        graph = coo_matrix((np.ones(len(i), np.int8), (i, j)), shape=(number, number))
        _, label = connected_components(graph, directed=False)
        self.root = self.row[np.unique(label, return_index=True)[1]][label]


def measured(results: Results, name: str, shard: str) -> tuple[Mask, pa.Table]:
    """Read the rows of a shard that a global stage summarises: live rows that do not crash.

    Returns:
        The mask of these rows, and their uid, measurements and `pooled` columns.
    """
    plan = results.plan
    judgement = results.judge(shard, plan.before(name))
    table = results.measured_table(name, shard, judgement.uids)
    mask = judgement.live & ~crashed_rows(table)
    columns = ["uid", *plan.stage(name).writes.names]
    table = table.select(columns).filter(pa.array(mask))
    for column in plan.manifest.stages[name].pooled:
        path = (*plan.folder(str(plan.origin(name, column))), f"{shard}.parquet")
        taken = results.run.read_table(*path, columns=[column])
        table = table.append_column(column, taken[column].filter(pa.array(mask)))
    return mask, table


def commit_summary(
    results: Results, name: str, masks: Mapping[str, Mask], summary: pa.Table
) -> int:
    """Commit a summary, a file for each shard.

    Args:
        results: The results of the run.
        name: The global stage.
        masks: For each shard the rows that are summarised.
        summary: Their rows in the order of the shards.

    Returns:
        The number of rows.

    Raises:
        ContractError: The summary is not in the order of these rows.
    """
    start = 0
    for shard, mask in masks.items():
        part = summary.slice(start, int(mask.sum()))
        start += part.num_rows
        _commit_shard(results, name, shard, mask, part)
    return start


def _commit_shard(results: Results, name: str, shard: str, live: Mask, summary: pa.Table) -> None:
    """Commit the summary of the live rows of a shard, with nulls for its other rows."""
    run = results.run
    uids = run.read_table("pool", f"{shard}.parquet", columns=["uid"])["uid"]
    if not summary["uid"].equals(uids.filter(pa.array(live))):
        raise ContractError(f"{name}: its summary is not in the order of the rows given")
    whole = spread(live, summary.drop_columns("uid"))
    columns = {column: whole[column] for column in whole.column_names}
    table = pa.table({"uid": uids, "summarized": pa.array(live), **columns})
    run.write_table(table, *results.plan.summary_folder(name), f"{shard}.parquet")


def spread(mask: Mask, part: pa.Table) -> pa.Table:
    """Spread rows over a shard: rows of `part` where mask is true, nulls elsewhere."""
    positions: Any = pa.array(np.cumsum(mask) - 1, pa.int64(), mask=~mask)
    whole: pa.Table = part.combine_chunks().take(positions)
    return whole


def _sent(parquet: pq.ParquetFile) -> list[int]:
    """The task of the next step that gets each row group."""
    tasks: list[int] = json.loads((parquet.schema_arrow.metadata or {})[b"to"])
    return tasks


def _with_row(table: pa.Table, row: Int64s) -> pa.Table:
    return table.set_column(table.schema.get_field_index("row"), "row", pa.array(row))
