"""Select: chooses a subset of the pool by noun phrases, by a score, or at random."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.embedding import selection
from models.random import hashes, splitmix, uid_hashes
from models.text.entries import Entries
from models.text.noun_phrases import NounPhrases
from stages.base import Cutoff, Floats, InParts, KeyedStage, RankedStage, floats, in_order
from stages.embed import Gathered
from stages.schema import web_captions
from stages.select_config import BY_PHRASE, SelectConfig

__all__ = ["SelectConfig", "SelectStage", "coverage", "histogram"]

Bools = npt.NDArray[np.bool_]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]

WRITES: dict[str, pa.DataType] = {"noun_phrases": pa.list_(pa.string()), "score": pa.float64()}
SUMMARY: dict[str, pa.DataType] = {
    "selected": pa.bool_(),
    "selected_by": pa.string(),
    "selection_score": pa.float64(),
    "draws": pa.int32(),
}

SCORED: dict[str, pa.DataType] = {"uid": pa.string(), "score": pa.float64()}
"""The columns that methods which take a share need, besides embeddings."""

CHUNK = 1 << 20
"""Number of rows whose phrases `balance` holds as Python lists at once."""


class SelectStage(KeyedStage[SelectConfig], RankedStage[SelectConfig]):
    """Chooses a subset in which rare concepts keep all their rows and common ones are sampled.

    Phrases are visited from the least to the most frequent, equal frequencies in byte order. The
    frequency of a phrase is the number of live rows with it. With noun_phrases, rows that any
    phrase has chosen stay, so a frequent phrase may end up with far more rows than
    `max_per_phrase`. `balance` skips rows with a phrase that has reached its maximum. `metadata`
    keeps a row by one random number of its own, so that frequent phrases are thinned out evenly.

    `top_fraction`, `target` and `neg_clip_loss` choose the rows with the highest numbers.
    """

    name: ClassVar[str] = "select"
    version: ClassVar[int] = 3
    config_type: ClassVar[type[SelectConfig]] = SelectConfig
    reads: ClassVar[tuple[str, ...]] = ("caption",)
    uses: ClassVar[tuple[str, ...]] = ("text", "further_captions")
    writes = pa.schema(WRITES)
    summary: ClassVar[pa.Schema] = pa.schema(SUMMARY)
    later: ClassVar[tuple[str, ...]] = ("selection_score", "draws")
    reasons: ClassVar[Mapping[str, str]] = {
        "no_caption": "The row has no caption to take noun phrases from.",
        "no_noun_phrase": "The captions have no noun phrase.",
        "no_score": "The row has no score.",
        "not_selected": "The row was not chosen for the subset.",
    }
    help: ClassVar[str] = "choose a subset: by phrases, a score, embeddings, or at random"
    examples: ClassVar[tuple[str, ...]] = (
        "capfilt select manifest.yaml --set select.max_per_phrase=50",
    )
    paper: ClassVar[str] = (
        "noun_phrases is LLaVA's (arXiv:2304.08485), metadata MetaCLIP's (arXiv:2309.16671), "
        "top_fraction DataComp's (arXiv:2304.14108), sample SCS (arXiv:2503.08805), target NormSim "
        "and neg_clip_loss negCLIPLoss (both arXiv:2405.19547), density density-based pruning "
        "(arXiv:2401.04578)"
    )
    loader: ClassVar[str] = "a spaCy pipeline"
    histograms: ClassVar[tuple[str, ...]] = ("selection_score",)

    def own_columns(self) -> pa.Schema:
        """See `Stage.own_columns`; only `sample` draws rows."""
        missing = () if self.config.method == "sample" else ("draws",)
        return pa.schema([field for field in super().own_columns() if field.name not in missing])

    def load(self) -> None:
        """Load the spaCy pipeline if the method needs phrases."""
        if self.config.entries is not None:
            self.extract: NounPhrases | Entries = Entries.load(self.config.entries)
        elif self.config.method in BY_PHRASE:
            self.extract = NounPhrases(self.config.model, self.config.phrase)

    def annotate(self, rows: pa.Table) -> pa.Table:
        """Extract noun phrases, or copy the score.

        Returns:
            noun_phrases, the distinct ones of each row in order, null without a caption; and score.
            The column that `method` does not need is null.
        """
        n = len(rows)
        phrases: Any = pa.array([None] * n, WRITES["noun_phrases"])
        scores: Any = pa.array([None] * n, WRITES["score"])
        if self.config.method in BY_PHRASE:
            phrases = pa.array(self._phrases(rows), WRITES["noun_phrases"])
        elif self.config.ranked_by is not None:
            scores = _scores(rows[self.config.ranked_by].combine_chunks())
        return pa.table([phrases, scores], schema=self.writes)

    def _phrases(self, rows: pa.Table) -> list[list[str] | None]:
        texts: list[list[str]] = [[] for _ in range(len(rows))]
        if self.config.captions != "synthetic":
            for captions, text in zip(texts, web_captions(rows).to_pylist(), strict=True):
                captions += [] if text is None else [text]
            if "further_captions" in rows.column_names:
                for captions, further in zip(
                    texts, rows["further_captions"].to_pylist(), strict=True
                ):
                    captions += further or ()
        if self.config.captions != "web":
            for captions, written in zip(texts, rows["synthetic"].to_pylist(), strict=True):
                captions += [text for text in written or () if text is not None]
        phrases = iter(self.extract([text for captions in texts for text in captions]))
        lists = [[next(phrases) for _ in captions] for captions in texts]
        return [list(dict.fromkeys(chain(*captions))) if captions else None for captions in lists]

    @property
    def in_parts(self) -> InParts | None:
        """`keys` where phrases are independent, `ranks` where a number of each row decides."""
        config = self.config
        if config.method not in BY_PHRASE:
            return "draws" if config.method == "sample" else "ranks"
        is_literal = config.method == "noun_phrases" and config.variant == "literal"
        is_thinned = config.method == "metadata" and config.tail is None
        return "keys" if is_literal or is_thinned else None

    def lines(self, rows: pa.Table) -> pa.Table:
        """Return row, phrase and uid hash of each mention of a phrase; the key is the phrase."""
        row, encoded, _ = _encoded(rows["noun_phrases"].combine_chunks())
        code = np.asarray(encoded.indices)
        return pa.table(
            {
                "row": row,
                "key": hashes(encoded.dictionary)[code],
                "phrase": encoded.cast(pa.string()),
                "uid": uid_hashes(rows["uid"].cast(pa.string()))[row],
            }
        )

    def reduce(self, lines: pa.Table) -> pa.Table:
        """Return the rows that each phrase chooses, and the frequency of the phrase."""
        rows, first, row = np.unique(lines["row"], return_index=True, return_inverse=True)
        encoded: Any = lines["phrase"].combine_chunks().dictionary_encode()
        mentions = Mentions.of(row, np.asarray(encoded.indices), encoded.dictionary)
        brought = self._choose(mentions, np.asarray(lines["uid"])[first])
        is_in = brought >= 0
        code = brought[is_in]
        return pa.table(
            {
                "row": rows[is_in],
                "frequency": mentions.frequency[code],
                "phrase": mentions.phrases.take(pa.array(code)),
            }
        )

    def ranks(self, rows: pa.Table) -> pa.Table:
        """Rank all rows at random, or by score with the highest first."""
        uids = uid_hashes(rows["uid"].cast(pa.string()))
        lot = splitmix(uids ^ splitmix(self.config.seed))
        rank, is_in = np.zeros(len(lot)), np.ones(len(lot), bool)
        if self.config.method != "random":
            rank = -rows["score"].to_numpy()
            is_in = ~np.isnan(rank)
        elif self.config.fraction is not None:
            is_in = (lot >> np.uint64(11)) < self.config.fraction * 2.0**53
        columns = {"row": np.flatnonzero(is_in), "rank": rank[is_in], "lot": lot[is_in]}
        if "cell" in rows.column_names:
            columns["cell"] = rows["cell"].to_numpy()[is_in]
        return pa.table(columns)

    def size(self, ranked: int) -> int:
        """Return `number`, or the fraction of the rows with a score."""
        fraction, number = self.config.fraction, self.config.number
        if number is not None:
            return number
        assert fraction is not None
        return ranked if self.config.method == "random" else round(fraction * ranked)

    def draw(self, scores: Floats, lots: UInt64s) -> Int32s:
        """Draw rows with repetition by their scores."""
        number = self.size(len(scores))
        return selection.soft_cap_draws(scores, lots, number, **self.config.options)

    def conclude(self, rows: pa.Table, results: pa.Table) -> pa.Table:
        """Return the summary, with the rarest of the phrases that choose each row."""
        if self.config.method not in BY_PHRASE:
            row, selected = np.asarray(results["row"]), np.zeros(len(rows), bool)
            selected[row] = True
            found = {"selection_score": rows["score"]} if self.config.pooled else {}
            if self.config.method == "sample":
                draws: Any = np.zeros(len(rows), np.int32)
                draws[row] = np.asarray(results["draws"])
                found = {"draws": pa.array(draws)}
            return self._summary(rows["uid"], selected, **found)
        ranked = results.sort_by([(name, "ascending") for name in ("row", "frequency", "phrase")])
        row, first = np.unique(ranked["row"], return_index=True)
        which = np.full(len(rows), -1)
        which[row] = first
        by: Any = ranked["phrase"].combine_chunks().take(pa.array(which, mask=which < 0))
        return self._summary(rows["uid"], which >= 0, selected_by=by)

    def _summary(self, uids: Any, selected: Bools, **columns: Any) -> pa.Table:
        """The table of `summarize`; columns that are not given are null."""
        given = {"uid": uids.cast(pa.string()), "selected": pa.array(selected), **columns}
        nulls: Any = {f.name: pa.nulls(len(selected), f.type) for f in self.summary}
        return pa.table({name: given.get(name, nulls.get(name)) for name in ("uid", *nulls)})

    def summarize(self, annotations: Iterator[pa.Table]) -> pa.Table:
        """Choose the subset.

        Returns:
            uid; selected; selected_by, the rarest phrase that chose the row, null for other rows
            and for methods without phrases; selection_score, the number that a method which
            compares embeddings ranks by; and draws, how often sample drew the row.
        """
        if self.config.method not in BY_PHRASE:
            scored, gathered = pa.schema(SCORED), Gathered(*self.config.pooled)
            given = gathered.through(annotations)
            tables = (table.select(scored.names).cast(scored) for table in given)
            rows = pa.concat_tables([scored.empty_table(), *tables])
            if self.config.pooled:
                return self._by_pool(rows, gathered)
            ranked = self.ranks(rows)
            if self.config.method == "sample":
                draws = self.draw(-np.asarray(ranked["rank"]), np.asarray(ranked["lot"]))
                taken = np.flatnonzero(draws)
                row = np.asarray(ranked["row"])[taken]
                return self.conclude(rows, pa.table({"row": row, "draws": draws[taken]}))
            taken = in_order(ranked)[: self.size(len(ranked))]
            return self.conclude(rows, pa.table({"row": taken}))
        uids: list[Any] = []
        parts: list[Any] = []
        for table in annotations:
            uids.append(table["uid"].cast(pa.string()).combine_chunks())
            parts.append(_encoded(table["noun_phrases"].combine_chunks()))
        uid = pa.chunked_array(uids, pa.string())
        mentions = Mentions.joined(parts)
        first = self._choose(mentions, uid_hashes(uid))
        by = mentions.phrases.take(pa.array(first, mask=first < 0))
        return self._summary(uid, first >= 0, selected_by=by)

    def _by_pool(self, rows: pa.Table, gathered: Gathered) -> pa.Table:
        """Choose rows by all embeddings of the pool.

        Args:
            rows: uid and score of n rows.
            gathered: The embeddings of these rows.
        """
        config = self.config
        lots = splitmix(uid_hashes(rows["uid"].cast(pa.string())) ^ splitmix(config.seed))
        at = np.flatnonzero(gathered.has(*config.pooled))
        lot, number = lots[at], self.size(len(at))
        pooled = [gathered.of(name, at) for name in config.pooled]
        selected, found = np.zeros(len(rows), bool), np.full(len(rows), np.nan)
        if config.method == "density":
            selected[at], found[at] = selection.density(pooled[0], lot, number, **config.options)
        else:
            if config.method == "target":
                found[at] = selection.pool_norm(pooled[0])
            else:
                found[at] = selection.neg_clip_loss(pooled[0], pooled[1], lot, **config.options)
            selected[at[np.lexsort((lot, -found[at]))[:number]]] = True
        score = pa.array(found, mask=np.isnan(found))
        return self._summary(rows["uid"], selected, selection_score=score)

    def _choose(self, mentions: Mentions, uids: UInt64s) -> Int64s:
        """Choose rows by the phrases; see `_walk`."""
        ways = {"noun_phrases": self._walk, "balance": self._balance, "metadata": self._thin}
        return ways[self.config.method](mentions, uids)

    def _thin(self, mentions: Mentions, uids: UInt64s) -> Int64s:
        """Choose each row with the probability of its rarest phrase; see `_walk`.

        The probability is t over the frequency of the phrase.
        """
        ranked = self._ranked(mentions)
        row, rank = mentions.by_rank(ranked)
        first = np.full(len(uids), len(ranked), np.int32)
        np.minimum.at(first, row, rank)
        frequency = mentions.frequency[ranked]
        most: float = self.config.max_per_phrase
        if self.config.tail is not None and len(ranked):
            share = np.cumsum(frequency) / frequency.sum()
            most = float(frequency[np.searchsorted(share, self.config.tail)])
        chance = np.append(most / np.maximum(frequency, 1), 0)[first]
        lots = splitmix(uids ^ splitmix(self.config.seed)) >> np.uint64(11)
        return np.where(lots < chance * 2.0**53, np.append(ranked, -1)[first], -1)

    def _ranked(self, mentions: Mentions) -> Int64s:
        """Return the codes of the phrases that may choose rows, in the order of the walk."""
        least = self.config.min_frequency if self.config.entries is None else 1
        frequent = np.flatnonzero(mentions.frequency >= least)
        keys = pa.table(
            {
                "frequency": mentions.frequency[frequent],
                "phrase": mentions.phrases.take(pa.array(frequent)),
            }
        )
        order = pc.sort_indices(keys, [("frequency", "ascending"), ("phrase", "ascending")])
        return frequent[np.asarray(order).astype(np.int64)]

    def _walk(self, mentions: Mentions, uids: UInt64s) -> Int64s:
        """Choose rows by LLaVA's walk over the phrases.

        Args:
            mentions: The mentions of phrases in n rows.
            uids: (n,) hashes of the rows' uids.

        Returns:
            (n,) code of the rarest phrase that chooses each row, -1 for rows not chosen.
        """
        size, variant = self.config.max_per_phrase, self.config.variant
        ranked = self._ranked(mentions)
        num_whole = int(np.searchsorted(mentions.frequency[ranked], size, "right"))
        row, rank = mentions.by_rank(ranked)
        unchosen = len(ranked)
        first = np.full(len(uids), unchosen, np.int32)
        is_whole = rank < num_whole
        np.minimum.at(first, row[is_whole], rank[is_whole])
        row, rank = row[~is_whole], rank[~is_whole]
        names = hashes(mentions.phrases.take(pa.array(ranked[num_whole:])))
        draws = draw(self.config.seed, names[rank - num_whole], uids[row])
        order = np.lexsort((draws, rank))
        row, rank = row[order], rank[order]
        starts = np.flatnonzero(np.diff(rank, prepend=-1))
        if variant == "literal":
            position = np.arange(len(rank)) - np.repeat(starts, np.diff(starts, append=len(rank)))
            np.minimum.at(first, row[position < size], rank[position < size])
        else:
            for phrase, members in enumerate(np.split(row, starts)[1:], num_whole):
                free = members[first[members] == unchosen]
                pooled = len(members) - len(free) if variant == "quota" else 0
                first[free[: max(size - pooled, 0)]] = phrase
        return np.append(ranked, -1)[first]

    def _balance(self, mentions: Mentions, uids: UInt64s) -> Int64s:
        """Choose rows by the same walk, skipping rows with a full phrase; see `_walk`.

        A skipped row cannot be chosen later, since a full phrase stays full. So each row is visited
        once, with its rarest phrase.
        """
        ranked = self._ranked(mentions)
        row, rank = mentions.by_rank(ranked)
        first = np.full(len(uids), len(ranked), np.int32)
        np.minimum.at(first, row, rank)
        rows = np.flatnonzero(first < len(ranked))
        names = hashes(mentions.phrases.take(pa.array(ranked)))
        draws = draw(self.config.seed, names[first[rows]], uids[rows])
        rows = rows[np.lexsort((draws, first[rows]))]

        may_fill = mentions.frequency[mentions.code] > self.config.max_per_phrase
        code = mentions.code[may_fill]
        ends = np.cumsum(np.bincount(mentions.row[may_fill], minlength=len(uids)))
        lengths = np.diff(ends, prepend=0)
        room = [self.config.max_per_phrase] * len(mentions.phrases)
        by = np.full(len(uids), -1)
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            num_phrases = lengths[chunk]
            stops = np.cumsum(num_phrases)
            chunk_phrases = code[
                np.arange(num_phrases.sum()) + np.repeat(ends[chunk] - stops, num_phrases)
            ].tolist()
            taken, low = [], 0
            for high in stops.tolist():
                phrases = chunk_phrases[low:high]
                low = high
                is_taken = all([room[phrase] for phrase in phrases])
                taken.append(is_taken)
                if is_taken:
                    for phrase in phrases:
                        room[phrase] -= 1
            chunk = chunk[np.array(taken, bool)]
            by[chunk] = ranked[first[chunk]]
        return by

    def judge(self, annotations: pa.Table) -> pa.StringArray:
        """Reject rows that are not in the subset."""
        is_kept = np.asarray(annotations["selected"].fill_null(pa.scalar(False)))
        reason = np.full(len(annotations), "not_selected", object)
        if self.config.method in BY_PHRASE:
            lengths = pc.list_value_length(annotations["noun_phrases"])
            lengths = np.asarray(lengths.fill_null(pa.scalar(-1, pa.int32())))
            reason[lengths < 0] = "no_caption"
            reason[lengths == 0] = "no_noun_phrase"
            is_kept = is_kept | ((lengths < 0) & (not self.config.require_caption))
        elif self.config.method != "random":
            name = "selection_score" if self.config.pooled else "score"
            reason[np.asarray(annotations[name].is_null())] = "no_score"
        verdicts: pa.StringArray = pa.array(reason, pa.string(), mask=is_kept)
        return verdicts

    def cutoffs(self, annotations: pa.Table) -> Iterator[Cutoff]:
        """See `Stage.cutoffs`; the pool decides where a top fraction ends."""
        name = "selection_score" if self.config.pooled else "score"
        if self.config.pooled or self.config.ranked_by is not None:
            field = "score" if self.config.score is not None else "method"
            yield Cutoff("not_selected", field, None, floats(annotations[name]))


@dataclass(frozen=True, kw_only=True)
class Mentions:
    """The m mentions of k distinct phrases in rows.

    Attributes:
        row: (m,) row of each mention, ascending.
        code: (m,) phrase of each mention, an index of `phrases`.
        phrases: The k distinct phrases.
        frequency: (k,) number of rows with each phrase.
    """

    row: Int64s
    code: npt.NDArray[np.int32]
    phrases: Any
    frequency: Int64s

    @classmethod
    def joined(cls, parts: list[tuple[Int64s, Any, int]]) -> Mentions:
        """Concatenate the mentions of several tables, as returned by `_encoded`."""
        kind: Any = pa.dictionary(pa.int32(), pa.string())
        chunks: Any = pa.chunked_array([encoded for _, encoded, _ in parts], kind)
        chunks = chunks.unify_dictionaries()
        starts = np.cumsum([0, *(n for _, _, n in parts)])
        codes = [np.asarray(chunk.indices) for chunk in chunks.chunks]
        code = np.concatenate([np.zeros(0, np.int32), *codes])
        rows = [row + start for (row, _, _), start in zip(parts, starts[:-1], strict=True)]
        phrases: Any = chunks.chunk(0).dictionary if parts else pa.array([], pa.string())
        return cls.of(np.concatenate([np.zeros(0, np.int64), *rows]), code, phrases)

    @classmethod
    def of(cls, row: Int64s, code: npt.NDArray[np.int32], phrases: Any) -> Mentions:
        """Make mentions from the attributes, and count the frequencies."""
        frequency = np.bincount(code, minlength=len(phrases))
        return cls(row=row, code=code, phrases=phrases, frequency=frequency)

    def by_rank(self, ranked: Int64s) -> tuple[Int64s, npt.NDArray[np.int32]]:
        """Return the row of each mention of the phrases `ranked`, and the phrase's rank."""
        rank = np.full(len(self.phrases), -1, np.int32)
        rank[ranked] = np.arange(len(ranked))
        ranks = rank[self.code]
        return self.row[ranks >= 0], ranks[ranks >= 0]


def _encoded(lists: Any) -> tuple[Int64s, Any, int]:
    """Return row and phrase of each mention in a column of lists, and the number of rows."""
    rows = np.asarray(pc.list_parent_indices(lists)).astype(np.int64)
    return rows, pc.list_flatten(lists).dictionary_encode(), len(lists)


def _scores(column: Any) -> Any:
    """Return a score per row, the largest of a list; null for null, NaN and the empty list."""
    rows, values = np.arange(len(column)), column
    if isinstance(column.type, pa.ListType):
        rows, values = np.asarray(pc.list_parent_indices(column)), pc.list_flatten(column)
    largest = np.full(len(column), np.nan)
    np.fmax.at(largest, rows, values.cast(pa.float64()).to_numpy(zero_copy_only=False))
    return pa.array(largest, mask=np.isnan(largest))


BINS: tuple[int, ...] = (*range(11), *(round(10 ** (n / 2)) for n in range(3, 20)))
"""Lower limits of the frequency bins: one bin for each of 0 to 9, then half decades."""


def coverage(lists: pa.ChunkedArray[Any], selected: Bools) -> pa.Table:
    """Count phrases by frequency, before and after a selection.

    Args:
        lists: The noun phrases of n rows, null for none.
        selected: (n,) whether each row is chosen.

    Returns:
        The table of `histogram`.
    """
    mentions = Mentions.joined([_encoded(chunk) for chunk in lists.chunks])
    after = np.bincount(mentions.code[selected[mentions.row]], minlength=len(mentions.phrases))
    return histogram(mentions.frequency, after)


def histogram(before: Int64s, after: Int64s) -> pa.Table:
    """Count phrases by frequency, before and after a selection.

    Args:
        before: (k,) number of rows with each phrase.
        after: (k,) number of chosen rows with each phrase.

    Returns:
        A row per bin of frequencies (0 to 9 one each, then half decades), up to the last that is
        not empty: from and to, its lowest and highest frequency; before and after, the number of
        phrases in it. Phrases that are lost have frequency 0 after.
    """
    counts = [
        np.bincount(np.searchsorted(BINS, values, "right") - 1, minlength=len(BINS))
        for values in (before, after)
    ]
    last = int(np.flatnonzero(counts[0] + counts[1]).max(initial=-1)) + 1
    return pa.table(
        {
            "from": np.array(BINS)[:last],
            "to": np.array([*BINS[1:], 2**63])[:last] - 1,
            "before": counts[0][:last],
            "after": counts[1][:last],
        }
    )


def draw(seed: int, phrases: UInt64s, uids: UInt64s) -> UInt64s:
    """Return a uniform random number for each (seed, phrase, uid)."""
    return splitmix(splitmix(phrases ^ splitmix(seed)) ^ uids)
