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
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.embedding.selection import batch_loss, gram, norms
from models.embedding.vectors import Float16s
from models.random import splitmix, uid_hashes
from pipeline.execution.parts import Group, Parts, packed, unpacked
from stages.embed import vectors

__all__ = ["Scores"]

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]


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
            for shuffle in range(self.config.shuffles):
                yield f"deal-{shuffle}", self.groups
                yield f"batch-{shuffle}", self._batches
        yield "score", self.groups

    def work(self, step: str, task: int) -> int:
        """Do a task of `steps`; returns the number of its rows."""
        kind, _, shuffle = step.partition("-")
        rows: int = getattr(self, f"_{kind}")(task, *([int(shuffle)] if shuffle else []))
        return rows

    def scored(self, group: int) -> Group:
        """The rows of a group with their scores, once the steps are done."""
        live = self.parts.live(group)
        scores = self.parts.read("score", group)["score"]
        at = live.rows.schema.get_field_index("score")
        return Group(
            masks=live.masks,
            rows=live.rows.set_column(at, "score", scores),
            numbers=live.numbers,
        )

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

    # negCLIPLoss

    def _counted(self, group: int) -> int:
        _, rows, _ = self._embedded(group)
        self._write("counted", group, pa.table({"number": [len(rows)]}))
        return len(rows)

    @property
    def _number(self) -> int:
        """The number of rows with both embeddings."""
        counted = (self.parts.read("counted", group) for group in range(self.groups))
        return sum(int(one["number"][0].as_py()) for one in counted)

    @property
    def _batches(self) -> int:
        most: int = self.config.pairs_of_batch
        return max(-(-self._number // most), 1)

    def _lots(self, rows: pa.Table, shuffle: int) -> UInt64s:
        lots = splitmix(uid_hashes(rows["uid"].cast(pa.string())) ^ splitmix(self.config.seed))
        return splitmix(lots ^ splitmix(shuffle))

    def _deal(self, group: int, shuffle: int) -> int:
        live, rows, (images, texts) = self._embedded(group)
        lots = self._lots(live.rows, shuffle)[rows]
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
            scores = batch_loss(images, texts, self.config.temperature or 0.01)
        row = np.asarray(table["row"])
        found = pa.table({"row": row, "score": scores})
        self.parts.write(f"batch-{shuffle}", batch, found, self.parts.group_of(row))
        return len(table)

    def _score(self, group: int) -> int:
        parts = self.parts
        if self.config.method == "target":
            live, rows, (images,) = self._embedded(group)
            scores = np.full(len(live.numbers), np.nan)
            if len(rows):
                tables = [parts.read("gram", one)["row"] for one in range(self.groups)]
                grams = np.stack([unpacked(one, np.float64) for one in tables if len(one)])
                scores[rows] = norms(images, grams.sum(axis=0))
        else:
            live = parts.live(group)
            scores = np.full(len(live.numbers), np.nan)
            for shuffle in range(self.config.shuffles):
                found = parts.gather(f"batch-{shuffle}", self._batches, group)
                at = np.searchsorted(live.numbers, np.asarray(found["row"]))
                scores[at] = np.nan_to_num(scores[at]) + np.asarray(found["score"])
            scores /= self.config.shuffles
        column = pa.array(scores, mask=np.isnan(scores))
        self._write("score", group, pa.table({"score": column}))
        return len(scores)
