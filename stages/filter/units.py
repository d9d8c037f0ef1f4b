"""The units of judgement: a text as a whole, or each of its sentences."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stages.filter.texts import KINDS

__all__ = ["Units", "best_of"]


class Units:
    """The texts of annotated rows, and what is judged of them: a text, or each of its sentences.

    Attributes:
        rows: (m,) the row of each text: of all web captions, then synthetic, then further ones.
        lengths: How many texts of a kind each row has.
        parts: Where the texts of a kind are.
        texts: (u,) the text of each unit.
        num_units: (m,) how many units each text has.
    """

    def __init__(self, annotations: pa.Table) -> None:
        self.annotations = annotations
        count = len(annotations)
        self.lengths = {"web": np.ones(count, np.int64)}
        for kind in KINDS[1:]:
            self.lengths[kind] = _list_lengths(annotations[f"itm_{kind}"])
        every = np.arange(count)
        self.rows = np.concatenate([np.repeat(every, self.lengths[kind]) for kind in KINDS])
        stops = np.cumsum([self.lengths[kind].sum() for kind in KINDS])
        starts = [0, *stops[:-1]]
        self.parts = {k: slice(a, b) for k, a, b in zip(KINDS, starts, stops, strict=True)}
        self._sentences = {kind: self._flat(f"sentences_{kind}") for kind in KINDS}
        split = np.concatenate([_list_lengths(self._sentences[kind]) for kind in KINDS])
        self._is_split = split > 0
        self.num_units = np.maximum(split, 1)
        self.texts = np.repeat(np.arange(len(self.rows)), self.num_units)

    def _flat(self, name: str) -> Any:
        """A column of lists or values as one value for each text of its kind, null without one."""
        kind = name.rsplit("_", 1)[1]
        if name not in self.annotations.column_names:
            return pa.nulls(int(self.lengths[kind].sum()))
        column: Any = self.annotations[name].combine_chunks()
        if kind == "web":
            return column
        present = _list_lengths(column) > 0
        flat = pc.list_flatten(column)
        if present.all():
            return flat
        # A row that was written before a column existed, or by hand, may lack its list.
        has = np.repeat(present, self.lengths[kind])
        return flat.take(pa.array(np.cumsum(has) - 1, mask=~has))

    def of_texts(self, name: str) -> npt.NDArray[np.float32]:
        """A column as one number for each text of its kind, NaN where it has none."""
        return _floats(self._flat(name))

    def scores(self, score: str) -> npt.NDArray[np.float32]:
        """(u,) a score of every unit, NaN where it has none."""
        found = np.full(len(self.rows), np.nan, np.float32)
        parts: list[npt.NDArray[np.float32]] = []
        for kind, part in self.parts.items():
            if f"{score}_{kind}" in self.annotations.column_names:
                found[part] = self.of_texts(f"{score}_{kind}")
            if self._is_split[part].any():
                parts.append(_floats(pc.struct_field(self._flat_sentences(kind), score)))
        units = found[self.texts]
        if parts:
            units[self._is_split[self.texts]] = np.concatenate(parts)
        return units

    def _flat_sentences(self, kind: str) -> Any:
        return pc.list_flatten(self._sentences[kind])

    def any(self, keep: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """(m,) whether any unit of each text is kept; `keep` is (u,)."""
        found = np.zeros(len(self.rows), bool)
        found[self.texts[keep]] = True
        return found

    def mean(self, score: str, keep: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
        """(m,) the mean score of the kept units of each text, NaN where none is."""
        size = len(self.rows)
        number = np.bincount(self.texts[keep], minlength=size)
        total = np.bincount(self.texts[keep], self.scores(score)[keep].astype(float), size)
        mean = np.full(size, np.nan, np.float32)
        mean[number > 0] = total[number > 0] / number[number > 0]
        return mean

    def left(self, kind: str, keep: npt.NDArray[np.bool_]) -> dict[str, Any]:
        """The kept sentences of the texts of a kind, as `FilterStage.keep_texts` describes them.

        Args:
            kind: One of `KINDS`.
            keep: (u,) which units are kept.
        """
        part = self.parts[kind]
        number = part.stop - part.start
        types: dict[str, Any] = {
            "sentences_kept": pa.list_(pa.bool_()),
            "kept_text": pa.string(),
            "kept_itm": pa.float32(),
        }
        if not self._is_split[part].any():
            return {name: pa.nulls(number, type) for name, type in types.items()}
        ends = np.cumsum(self.num_units)
        flags: list[list[bool] | None] = [None] * number
        texts: list[str | None] = [None] * number
        scores: list[float | None] = [None] * number
        sentences = self._sentences[kind]
        for place in np.flatnonzero(self._is_split[part]).tolist():
            own = sentences[place].as_py()
            end = int(ends[part.start + place])
            kept = keep[end - len(own) : end].tolist()
            flags[place] = kept
            left = [sentence for sentence, is_kept in zip(own, kept, strict=True) if is_kept]
            if not left:
                continue
            if len(left) < len(own):
                texts[place] = "".join(sentence["text"] for sentence in left).strip()
            matched = [sentence["itm"] for sentence in left if sentence["itm"] is not None]
            scores[place] = min(matched, default=None)
        values: list[Any] = [flags, texts, scores]
        found = zip(types.items(), values, strict=True)
        return {name: pa.array(column, type) for (name, type), column in found}

    def nested(self, kind: str, values: Any) -> Any:
        """One value for each text of a kind, as a column of n rows."""
        if kind == "web":
            return values
        ends = np.concatenate([[0], np.cumsum(self.lengths[kind])])
        return pa.ListArray.from_arrays(
            pa.array(ends, pa.int32()), values, type=pa.list_(values.type)
        )


def _list_lengths(column: Any) -> npt.NDArray[np.int64]:
    """(n,) how long the list of each row is, 0 for null and for what is no list."""
    if not pa.types.is_list(column.type):
        return np.zeros(len(column), np.int64)
    lengths: Any = pc.list_value_length(column).fill_null(0)
    found: npt.NDArray[np.int64] = lengths.to_numpy(zero_copy_only=False).astype(np.int64)
    return found


def _floats(values: Any) -> npt.NDArray[np.float32]:
    """A column as float32, null as NaN."""
    cast = values.cast(pa.float32()).fill_null(np.nan)
    found: npt.NDArray[np.float32] = cast.to_numpy(zero_copy_only=False)
    return found


def best_of(
    rows: npt.NDArray[np.int64], scores: npt.NDArray[np.float32], count: int
) -> npt.NDArray[np.bool_]:
    """The texts with the `count` highest scores of each row.

    Of texts with one score, which are one text said again, the first stands for all.
    """
    order = np.lexsort((-scores, rows))
    row, score = rows[order], scores[order]
    begins = _changes(row)
    counts = ~np.isnan(score) & (begins | _changes(score))
    ranks = np.cumsum(counts)
    before = np.maximum.accumulate(np.where(begins, ranks - counts, 0))
    best = np.zeros(len(rows), bool)
    best[order[counts & (ranks - before <= count)]] = True
    return best


def _changes(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Whether each value is unlike the one before it; the first is."""
    return np.concatenate([np.ones(1, bool), values[1:] != values[:-1]])[: len(values)]
