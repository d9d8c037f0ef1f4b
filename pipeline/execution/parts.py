"""The parts of a summary that is made in parts: its groups of shards, and its files."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from models.embedding.cells import Cells
from models.errors import ContractError
from pipeline.results.verdicts import Mask, Results, crashed_rows
from pipeline.storage.checksum import with_checksum_parquet
from stages.download import DownloadStage

__all__ = [
    "Group",
    "Parts",
    "centres_of",
    "commit_summary",
    "measured",
    "packed",
    "spread",
    "unpacked",
    "with_row",
]

GROUP_MOST = 2**24
"""The most rows of a Parquet row group."""

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The groups and the files of a summary in parts.

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

    def live(self, group: int, *, pooled: bool = False) -> Group:
        """Read the rows of a group; with `pooled`, their columns of that name too."""
        first = group * self._group_shards
        masks, tables, numbers = {}, [], []
        for index, shard in enumerate(self.groups[group], first):
            masks[shard], table = measured(self.results, self.name, shard, pooled=pooled)
            tables.append(table)
            numbers.append(np.flatnonzero(masks[shard]) + index * self.shard_rows)
        rows = pa.concat_tables(tables).combine_chunks()
        return Group(masks=masks, rows=rows, numbers=np.concatenate(numbers))

    def group_of(self, numbers: Int64s) -> Int64s:
        """(n,) the group of each row of these numbers."""
        return numbers // (self._group_shards * self.shard_rows)

    def by_key(self, step: str, group: int, lines: pa.Table, numbers: Int64s) -> None:
        """Write lines, grouped by the task that gets their key."""
        lines = with_row(lines, numbers[np.asarray(lines["row"])])
        # The upper bits choose the task, so the lower bits of its keys are still evenly spread.
        part = (np.asarray(lines["key"]) >> np.uint64(32)) % np.uint64(self.parts)
        self.write(step, group, lines, part.astype(np.int64))

    def commit(self, group: int, masks: Mapping[str, Mask], summary: pa.Table) -> int:
        """Commit the summary of a group, and last the number of its rows."""
        rows = commit_summary(self.results, self.name, masks, summary)
        self.write("conclude", group, pa.table({"rows": [rows]}), np.zeros(1, np.int64))
        return rows

    def at(self, *parts: str) -> tuple[str, ...]:
        """The place of a file of the parts in the run."""
        return (*self.results.plan.summary_folder(self.name), self.folder, *parts)

    def write(self, step: str, task: int, table: pa.Table, to: Int64s) -> None:
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
            with_checksum_parquet(buffer.getvalue()), *self.at(f"{step}-{task:05d}.parquet")
        )

    def gather(self, step: str, tasks: int | Sequence[int], to: int) -> pa.Table:
        """Read what some tasks of a step, or the first so many, sent to a task."""
        tasks = range(tasks) if isinstance(tasks, int) else tasks
        return pa.concat_tables(self.read(step, task, to) for task in tasks)

    def sizes(self, step: str, task: int, number: int | None = None) -> Int64s:
        """Count the rows that a task sent to each of the next step's tasks; by default `parts`."""
        with self.results.run.open_table(*self.at(f"{step}-{task:05d}.parquet")) as parquet:
            sent = _sent(parquet)
            numbers = [parquet.metadata.row_group(index).num_rows for index in range(len(sent))]
        return np.bincount(sent, numbers, number or self.parts).astype(np.int64)

    def read(self, step: str, task: int, to: int = 0) -> pa.Table:
        """Read what a task of a step sent to a task."""
        with self.results.run.open_table(*self.at(f"{step}-{task:05d}.parquet")) as parquet:
            groups = [index for index, one in enumerate(_sent(parquet)) if one == to]
            return parquet.read_row_groups(groups).replace_schema_metadata()


@dataclass(frozen=True, kw_only=True)
class Group:
    """The rows of a group that are summarised.

    Attributes:
        masks: The rows of each shard.
        rows: Their measurements.
        numbers: Their numbers in the pool.
    """

    masks: Mapping[str, Mask]
    rows: pa.Table
    numbers: Int64s


def measured(
    results: Results, name: str, shard: str, *, pooled: bool = True
) -> tuple[Mask, pa.Table]:
    """Read the rows of a shard that a global stage summarises: live rows that do not crash.

    Returns:
        The mask of these rows, and their uid, measurements and, if wanted, `pooled` columns.
    """
    plan = results.plan
    judgement = results.judge(shard, plan.before(name))
    table = results.measured_table(name, shard, judgement.uids)
    mask = judgement.live & ~crashed_rows(table)
    columns = ["uid", *plan.stage(name).writes.names]
    table = table.select(columns).filter(pa.array(mask))
    for column in plan.manifest.stages[name].pooled if pooled else ():
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


def with_row(table: pa.Table, row: Int64s) -> pa.Table:
    """Replace the column `row` of a table."""
    return table.set_column(table.schema.get_field_index("row"), "row", pa.array(row))


def packed(vectors: npt.NDArray[Any]) -> Any:
    """(n, d) numbers as a column of n binaries."""
    flat = np.ascontiguousarray(vectors)
    width = flat.shape[1] * flat.itemsize
    return pa.Array.from_buffers(pa.binary(width), len(flat), [None, pa.py_buffer(flat.tobytes())])


def unpacked(column: Any, dtype: Any) -> npt.NDArray[Any]:
    """The numbers of `packed`, (n, d)."""
    whole = column.combine_chunks()
    if not len(whole):
        return np.zeros((0, 1), dtype)
    width = whole.type.byte_width
    buffer = memoryview(whole.buffers()[1])[whole.offset * width :]
    number = len(whole) * width // np.dtype(dtype).itemsize
    return np.frombuffer(buffer, dtype, number).reshape(len(whole), -1)


def centres_of(samples: Sequence[pa.Table], number: int) -> pa.Table:
    """The centres of cells, in a column `centre`.

    Args:
        samples: lot and embedding of the rows that the cells are trained on, in parts.
        number: The number of cells; 0 makes one centre of no use.
    """
    centres = np.zeros((1, 1), np.float32)
    if number:
        found = [unpacked(one["embedding"], np.float16) for one in samples if len(one)]
        lots = np.concatenate([np.asarray(one["lot"]) for one in samples])
        centres = Cells.train(np.concatenate(found), number, lots).centres
    return pa.table({"centre": packed(centres)})
