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

If what rows are ranked by follows from the embeddings of the whole pool, the steps of `scores` come
first.

    scored      group -> the result of `RankedStage.ranks`
    draw        all of these -> how often each row is drawn, by group; one task, which keeps them in
                temporary files, since each batch of draws follows from the one before
    conclude    group -> the summary of its shards

    ties        group -> the results of `ClusteredStage.ties`, by key, and of `points`
    edges       keys -> the rows that they link
    clusters    all edges -> the clusters, packed into bins of the size of a part; one task
    rows        group -> its rows in clusters, by bin
    decide      bin -> the result of `ClusteredStage.clusters`, by group
    conclude    group -> the summary of its shards, including rows in no cluster

If rows that the clusters leave are compared by embedding, the steps of `comparison` stand before
that last one, which then is theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.components import connected_components
from models.random import splitmix
from pipeline.execution.comparison import Comparison
from pipeline.execution.parts import Group, Parts, with_row
from pipeline.execution.scores import Scores
from pipeline.results.verdicts import Results
from pipeline.storage.records import BinsRecord, PartsRecord
from stages.base import InParts, digest, in_order
from stages.download import DownloadStage
from stages.spilled import Spilled

__all__ = ["PART_ROWS", "PartitionedSummary"]

PART_ROWS = 2_000_000
"""The most rows that one process summarises; more are summarised in parts."""

GROUP_ROWS = 250_000
"""Rows of a group."""

NEAR_PARTS = 64
"""The most tasks that share the search for near hashes, since each of them reads all hashes."""

MARK = "_parts.json"
"""The file with the `PartsRecord`, in the folder of the summary; parts are in parts-DIGEST/."""

SAMPLE_ROWS = 1024
"""Rows of a group that are sampled to decide where the order is cut into parts."""

STEPS: dict[InParts, tuple[str, ...]] = {
    "keys": ("lines", "reduce", "conclude"),
    "ranks": ("sample", "cuts", "ranks", "take", "conclude"),
    "draws": ("scored", "draw", "conclude"),
    "clusters": ("ties", "edges", "clusters", "rows", "decide", "conclude"),
}
"""The steps, by how a stage is summarised in parts."""

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PartitionedSummary(Parts):
    """One summary in parts."""

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
        for step, number in self._all_steps():
            there = set(self.results.run.names(*self.at()))
            names = [f"{step}:{task:05d}" for task in range(number)]
            yield step, [name for name in names if f"{name.replace(':', '-')}.parquet" not in there]

    def _all_steps(self) -> Iterator[tuple[str, int]]:
        """Yield each step with the number of its tasks, which earlier steps may decide."""
        steps = STEPS[self.stage.in_parts]
        if self._scores:
            yield from Scores(self).steps()
        for step in steps[:-1] if self._compares else steps:
            yield step, self._tasks(step)
        if self._compares:
            yield from Comparison(self, self.clustered).steps()

    @property
    def _compares(self) -> bool:
        return self.stage.in_parts == "clusters" and self.stage.min_cosine is not None

    @property
    def _scores(self) -> bool:
        return self.stage.in_parts == "ranks" and bool(self.stage.config.pooled)

    def _ranked(self, group: int) -> Group:
        """The rows of a group, with their scores if those follow from the whole pool."""
        return Scores(self).scored(group) if self._scores else self.live(group)

    def rows(self) -> int:
        """Count the rows that have a summary, once all steps are done."""
        groups = range(len(self.groups))
        return sum(int(self.read("conclude", group)["rows"][0].as_py()) for group in groups)

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
        if self._scores and step not in STEPS["ranks"]:
            rows = Scores(self).work(step, int(number))
        elif self._compares and step not in STEPS["clusters"][:-1]:
            rows = Comparison(self, self.clustered).work(step, int(number))
        else:
            rows = getattr(self, f"_{step}")(int(number))
        return {"rows": rows, "reasons": {}}

    def _tasks(self, step: str) -> int:
        if step in ("reduce", "edges", "take"):
            return self.parts
        if step == "decide":
            return self.results.run.read_record(BinsRecord, *self.at("bins.json")).bins
        return 1 if step in ("cuts", "clusters", "draw") else len(self.groups)

    # By keys

    def _lines(self, group: int) -> int:
        live = self.live(group)
        self.by_key("lines", group, self.stage.lines(live.rows), live.numbers)
        return live.rows.num_rows

    def _reduce(self, part: int) -> int:
        reduced = self.stage.reduce(self.gather("lines", len(self.groups), part))
        self.write("reduce", part, reduced, self.group_of(np.asarray(reduced["row"])))
        return int(reduced.num_rows)

    def _conclude(self, group: int) -> int:
        if self.stage.in_parts == "clusters":
            return self._conclude_clusters(group)
        live = self._ranked(group)
        before = STEPS[self.stage.in_parts][-2]
        if before == "draw":
            reduced = self.read("drawn", group)
        else:
            reduced = self.gather(before, self.parts, group)
        reduced = with_row(reduced, np.searchsorted(live.numbers, np.asarray(reduced["row"])))
        return self.commit(group, live.masks, self.stage.conclude(live.rows, reduced))

    # By ranks

    def _sample(self, group: int) -> int:
        ranked = self.stage.ranks(self._ranked(group).rows)
        # Hashed again, since the order may consist of the lots alone.
        sample = np.argsort(splitmix(~np.asarray(ranked["lot"])), kind="stable")[:SAMPLE_ROWS]
        self.write("sample", group, ranked.take(sample), np.zeros(len(sample), np.int64))
        return len(sample)

    def _cuts(self, task: int) -> int:
        sample = self.gather("sample", len(self.groups), 0)
        sample = sample.take(in_order(with_row(sample, np.arange(len(sample)))))
        positions = np.arange(1, self.parts) * len(sample) // self.parts
        cuts = sample.take(positions) if len(sample) else sample
        self.write("cuts", task, cuts, np.zeros(len(cuts), np.int64))
        return len(cuts)

    def _ranks(self, group: int) -> int:
        live = self._ranked(group)
        ranked = self.stage.ranks(live.rows)
        cuts = self.gather("cuts", 1, 0)
        # A cut comes before the rows of its own rank and lot.
        both = pa.concat_tables([cuts, ranked])
        order = in_order(with_row(both, np.arange(len(both))))
        part = np.empty(len(both), np.int64)
        part[order] = np.cumsum(order < len(cuts))
        numbers = live.numbers[np.asarray(ranked["row"])]
        self.write("ranks", group, with_row(ranked, numbers), part[len(cuts) :])
        return len(ranked)

    def _take(self, part: int) -> int:
        sizes = np.zeros(self.parts, np.int64)
        for group in range(len(self.groups)):
            sizes += self.sizes("ranks", group)
        ranked = self.gather("ranks", len(self.groups), part)
        order = in_order(with_row(ranked, np.arange(len(ranked))))
        place = int(sizes[:part].sum()) + np.arange(len(order))
        if self._scores and Scores(self).by_cells:
            is_taken = Scores(self).takes(np.asarray(ranked["cell"])[order], place)
        else:
            is_taken = place < self.stage.size(int(sizes.sum()))
        taken = np.asarray(ranked["row"])[order[is_taken]]
        self.write("take", part, pa.table({"row": taken}), self.group_of(taken))
        return len(taken)

    # By draws

    def _scored(self, group: int) -> int:
        live = self.live(group)
        ranked = self.stage.ranks(live.rows)
        ranked = with_row(ranked, live.numbers[np.asarray(ranked["row"])])
        self.write("scored", group, ranked, np.zeros(len(ranked), np.int64))
        return len(ranked)

    def _draw(self, task: int) -> int:
        groups = range(len(self.groups))
        scores, lots = Spilled(np.float64), Spilled(np.uint64)
        for group in groups:
            ranked = self.read("scored", group)
            scores.append(-np.asarray(ranked["rank"]))
            lots.append(np.asarray(ranked["lot"]))
        draws = self.stage.draw(scores.mapped(), lots.mapped())
        start = 0
        for group in groups:
            row = np.asarray(self.read("scored", group)["row"])
            own = draws[start : start + len(row)]
            start += len(row)
            drawn = pa.table({"row": row[own > 0], "draws": own[own > 0]})
            self.write("drawn", group, drawn, np.zeros(len(drawn), np.int64))
        # Written last, since it says that the task is done.
        self.write("draw", task, pa.table({"rows": [len(draws)]}), np.zeros(1, np.int64))
        return len(draws)

    # By clusters

    def _ties(self, group: int) -> int:
        live = self.live(group)
        points = self.stage.points(live.rows)
        points = with_row(points, live.numbers[np.asarray(points["row"])])
        self.write("points", group, points, np.zeros(len(points), np.int64))
        self.by_key("ties", group, self.stage.ties(live.rows), live.numbers)
        return live.rows.num_rows

    def _edges(self, part: int) -> int:
        ties = self.gather("ties", len(self.groups), part)
        key, row = np.asarray(ties["key"]), np.asarray(ties["row"])
        order = np.argsort(key)
        is_same = key[order[1:]] == key[order[:-1]]
        forest = _Forest()
        forest.link(row[order[:-1]][is_same], row[order[1:]][is_same])
        del ties, key, row, order
        if part < NEAR_PARTS:
            forest.link(*self._near(part, min(self.parts, NEAR_PARTS)))
        edges = pa.table({"row": forest.row, "root": forest.root})
        self.write("edges", part, edges, np.zeros(len(edges), np.int64))
        return edges.num_rows

    def _near(self, part: int, parts: int) -> tuple[Int64s, Int64s]:
        """The pairs of rows with near hashes that one part of the search finds."""
        points = self.gather("points", len(self.groups), 0)
        hashes, first = np.unique(np.asarray(points["hash"]), return_index=True)
        row = np.asarray(points["row"])[first]
        pairs = [np.zeros((2, 0), np.int64)]
        pairs += [np.stack([row[i], row[j]]) for i, j in self.stage.near(hashes, part, parts)]
        a, b = np.concatenate(pairs, axis=1)
        return a, b

    def _clusters(self, task: int) -> int:
        forest = _Forest()
        for part in range(self.parts):
            edges = self.gather("edges", [part], 0)
            forest.link(np.asarray(edges["row"]), np.asarray(edges["root"]))
        roots, cluster, size = np.unique(forest.root, return_inverse=True, return_counts=True)
        # The largest come first, so a bin is larger than a part only if one cluster is.
        order = np.argsort(-size, kind="stable")
        bins = np.empty(len(roots), np.int64)
        bins[order] = np.maximum(np.cumsum(size[order]) - 1, 0) // self.part_rows
        row_bins = np.unique(bins, return_inverse=True)[1][cluster]
        table = pa.table({"row": forest.row, "bin": row_bins})
        record = BinsRecord(bins=int(row_bins.max(initial=-1)) + 1)
        self.results.run.write_record(record, *self.at("bins.json"))
        self.write("clusters", task, table, self.group_of(forest.row))
        return len(row_bins)

    def _bins(self, group: int, numbers: Int64s) -> Int64s:
        """The bin of each row of a group; -1 for rows in no cluster."""
        clusters = self.gather("clusters", 1, group)
        bins = np.full(len(numbers), -1)
        bins[np.searchsorted(numbers, np.asarray(clusters["row"]))] = np.asarray(clusters["bin"])
        return bins

    def _rows(self, group: int) -> int:
        live = self.live(group)
        bins = self._bins(group, live.numbers)
        has_bin = bins >= 0
        rows = live.rows.filter(pa.array(has_bin))
        rows = rows.append_column("row", pa.array(live.numbers[has_bin]))
        self.write("rows", group, rows, bins[has_bin])
        return int(has_bin.sum())

    def _decide(self, one: int) -> int:
        numbers: list[Int64s] = []

        def tables() -> Iterator[pa.Table]:
            for group in range(len(self.groups)):
                table = self.gather("rows", [group], one)
                numbers.append(np.asarray(table["row"]))
                yield table.drop_columns("row")

        summary = self.stage.clusters(tables())
        row = np.concatenate(numbers)
        summary = summary.append_column("row", pa.array(row))
        self.write("decide", one, summary, self.group_of(row))
        return int(summary.num_rows)

    def _conclude_clusters(self, group: int) -> int:
        live = self.live(group)
        summary = self.clustered(group, live)
        columns = ["uid", *self.stage.summary.names]
        return self.commit(group, live.masks, summary.select(columns))

    def clustered(self, group: int, live: Group) -> pa.Table:
        """The results of `ClusteredStage.clusters` for the rows of a group, with their numbers."""
        bins = self._bins(group, live.numbers)
        alone = self.stage.clusters(iter([live.rows.filter(pa.array(bins < 0))]))
        alone = alone.append_column("row", pa.array(live.numbers[bins < 0]))
        decided = (self.read("decide", one, group) for one in range(self._tasks("decide")))
        both = pa.concat_tables([alone, *decided])
        order: Any = np.argsort(np.asarray(both["row"]))
        return both.take(order)


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
        label = connected_components(len(self.row), i, j)
        self.root = self.row[np.unique(label, return_index=True)[1]][label]
