"""The summary of a global stage over a pool too large for one process: in parts, on disk.

Steps follow one another, each on all workers, each idempotent and with a file a task, so that a
run that is killed goes on where it was. Rows are numbered through the pool; a *group* is some
shards. `write` puts the rows of a table that go to one task of the next step into one row group, so
that it reads those alone.

    lines       group -> what `KeyedStage.lines` gives, by key
    reduce      keys -> what `KeyedStage.reduce` gives, by group
    conclude    group -> the summary of its shards

    sample      group -> some of what `RankedStage.ranks` gives
    cuts        all samples -> where the order is cut into parts; one task
    ranks       group -> what `RankedStage.ranks` gives, by part
    take        part -> the rows of it that are taken, by group
    conclude    group -> the summary of its shards

    ties        group -> what `ClusteredStage.ties` gives, by key, and `points`
    edges       keys -> the rows that they link
    clusters    all edges -> the clusters, packed into bins of a part's size; one task
    rows        group -> the rows of clusters, by bin
    decide      bin -> what `GlobalStage.summarize` gives, by group
    conclude    group -> the summary of its shards; rows in no cluster are summarised here
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

from models.random import splitmix
from pipeline.results.verdicts import Mask, Results, crashed_rows
from pipeline.storage.checksum import with_checksum_parquet
from pipeline.storage.records import BinsRecord, PartsRecord
from stages.base import InParts, digest, in_order
from stages.download import DownloadStage

__all__ = ["PART_ROWS", "PartitionedSummary", "laid_out", "measured", "scatter"]

PART_ROWS = 2_000_000
"""Rows that one process summarises; more are done in parts."""

GROUP_ROWS = 250_000
"""Rows of a group."""

NEAR_PARTS = 64
"""Tasks among which the search for near hashes is divided at most; each reads all hashes."""

GROUP_MOST = 2**24
"""Rows of a row group of Parquet."""

MARK = "_parts.json"
"""In the folder of a summary, what its parts are of and where they lie: parts-DIGEST/ beside it."""

SAMPLE_ROWS = 1024
"""Rows of a group whose places in an order say where it is cut."""

STEPS: dict[InParts, tuple[str, ...]] = {
    "keys": ("lines", "reduce", "conclude"),
    "ranks": ("sample", "cuts", "ranks", "take", "conclude"),
    "clusters": ("ties", "edges", "clusters", "rows", "decide", "conclude"),
}
"""By how a stage is summarised in parts."""

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
        folder: Of the parts, named by what they depend on, so that none of other rows, which a
            worker that outlives its driver may write late, is ever read.
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
        """Begin it, or go on with it; None where one process can do it, or must.

        Args:
            results: The results of the run.
            name: The global stage.
            shards: The shards of the pool.
            reached: What the live rows depend on; parts of other rows are removed.
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
        """The one that has begun."""
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
        """Each step with the tasks that it has left; the tasks of one are known when it comes."""
        for step in STEPS[self.stage.in_parts]:
            there = set(self.results.run.names(*self._at()))
            number = self._tasks(step)
            names = [f"{step}:{task:05d}" for task in range(number)]
            yield step, [name for name in names if f"{name.replace(':', '-')}.parquet" not in there]

    def rows(self) -> int:
        """How many rows have a summary, once all steps are done."""
        groups = range(len(self.groups))
        return sum(int(self._read("conclude", group)["rows"][0].as_py()) for group in groups)

    def remove(self) -> None:
        """Remove the parts, and those of other rows."""
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
        """The most rows of a shard; the rows of shard i are numbered from i times that on."""
        config: Any = self.results.plan.manifest.stages[DownloadStage.name]
        return int(config.shard_size)

    @property
    def groups(self) -> list[Sequence[str]]:
        """The shards of each group."""
        size = self._group_shards
        return [self.shards[i : i + size] for i in range(0, len(self.shards), size)]

    @property
    def parts(self) -> int:
        """Into how many parts keys and orders fall: more than the rows, as a row has many keys."""
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

    # What all ways share

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
        """Write lines for the task that has their key."""
        lines = _with_row(lines, numbers[np.asarray(lines["row"])])
        # The upper bits choose, so that a task's keys are as good as random in the lower ones.
        part = (np.asarray(lines["key"]) >> np.uint64(32)) % np.uint64(self.parts)
        self._write(step, group, lines, part.astype(np.int64))

    def _summarized(self, group: int, masks: Mapping[str, Mask], summary: pa.Table) -> int:
        """Write the summary of a group's rows, and last how many there are."""
        rows = scatter(self.results, self.name, masks, summary)
        self._write("conclude", group, pa.table({"rows": [rows]}), np.zeros(1, np.int64))
        return rows

    # By keys

    def _lines(self, group: int) -> int:
        found = self._measured(group)
        self._by_key("lines", group, self.stage.lines(found.rows), found.numbers)
        return found.rows.num_rows

    def _reduce(self, part: int) -> int:
        found = self.stage.reduce(self._gather("lines", len(self.groups), part))
        self._write("reduce", part, found, self._group_of(np.asarray(found["row"])))
        return int(found.num_rows)

    def _conclude(self, group: int) -> int:
        if self.stage.in_parts == "clusters":
            return self._conclude_clusters(group)
        live = self._measured(group)
        before = STEPS[self.stage.in_parts][-2]
        found = self._gather(before, self.parts, group)
        found = _with_row(found, np.searchsorted(live.numbers, np.asarray(found["row"])))
        return self._summarized(group, live.masks, self.stage.conclude(live.rows, found))

    # By ranks

    def _sample(self, group: int) -> int:
        ranked = self.stage.ranks(self._measured(group).rows)
        # Mixed anew, as the lots may be all of the order.
        some = np.argsort(splitmix(~np.asarray(ranked["lot"])), kind="stable")[:SAMPLE_ROWS]
        self._write("sample", group, ranked.take(some), np.zeros(len(some), np.int64))
        return len(some)

    def _cuts(self, task: int) -> int:
        some = self._gather("sample", len(self.groups), 0)
        some = some.take(in_order(_with_row(some, np.arange(len(some)))))
        places = np.arange(1, self.parts) * len(some) // self.parts
        cuts = some.take(places) if len(some) else some
        self._write("cuts", task, cuts, np.zeros(len(cuts), np.int64))
        return len(cuts)

    def _ranks(self, group: int) -> int:
        found = self._measured(group)
        ranked = self.stage.ranks(found.rows)
        cuts = self._gather("cuts", 1, 0)
        # A cut comes before the rows of its own rank and lot.
        both = pa.concat_tables([cuts, ranked])
        places = in_order(_with_row(both, np.arange(len(both))))
        part = np.empty(len(both), np.int64)
        part[places] = np.cumsum(places < len(cuts))
        numbers = found.numbers[np.asarray(ranked["row"])]
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
        found = self._measured(group)
        points = self.stage.points(found.rows)
        points = _with_row(points, found.numbers[np.asarray(points["row"])])
        self._write("points", group, points, np.zeros(len(points), np.int64))
        self._by_key("ties", group, self.stage.ties(found.rows), found.numbers)
        return found.rows.num_rows

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
        """Pairs of rows whose hashes are near, those that one part of the search finds."""
        points = self._gather("points", len(self.groups), 0)
        hashes, first = np.unique(np.asarray(points["hash"]), return_index=True)
        row = np.asarray(points["row"])[first]
        found = [np.zeros((2, 0), np.int64)]
        found += [np.stack([row[i], row[j]]) for i, j in self.stage.near(hashes, part, parts)]
        a, b = np.concatenate(found, axis=1)
        return a, b

    def _clusters(self, task: int) -> int:
        forest = _Forest()
        for part in range(self.parts):
            edges = self._gather("edges", [part], 0)
            forest.link(np.asarray(edges["row"]), np.asarray(edges["root"]))
        roots, cluster, size = np.unique(forest.root, return_inverse=True, return_counts=True)
        # The largest first, so that a bin is hardly larger than a part unless one cluster is.
        order = np.argsort(-size, kind="stable")
        bins = np.empty(len(roots), np.int64)
        bins[order] = np.maximum(np.cumsum(size[order]) - 1, 0) // self.part_rows
        found = np.unique(bins, return_inverse=True)[1][cluster]
        table = pa.table({"row": forest.row, "bin": found})
        bins_record = BinsRecord(bins=int(found.max(initial=-1)) + 1)
        self.results.run.write_record(bins_record, *self._at("bins.json"))
        self._write("clusters", task, table, self._group_of(forest.row))
        return len(found)

    def _bins(self, group: int, numbers: Int64s) -> Int64s:
        """The bin of each row of a group, -1 for those in no cluster."""
        found = self._gather("clusters", 1, group)
        bins = np.full(len(numbers), -1)
        bins[np.searchsorted(numbers, np.asarray(found["row"]))] = np.asarray(found["bin"])
        return bins

    def _rows(self, group: int) -> int:
        found = self._measured(group)
        bins = self._bins(group, found.numbers)
        has_bin = bins >= 0
        rows = found.rows.filter(pa.array(has_bin))
        rows = rows.append_column("row", pa.array(found.numbers[has_bin]))
        self._write("rows", group, rows, bins[has_bin])
        return int(has_bin.sum())

    def _decide(self, one: int) -> int:
        numbers: list[Int64s] = []

        def tables() -> Iterator[pa.Table]:
            for group in range(len(self.groups)):
                table = self._gather("rows", [group], one)
                numbers.append(np.asarray(table["row"]))
                yield table.drop_columns("row")

        found = self.stage.summarize(tables())
        row = np.concatenate(numbers)
        found = found.append_column("row", pa.array(row))
        self._write("decide", one, found, self._group_of(row))
        return int(found.num_rows)

    def _conclude_clusters(self, group: int) -> int:
        found = self._measured(group)
        bins = self._bins(group, found.numbers)
        alone = self.stage.summarize(iter([found.rows.filter(pa.array(bins < 0))]))
        alone = alone.append_column("row", pa.array(found.numbers[bins < 0]))
        decided = (self._read("decide", one, group) for one in range(self._tasks("decide")))
        both = pa.concat_tables([alone, *decided])
        order: Any = np.argsort(np.asarray(both["row"]))
        return self._summarized(group, found.masks, both.take(order).drop_columns("row"))

    # Files

    def _at(self, *parts: str) -> tuple[str, ...]:
        return (*self.results.plan.summary_folder(self.name), self.folder, *parts)

    def _write(self, step: str, task: int, table: pa.Table, to: Int64s) -> None:
        """Commit a table with row groups for each task of the next step that is sent rows."""
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
        """What the tasks of a step, all or some, have sent to one."""
        tasks = range(tasks) if isinstance(tasks, int) else tasks
        return pa.concat_tables(self._read(step, task, to) for task in tasks)

    def _sizes(self, step: str, task: int) -> Int64s:
        """(parts,) how many rows a task of a step has sent to each task of the next."""
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
    """The rows of a group that are summarised: which of each shard, measured, and numbered."""

    masks: Mapping[str, Mask]
    rows: pa.Table
    numbers: Int64s


class _Forest:
    """Which rows are linked, directly or through others; memory in proportion to these."""

    def __init__(self) -> None:
        self.row = np.zeros(0, np.int64)
        self.root = np.zeros(0, np.int64)

    def link(self, a: Int64s, b: Int64s) -> None:
        """Link rows, pair by pair."""
        if not len(a):
            return
        ends = np.concatenate([self.row, a]), np.concatenate([self.root, b])
        self.row, places = np.unique(np.concatenate(ends), return_inverse=True)
        i, j = places.reshape(2, -1)
        number = len(self.row)
        graph = coo_matrix((np.ones(len(i), np.int8), (i, j)), shape=(number, number))
        _, label = connected_components(graph, directed=False)
        self.root = self.row[np.unique(label, return_index=True)[1]][label]


def measured(results: Results, name: str, shard: str) -> tuple[Mask, pa.Table]:
    """Which rows of a shard a global stage decides over, and what it measured of these.

    They are the live ones, without those that crash.
    """
    judgement = results.judge(shard, results.plan.before(name))
    table = results.measured_table(name, shard, judgement.uids)
    mask = judgement.live & ~crashed_rows(table)
    columns = ["uid", *results.plan.stage(name).writes.names]
    return mask, table.select(columns).filter(pa.array(mask))


def scatter(results: Results, name: str, masks: Mapping[str, Mask], summary: pa.Table) -> int:
    """Commit the summary of some rows of each shard, in order; how many rows they are.

    Raises:
        ValueError: It is not in the order of these rows.
    """
    start = 0
    for shard, mask in masks.items():
        part = summary.slice(start, int(mask.sum()))
        start += part.num_rows
        _scatter(results, name, shard, mask, part)
    return start


def _scatter(results: Results, name: str, shard: str, live: Mask, summary: pa.Table) -> None:
    """Commit the summary of the live rows of a shard, laid out over all its rows."""
    run = results.run
    uids = run.read_table("pool", f"{shard}.parquet", columns=["uid"])["uid"]
    if not summary["uid"].equals(uids.filter(pa.array(live))):
        raise ValueError(f"{name}: its summary is not in the order of the rows given")
    laid = laid_out(live, summary.drop_columns("uid"))
    columns = {column: laid[column] for column in laid.column_names}
    table = pa.table({"uid": uids, "summarized": pa.array(live), **columns})
    run.write_table(table, *results.plan.summary_folder(name), f"{shard}.parquet")


def laid_out(mask: Mask, part: pa.Table) -> pa.Table:
    """Rows laid out over the shard: those of `part` where mask is true, nulls elsewhere."""
    positions: Any = pa.array(np.cumsum(mask) - 1, pa.int64(), mask=~mask)
    laid: pa.Table = part.combine_chunks().take(positions)
    return laid


def _sent(parquet: pq.ParquetFile) -> list[int]:
    """The task that each row group is sent to."""
    found: list[int] = json.loads((parquet.schema_arrow.metadata or {})[b"to"])
    return found


def _with_row(table: pa.Table, row: Int64s) -> pa.Table:
    return table.set_column(table.schema.get_field_index("row"), "row", pa.array(row))
