"""Scores in parts: numbers of rows that follow from the embeddings of the whole pool.

They come before the steps of `ranks` (`map_reduce`), which choose rows by them. For NormSim with
the pool itself:

    gram        group -> the (d, d) sum of its embeddings' outer products
    score       group -> the score of each of its rows

For negCLIPLoss, where `deal` and `batch` are repeated for each shuffle N:

    counted     group -> how many of its rows have both embeddings
    deal-N      group -> these rows with their embeddings, by a range of their random numbers
    batch-N     batch -> the scores of its rows, by group
    score       group -> the mean of its rows' scores

For density-based pruning, whose rows are taken by cells:

    counted     group -> how many of its rows have an embedding
    points      group -> the embeddings that the cells are trained on
    centres     all of these -> the centres of the cells; one task
    score       group -> the cell and the score of each of its rows, and the tally of its cells
    quotas      all tallies -> how many rows each cell gets; one task
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.embedding.cells import Cells, in_sample
from models.embedding.selection import (
    CLIP_TEMPERATURE,
    DENSITY_TEMPERATURE,
    batch_loss,
    cell_quotas,
    gram,
    norms,
    tally,
)
from models.embedding.vectors import Float16s
from models.random import splitmix, uid_hashes
from pipeline.execution.parts import Group, Parts, centres_of, packed, unpacked
from stages.embed import vectors

__all__ = ["Scores"]

Bools = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]
Scored = tuple[npt.NDArray[np.float64], Int64s]
"""The score of each row, NaN without one, and its cell."""


class Scores:
    """The first steps of a summary by ranks whose rows are ranked by the embeddings of the pool.

    Args:
        parts: The summary.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.groups = len(parts.groups)
        self.config: Any = parts.stage.config

    def steps(self) -> Iterator[tuple[str, int]]:
        """Yield each step with the number of its tasks."""
        if self.config.method == "target":
            yield "gram", self.groups
        else:
            yield "counted", self.groups
        if self.config.method == "neg_clip_loss":
            for shuffle in range(self.config.shuffles):
                yield f"deal-{shuffle}", self.groups
                yield f"batch-{shuffle}", self._batches
        if self.by_cells:
            yield "points", self.groups
            yield "centres", 1
        yield "score", self.groups
        if self.by_cells:
            yield "quotas", 1

    def work(self, step: str, task: int) -> int:
        """Do a task of `steps`; returns the number of its rows."""
        kind, _, shuffle = step.partition("-")
        rows: int = getattr(self, f"_{kind}")(task, *([int(shuffle)] if shuffle else []))
        return rows

    def scored(self, group: int) -> Group:
        """The rows of a group with their scores and cells, once the steps are done."""
        live = self.parts.live(group)
        scores = self.parts.read("score", group)
        rows = live.rows.drop_columns("score")
        for name in scores.column_names:
            rows = rows.append_column(name, scores[name])
        return Group(masks=live.masks, rows=rows, numbers=live.numbers)

    @property
    def by_cells(self) -> bool:
        """Whether each cell has a number of rows of its own, which `takes` knows."""
        return bool(self.config.method == "density")

    def takes(self, cell: Int64s, place: Int64s) -> Bools:
        """Which of n rows are taken.

        Args:
            cell: (n,) their cells.
            place: (n,) their places in the order of all rows, which is that of the cells first.
        """
        quotas = self.parts.read("quotas", 0)
        first, wanted = (np.asarray(quotas[name]) for name in ("first", "wanted"))
        taken: Bools = place - first[cell] < wanted[cell]
        return taken

    def _embedded(self, group: int) -> tuple[Group, Int64s, list[Float16s]]:
        """The rows of a group, those that have all embeddings, and their embeddings."""
        live = self.parts.live(group, pooled=True)
        columns: list[Any] = [live.rows[name].combine_chunks() for name in self.config.pooled]
        has = np.logical_and.reduce([np.asarray(column.is_valid()) for column in columns])
        kept = pa.array(has)
        return live, np.flatnonzero(has), [vectors(one.filter(kept))[0] for one in columns]

    def _write(self, step: str, group: int, table: pa.Table) -> None:
        self.parts.write(step, group, table, np.zeros(len(table), np.int64))

    # NormSim

    def _gram(self, group: int) -> int:
        _, rows, (images,) = self._embedded(group)
        products = gram(images) if len(rows) else np.zeros((0, 1))
        self._write("gram", group, pa.table({"row": packed(products)}))
        return len(rows)

    # The number of rows

    def _counted(self, group: int) -> int:
        _, rows, _ = self._embedded(group)
        self._write("counted", group, pa.table({"number": [len(rows)]}))
        return len(rows)

    @property
    def _number(self) -> int:
        """The number of rows with all embeddings."""
        counted = (self.parts.read("counted", group) for group in range(self.groups))
        return sum(int(one["number"][0].as_py()) for one in counted)

    def _lots(self, rows: pa.Table) -> UInt64s:
        return splitmix(uid_hashes(rows["uid"].cast(pa.string())) ^ splitmix(self.config.seed))

    # negCLIPLoss

    @property
    def _batches(self) -> int:
        most: int = self.config.pairs_of_batch
        return max(-(-self._number // most), 1)

    def _deal(self, group: int, shuffle: int) -> int:
        live, rows, (images, texts) = self._embedded(group)
        lots = splitmix(self._lots(live.rows)[rows] ^ splitmix(shuffle))
        table = pa.table(
            {
                "row": live.numbers[rows],
                "lot": lots,
                "image": packed(images),
                "text": packed(texts),
            }
        )
        hands = ((lots >> np.uint64(32)) * np.uint64(self._batches)) >> np.uint64(32)
        self.parts.write(f"deal-{shuffle}", group, table, hands.astype(np.int64))
        return len(rows)

    def _batch(self, batch: int, shuffle: int) -> int:
        """Score the rows from one place of the order to another, as `np.array_split` cuts it."""
        number, batches, deal = self._number, self._batches, f"deal-{shuffle}"
        small, larger = divmod(number, batches)
        start = batch * small + min(batch, larger)
        stop = start + small + (batch < larger)
        sizes = sum(self.parts.sizes(deal, group, batches) for group in range(self.groups))
        ends: Any = np.cumsum(sizes)
        first = int(np.searchsorted(ends, start, "right"))
        last = int(np.searchsorted(ends, max(stop - 1, start), "right"))
        tables = [
            self.parts.read(deal, group, hand)
            for hand in range(first, min(last, batches - 1) + 1)
            for group in range(self.groups)
        ]
        table = pa.concat_tables([one for one in tables if len(one)] or tables[:1])
        before = int(ends[first - 1]) if first else 0
        order: Any = np.argsort(np.asarray(table["lot"]), kind="stable")
        table = table.take(order[start - before : stop - before])
        scores = np.zeros(0)
        if len(table):
            images, texts = (unpacked(table[name], np.float16) for name in ("image", "text"))
            scores = batch_loss(images, texts, self.config.temperature or CLIP_TEMPERATURE)
        row = np.asarray(table["row"])
        found = pa.table({"row": row, "score": scores})
        self.parts.write(f"batch-{shuffle}", batch, found, self.parts.group_of(row))
        return len(table)

    # Density

    @property
    def _number_of_cells(self) -> int:
        return min(int(self.config.clusters), self._number)

    def _points(self, group: int) -> int:
        live, rows, (images,) = self._embedded(group)
        lots = self._lots(live.rows)[rows]
        some = in_sample(lots, self._number, self._number_of_cells)
        points = pa.table({"lot": lots[some], "embedding": packed(images[some])})
        self._write("points", group, points)
        return len(points)

    def _centres(self, task: int) -> int:
        points = [self.parts.read("points", group) for group in range(self.groups)]
        self._write("centres", task, centres_of(points, self._number_of_cells))
        return self._number_of_cells

    @property
    def _cells(self) -> Cells:
        return Cells(centres=unpacked(self.parts.read("centres", 0)["centre"], np.float32))

    def _quotas(self, task: int) -> int:
        cells, number = self._cells, self._number
        tables = [self.parts.read("tally", group) for group in range(self.groups)]
        sizes = np.sum([np.asarray(one["size"]) for one in tables], axis=0)
        sums = np.sum([np.asarray(one["sum"]) for one in tables], axis=0)
        temperature = self.config.temperature or DENSITY_TEMPERATURE
        wanted = cell_quotas(cells, sizes, sums, self.parts.stage.size(number), temperature)
        self._write("quotas", task, pa.table({"first": np.cumsum(sizes) - sizes, "wanted": wanted}))
        return len(wanted)

    # All

    def _score(self, group: int) -> int:
        scored = {"target": self._norms, "neg_clip_loss": self._means, "density": self._distances}
        scores, cell = scored[self.config.method](group)
        columns: dict[str, Any] = {"score": pa.array(scores, mask=np.isnan(scores))}
        if self.by_cells:
            columns["cell"] = pa.array(cell)
        self._write("score", group, pa.table(columns))
        return len(scores)

    def _norms(self, group: int) -> Scored:
        live, rows, (images,) = self._embedded(group)
        scores, cell = _none(len(live.numbers))
        if len(rows):
            tables = [self.parts.read("gram", one)["row"] for one in range(self.groups)]
            grams = np.stack([unpacked(one, np.float64) for one in tables if len(one)])
            scores[rows] = norms(images, grams.sum(axis=0))
        return scores, cell

    def _means(self, group: int) -> Scored:
        numbers = self.parts.live(group).numbers
        scores, cell = _none(len(numbers))
        for shuffle in range(self.config.shuffles):
            found = self.parts.gather(f"batch-{shuffle}", self._batches, group)
            at = np.searchsorted(numbers, np.asarray(found["row"]))
            scores[at] = np.nan_to_num(scores[at]) + np.asarray(found["score"])
        return scores / self.config.shuffles, cell

    def _distances(self, group: int) -> Scored:
        live, rows, (images,) = self._embedded(group)
        scores, cell = _none(len(live.numbers))
        if len(rows):
            cell[rows], scores[rows] = self._cells.placed(images)
        sizes, sums = tally(cell[rows], scores[rows], self._number_of_cells)
        self._write("tally", group, pa.table({"size": sizes, "sum": sums}))
        return scores, cell


def _none(number: int) -> Scored:
    """No scores, and the first cell, of so many rows."""
    return np.full(number, np.nan), np.zeros(number, np.int64)
