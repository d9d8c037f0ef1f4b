"""Chooses the pairs to review: a seeded sample, or the pairs nearest to the threshold."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.random import splitmix, uid_hashes
from pipeline.results.sampling import Smallest
from pipeline.results.verdicts import Mask, Results
from stages.download import DownloadStage
from stages.filter import FilterConfig, FilterStage
from stages.review import ReviewStage

__all__ = ["CHOICES", "Choice", "Pair", "Sentence", "draw", "judged_pairs"]

Choice = Literal["kept", "rejected", "borderline", "any"]
TEXTS = {"text": "web", "further_captions": "web", "synthetic": "synthetic"}
"""The caption columns, with their `caption_source` in an export; `caption` replaces `text` if clean
did not run."""

KEYS = {"text": "web", "further_captions": "further", "synthetic": "synthetic"}
"""The names of the caption columns in the filter's columns."""

BASES = {name: np.uint64(index << 32) for index, name in enumerate(TEXTS)}

CHOICES: tuple[str, ...] = get_args(Choice)


class Sentence(NamedTuple):
    """A sentence of a caption that the filter judged in sentences.

    Attributes:
        text: What it says.
        score: Its ITM probability.
        is_kept: Whether the filter keeps it.
    """

    text: str
    score: float | None
    is_kept: bool


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An image with one of its captions.

    Attributes:
        uid: uid of the row.
        shard: Shard of the row.
        row: Position of the row in the shard.
        url: URL of the image.
        caption: The caption, as the filter reads it.
        source: web or synthetic.
        score: ITM probability; None without a filter.
        is_kept: Whether the filter keeps the caption; True without a filter.
        sentences: Its sentences, where the filter judged them one by one.
    """

    uid: str
    shard: str
    row: int
    url: str
    caption: str
    source: str
    score: float | None
    is_kept: bool
    sentences: tuple[Sentence, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        """The key of a decision on the pair."""
        return self.uid, self.caption


def draw(results: Results, choice: Choice, number: int) -> list[Pair]:
    """Choose pairs to review; a larger sample contains every smaller one.

    Args:
        results: The results of the run.
        choice: `kept`: pairs that export would write without a review; `rejected`: pairs that the
            filter rejects; `any`: both; `borderline`: both, with the ITM scores nearest to the
            threshold first. All others are sampled by a hash of seed and uid.
        number: Maximum number of pairs.

    Raises:
        ValueError: There is no such pair, or the choice needs a filter and there is none.
    """
    run, config = results.run, results.plan.manifest.stages.get(FilterStage.name)
    if choice in ("rejected", "borderline") and not isinstance(config, FilterConfig):
        raise ValueError(f"--of {choice}: the manifest of {run.root} has no filter; use --of kept")
    if choice == "borderline" and isinstance(config, FilterConfig) and config.recipe != "blip":
        raise ValueError(
            f"--of borderline: the filter of {run.root} uses the recipe {config.recipe}, which has "
            "no ITM threshold; use --of any"
        )
    smallest: Smallest[Pair] = Smallest(number)
    for shard in run.shards("pool"):
        pairs = _Shard(results, shard)
        masks = {
            "kept": pairs.is_kept,
            "rejected": ~pairs.is_kept,
            "borderline": ~np.isnan(pairs.scores),
        }
        chosen = np.flatnonzero(masks.get(choice, np.ones(len(pairs), bool)))
        ranks = pairs.ranks[chosen]
        if choice == "borderline" and isinstance(config, FilterConfig):
            distance = np.abs(pairs.scores[chosen].astype(np.float64) - config.min_itm)
            near = (distance * 2**31).astype(np.uint64) << np.uint64(32)
            ranks = near | ranks >> np.uint64(32)
        smallest.offer(ranks, functools.partial(pairs.pair_of, chosen))
    if not smallest.values:
        what = "that reached the filter" if choice in ("any", "borderline") else choice
        raise ValueError(
            f"{run.root}: there is no pair {what} to review; `capfilt status {run.root}` shows the "
            "progress of the run"
        )
    return smallest.values


def judged_pairs(results: Results, keys: set[tuple[str, str]]) -> Iterator[Pair]:
    """Yield the pairs with the given keys, one shard at a time; outdated keys are left out."""
    uids = pa.array(sorted({uid for uid, _ in keys}), pa.string())
    for shard in results.run.shards("pool") if keys else ():
        shard_pairs = _Shard(results, shard, uids)
        pairs = (shard_pairs.pair(index) for index in range(len(shard_pairs)))
        yield from (pair for pair in pairs if pair.key in keys)


class _Shard:
    """The m pairs of a shard that reached the filter, or the end if there is no filter.

    Attributes:
        scores: (m,) ITM probabilities, NaN without a score.
        is_kept: (m,) whether the filter keeps each pair.
        ranks: (m,) hash of the seed, the uid and the position among the captions of the image.
    """

    def __init__(self, results: Results, shard: str, uids: Any = None) -> None:
        self._name = shard
        plan = results.plan
        pool = results.run.read_table("pool", f"{shard}.parquet", columns=["uid", "url", "caption"])
        names = [n for n in plan.names if n not in (FilterStage.name, ReviewStage.name)]
        before = results.judge(shard, names)
        has_filter = FilterStage.name in plan.names
        scores = results.annotated(FilterStage.name, shard) if has_filter else None
        reached = before.live & before.is_complete
        if has_filter:
            reached &= False if scores is None else _bools(scores["measured"])
        if uids is not None:
            reached &= _bools(pc.is_in(pool["uid"], uids))
        live = pa.array(reached)
        columns: dict[str, Any] = {}
        for column in ("caption", *TEXTS):
            if (origin := plan.origin(ReviewStage.name, column)) == DownloadStage.name:
                columns[column] = pool[column].filter(live)
            elif origin in before.tables:
                columns[column] = before.tables[origin][column].filter(live)
        self._pool = pool.filter(live)
        self._positions = np.flatnonzero(reached)
        columns.setdefault("text", columns.pop("caption"))
        filtered = None if scores is None else _with_keeps(results, scores.filter(live))
        parts = [_Texts.of(name, columns[name], filtered) for name in TEXTS if name in columns]
        rows = np.concatenate([part.rows for part in parts])
        texts = pa.chunked_array([part.texts for part in parts], pa.string())
        kept = np.concatenate([part.is_kept for part in parts])
        chosen, kept = _distinct(rows, texts, kept)
        self._rows = rows[chosen]
        self._texts: Any = texts.take(chosen)
        self._sources = np.repeat([TEXTS[p.name] for p in parts], [len(p.rows) for p in parts])
        self._sources = self._sources[chosen]
        self.scores = np.concatenate([part.scores for part in parts])[chosen]
        self.is_kept = kept
        sentences = [own for part in parts for own in part.sentences]
        self._sentences = [sentences[place] for place in chosen.tolist()]
        seed = splitmix(plan.manifest.seed)
        images = splitmix(uid_hashes(self._pool["uid"]) ^ seed)
        ordinals = np.concatenate([part.ordinals for part in parts])
        self.ranks = splitmix(images[rows] + ordinals)[chosen]

    def __len__(self) -> int:
        return len(self._rows)

    def pair_of(self, chosen: npt.NDArray[np.int64], index: int) -> Pair:
        """Return one of the chosen pairs."""
        return self.pair(int(chosen[index]))

    def pair(self, index: int) -> Pair:
        """Return one pair."""
        row, score = int(self._rows[index]), float(self.scores[index])
        return Pair(
            uid=str(self._pool["uid"][row].as_py()),
            shard=self._name,
            row=int(self._positions[row]),
            url=str(self._pool["url"][row].as_py()),
            caption=str(self._texts[int(index)].as_py()),
            source=str(self._sources[index]),
            score=None if np.isnan(score) else score,
            is_kept=bool(self.is_kept[index]),
            sentences=self._sentences[index],
        )


@dataclass(frozen=True, kw_only=True)
class _Texts:
    """The m captions of a column; lists are flattened.

    Attributes:
        name: Name of the column.
        rows: (m,) row of each caption.
        ordinals: (m,) position among the captions of the row, unique over all columns.
        texts: (m,) captions, or null.
        scores: (m,) ITM probabilities, NaN without a score.
        is_kept: (m,) whether the filter keeps each caption.
        sentences: m, the sentences that the filter judged one by one.
    """

    name: str
    rows: npt.NDArray[np.int64]
    ordinals: npt.NDArray[np.uint64]
    texts: Any
    scores: npt.NDArray[np.float32]
    is_kept: Mask
    sentences: list[tuple[Sentence, ...]]

    @classmethod
    def of(cls, name: str, column: Any, filtered: pa.Table | None) -> _Texts:
        """Flatten a column of n captions or lists, given the filter's columns of the n rows."""
        column = column.combine_chunks()
        rows = np.arange(len(column))
        starts = rows
        is_list = isinstance(column.type, pa.ListType)
        if is_list:
            rows = np.asarray(pc.list_parent_indices(column))
            starts = np.searchsorted(rows, rows)
            column = column.flatten()
        scores = np.full(len(rows), np.nan, np.float32)
        is_kept = np.ones(len(rows), bool)
        sentences: list[tuple[Sentence, ...]] = [()] * len(rows)
        kind = KEYS[name]
        if filtered is not None and f"keep_{kind}" in filtered.column_names:
            itm_scores: Any = filtered[f"itm_{kind}"].combine_chunks()
            kept: Any = filtered[f"keep_{kind}"].combine_chunks()
            if is_list:
                itm_scores, kept = itm_scores.flatten(), kept.flatten()
            sentences = _sentences(filtered, kind, len(rows))
            scores = itm_scores.fill_null(np.nan).to_numpy(zero_copy_only=False).astype(np.float32)
            is_kept = _bools(kept)
        return cls(
            name=name,
            rows=rows.astype(np.int64),
            ordinals=(np.arange(len(rows)) - starts).astype(np.uint64) + BASES[name],
            texts=column,
            scores=scores,
            is_kept=is_kept,
            sentences=sentences,
        )


def _sentences(filtered: pa.Table, kind: str, number: int) -> list[tuple[Sentence, ...]]:
    """The sentences of each of `number` texts of a kind; none of a text judged as a whole."""
    columns: list[Any] = []
    for name in (f"sentences_{kind}", f"sentences_kept_{kind}"):
        values = filtered[name].to_pylist()
        columns.append(values if kind == "web" else [text for row in values for text in row or ()])
    if not any(columns[0]):
        return [()] * number
    return [
        tuple(
            Sentence(sentence["text"].strip(), sentence["itm"], is_kept)
            for sentence, is_kept in zip(own or (), kept or (), strict=True)
        )
        for own, kept in zip(*columns, strict=True)
    ]


def _with_keeps(results: Results, scores: pa.Table) -> pa.Table:
    """Add to the filter's scores the columns of captions that it keeps."""
    keeps = results.kept_texts(scores)
    for name in keeps.column_names:
        scores = scores.append_column(name, keeps[name])
    return scores


def _distinct(
    rows: npt.NDArray[np.int64], texts: Any, is_kept: Mask
) -> tuple[npt.NDArray[np.int64], Mask]:
    """Return the positions of the distinct non-blank captions of each row, and their verdicts.

    Some filter recipes keep only one of several equal captions; the caption then counts as kept.
    """
    positions = np.flatnonzero(_bools(pc.utf8_length(pc.utf8_trim_whitespace(texts))))
    codes = texts.take(positions).dictionary_encode().combine_chunks().indices.to_numpy()
    keys = np.stack([rows[positions], codes.astype(np.int64)])
    _, firsts, groups = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    kept = np.zeros(len(firsts), bool)
    np.logical_or.at(kept, groups.ravel(), is_kept[positions])
    return positions[firsts], kept


def _bools(values: Any) -> Mask:
    """Convert a column to bool; null and 0 become False."""
    zero = pa.scalar(0).cast(values.type)
    mask: Mask = values.fill_null(zero).to_numpy(zero_copy_only=False).astype(bool)
    return mask
