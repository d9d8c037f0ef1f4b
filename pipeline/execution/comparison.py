"""Semantic copies in parts: rows that no process holds are compared by their embeddings.

The steps follow those of the clusters (`map_reduce`). A *bin* is a range of cells; a row is sent to
the bins of the cells that it is compared in. One process takes the rows one after the other; here
a row is decided as soon as the better rows near it are, which gives the same result.

    compared    group -> what the clusters say of its rows, and which of them are compared
    sample      group -> the embeddings that the cells are trained on
    cells       all samples -> the centres of the cells; one task
    places      group -> the compared rows with their embeddings, by bin
    meet-N      bin -> undecided rows near a better one that stays or is undecided, by group
    agree-N     group -> the rows that are decided by that, by bin
    nearest     bin -> for each row the nearest better row that stays, by group
    conclude    group -> the summary of its shards

`meet` and `agree` are repeated until every row is decided: the best undecided row always is next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.embedding.cells import Cells, in_sample
from models.embedding.copies import PROBES, nearest_better, number_of_cells
from models.embedding.vectors import Float16s
from models.random import splitmix
from pipeline.execution.parts import Group, Parts, centres_of, packed, unpacked
from stages.dedup.digests import Digests, from_hex
from stages.dedup.semantic import RANK, in_rank, semantic_columns
from stages.embed import vectors

__all__ = ["Comparison"]

BIN_ROWS = 500_000
"""The rows of a bin, about; embeddings of 512 numbers make them 0.5 GB."""

Bools = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]


class Comparison:
    """The last steps of a summary by clusters whose rows are compared by embedding.

    Args:
        parts: The summary.
        clustered: Gives the results of `ClusteredStage.clusters` for the rows of a group, in order.
    """

    def __init__(self, parts: Parts, clustered: Callable[[int, Group], pa.Table]) -> None:
        self.parts = parts
        self.clustered = clustered
        self.groups = len(parts.groups)

    def steps(self) -> Iterator[tuple[str, int]]:
        """Yield each step with the number of its tasks."""
        yield "compared", self.groups
        yield "sample", self.groups
        yield "cells", 1
        yield "places", self.groups
        for turn in count():
            yield f"meet-{turn}", self._bins
            yield f"agree-{turn}", self.groups
            if not self._undecided(turn):
                break
        yield "nearest", self._bins
        yield "conclude", self.groups

    def work(self, step: str, task: int) -> int:
        """Do a task of `steps`; returns the number of its rows."""
        kind, _, turn = step.partition("-")
        rows: int = getattr(self, f"_{kind}")(task, *([int(turn)] if turn else []))
        return rows

    @property
    def _number(self) -> int:
        """The number of compared rows."""
        sent = (self.parts.sizes("compared", group, 2)[1] for group in range(self.groups))
        return int(sum(sent))

    @property
    def _bins(self) -> int:
        """The number of bins, at most one for each cell."""
        number = self._number
        return min(max(-(-PROBES * number // BIN_ROWS), 1), number_of_cells(number))

    def _compared(self, group: int) -> int:
        live = self.parts.live(group, pooled=True)
        table = self.clustered(group, live)
        is_compared = np.asarray(table["compared"])
        is_compared &= np.asarray(live.rows["image_embedding"].is_valid())
        self.parts.write("compared", group, table, is_compared.astype(np.int64))
        return int(is_compared.sum())

    def _embedded(self, group: int) -> tuple[pa.Table, Float16s]:
        """The compared rows of a group, and their embeddings."""
        table = self.parts.read("compared", group, 1)
        live = self.parts.live(group, pooled=True)
        at: Any = pa.array(np.searchsorted(live.numbers, np.asarray(table["row"])))
        return table, vectors(live.rows["image_embedding"].combine_chunks().take(at))[0]

    def _sample(self, group: int) -> int:
        table, embeddings = self._embedded(group)
        lots = splitmix(_uids(table)[:, 0])
        some = in_sample(lots, self._number, number_of_cells(self._number))
        sample = pa.table({"lot": lots[some], "embedding": packed(embeddings[some])})
        self._write("sample", group, sample)
        return len(sample)

    def _cells(self, task: int) -> int:
        number = number_of_cells(self._number)
        samples = [self.parts.read("sample", group) for group in range(self.groups)]
        self._write("cells", task, centres_of(samples, number if number > 1 else 0))
        return number

    def _places(self, group: int) -> int:
        table, embeddings = self._embedded(group)
        centres = unpacked(self.parts.read("cells", 0)["centre"], np.float32)
        probed = np.zeros((len(table), 1), np.int64)
        if len(centres) > 1:
            probed = Cells(centres=centres).nearest(embeddings, PROBES)
        cells = pa.table({f"cell{probe}": cell for probe, cell in enumerate(probed.T)})
        self._write("probed", group, cells.add_column(0, "row", table["row"]))
        rows = table.select(["row", "uid", *RANK])
        for name in cells.column_names:
            rows = rows.append_column(name, cells[name])
        rows = rows.append_column("embedding", packed(embeddings))
        bins = self._bin_of(probed)
        # A file for each probe has the rows that no earlier one sends to the same bin. The first
        # one comes last, since it says that the task is done.
        for probe in reversed(range(probed.shape[1])):
            is_new = (bins[:, :probe] != bins[:, [probe]]).all(axis=1)
            some = rows.filter(pa.array(is_new))
            self.parts.write(_places_of(probe), group, some, bins[is_new, probe])
        return len(rows)

    def _bin_of(self, cells: Int64s) -> Int64s:
        return cells * self._bins // number_of_cells(self._number)

    def _bin(self, task: int) -> _Bin:
        probes = min(PROBES, number_of_cells(self._number))
        tables = [
            self.parts.read(_places_of(probe), group, task)
            for probe in range(probes)
            for group in range(self.groups)
        ]
        # A group without compared rows does not know how long embeddings are.
        rows = pa.concat_tables([table for table in tables if len(table)] or tables[:1])
        order: Any = in_rank(rows, _uids(rows))
        rows = rows.take(pa.array(order))
        probed = np.stack([np.asarray(rows[f"cell{probe}"]) for probe in range(probes)], axis=1)
        probed[self._bin_of(probed) != task] = -1
        return _Bin(
            row=np.asarray(rows["row"]),
            uid=rows["uid"],
            probed=probed,
            embeddings=unpacked(rows["embedding"], np.float16),
        )

    def _decided(self, here: _Bin, task: int, turns: int) -> tuple[Int64s, Bools]:
        """The turn that decided each row of a bin, -1 where none did; and whether it stays."""
        turn_of, stays = np.full(len(here.row), -1), np.zeros(len(here.row), bool)
        order = np.argsort(here.row)
        for turn in range(turns):
            told = self.parts.gather(f"agree-{turn}", self.groups, task)
            at = order[np.searchsorted(here.row, np.asarray(told["row"]), sorter=order)]
            turn_of[at], stays[at] = turn, np.asarray(told["stays"])
        return turn_of, stays

    def _meet(self, task: int, turn: int) -> int:
        here = self._bin(task)
        turn_of, stays = self._decided(here, task, turn)
        is_open = turn_of < 0
        least = np.float32(self.parts.stage.min_cosine)
        # An open row is near none that earlier turns let stay, but for the last.
        cosine, _ = here.nearest(is_open, stays & (turn_of == turn - 1))
        has_stay = cosine >= least
        cosine, _ = here.nearest(is_open & ~has_stay, is_open)
        near = np.flatnonzero(has_stay | (cosine >= least))
        table = pa.table({"row": here.row[near], "stays": has_stay[near]})
        self.parts.write(f"meet-{turn}", task, table, self.parts.group_of(here.row[near]))
        return len(near)

    def _agree(self, group: int, turn: int) -> int:
        probed = self.parts.read("probed", group)
        rows = np.asarray(probed["row"])
        is_open, near_stay, near_any = np.ones(len(rows), bool), *np.zeros((2, len(rows)), bool)
        for earlier in range(turn):
            decided = np.asarray(self.parts.read(f"decided-{earlier}", group)["row"])
            is_open[np.searchsorted(rows, decided)] = False
        met = self.parts.gather(f"meet-{turn}", self._bins, group)
        at = np.searchsorted(rows, np.asarray(met["row"]))
        near_any[at] = True
        near_stay[at[np.asarray(met["stays"])]] = True
        now = is_open & (near_stay | ~near_any)
        table = pa.table({"row": rows[now], "stays": ~near_stay[now]})
        self._write(f"decided-{turn}", group, table)
        self._write(f"left-{turn}", group, pa.table({"left": [int((is_open & ~now).sum())]}))
        cells = [np.asarray(probed[name]) for name in probed.column_names[1:]]
        bins = self._bin_of(np.stack(cells, axis=1)[now])
        is_new = np.stack(
            [(bins[:, :p] != bins[:, [p]]).all(axis=1) for p in range(bins.shape[1])], axis=1
        )
        row: Any
        row, probe = np.nonzero(is_new)
        self.parts.write(f"agree-{turn}", group, table.take(pa.array(row)), bins[row, probe])
        return len(table)

    def _undecided(self, turn: int) -> int:
        left = (self.parts.read(f"left-{turn}", group)["left"] for group in range(self.groups))
        return sum(int(one[0].as_py()) for one in left)

    def _turns(self) -> int:
        return next(turn for turn in count() if not self._undecided(turn)) + 1

    def _nearest(self, task: int) -> int:
        here = self._bin(task)
        _, stays = self._decided(here, task, self._turns())
        cosine, at = here.nearest(np.ones(len(here.row), bool), stays)
        has = np.flatnonzero(at >= 0)
        table = pa.table(
            {
                "row": here.row[has],
                "cosine": cosine[has],
                "nearest": here.uid.take(pa.array(at[has])),
            }
        )
        self.parts.write("nearest", task, table, self.parts.group_of(here.row[has]))
        return len(has)

    def _conclude(self, group: int) -> int:
        parts = self.parts
        table = pa.concat_tables([parts.read("compared", group, to) for to in (0, 1)])
        table = table.sort_by("row")
        row = np.asarray(table["row"])
        is_compared, is_copy = np.zeros((2, len(row)), bool)
        for turn in range(self._turns()):
            decided = parts.read(f"decided-{turn}", group)
            at = np.searchsorted(row, np.asarray(decided["row"]))
            is_compared[at], is_copy[at] = True, ~np.asarray(decided["stays"])
        found = parts.gather("nearest", self._bins, group)
        found = found.sort_by(
            [("row", "ascending"), ("cosine", "descending"), ("nearest", "ascending")]
        )
        rows, first = np.unique(np.asarray(found["row"]), return_index=True)
        at = np.searchsorted(row, rows)
        nearest, cosine = np.zeros((len(row), 2), np.uint64), np.full(len(row), np.nan, np.float32)
        best = found.take(pa.array(first, pa.int64()))
        nearest[at] = from_hex(best["nearest"].combine_chunks())
        cosine[at] = np.asarray(best["cosine"])
        for name, column in semantic_columns(is_compared, nearest, cosine, is_copy).items():
            table = table.set_column(table.schema.get_field_index(name), name, column)
        summary = table.select(["uid", *parts.stage.summary.names])
        return parts.commit(group, parts.live(group).masks, summary)

    def _write(self, step: str, task: int, table: pa.Table) -> None:
        """Commit a table that all tasks read whole."""
        self.parts.write(step, task, table, np.zeros(len(table), np.int64))


@dataclass(frozen=True, kw_only=True)
class _Bin:
    """The n rows of a bin, best rank first.

    Attributes:
        row: (n,) their numbers in the pool.
        uid: (n,) their uids.
        probed: (n, p) the cells that each is compared in, the nearest first; -1 in other bins.
        embeddings: (n, d).
    """

    row: Int64s
    uid: Any
    probed: Int64s
    embeddings: Float16s

    def nearest(self, asking: Bools, others: Bools) -> tuple[npt.NDArray[np.float32], Int64s]:
        """See `nearest_better`."""
        return nearest_better(self.embeddings, self.probed, asking, others)


def _places_of(probe: int) -> str:
    """The name of the file of a probe."""
    return f"places{probe}" if probe else "places"


def _uids(table: pa.Table) -> Digests:
    return from_hex(table["uid"].combine_chunks())
