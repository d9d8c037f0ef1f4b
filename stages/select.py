"""Select: chooses a subset of the pool by noun phrases, by a score, or at random."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.random import hashes, splitmix, uid_hashes
from models.text.noun_phrases import NounPhrases, PhraseForm, revision
from stages.base import (
    Cutoff,
    InParts,
    KeyedStage,
    RankedStage,
    StageConfig,
    floats,
    in_order,
    threshold,
)
from stages.schema import web_captions

__all__ = ["SelectConfig", "SelectStage", "coverage", "histogram"]

Bools = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]

BY_PHRASE = ("noun_phrases", "balance")
BY_SHARE = ("random", "top_fraction")

WRITES: dict[str, pa.DataType] = {"noun_phrases": pa.list_(pa.string()), "score": pa.float64()}
SUMMARY: dict[str, pa.DataType] = {"selected": pa.bool_(), "selected_by": pa.string()}

SCORED: dict[str, pa.DataType] = {"uid": pa.string(), "score": pa.float64()}
"""The columns that `random` and `top_fraction` need."""

CHUNK = 1 << 20
"""Number of rows whose phrases `balance` holds as Python lists at once."""


@dataclass(frozen=True, kw_only=True)
class SelectConfig(StageConfig):
    """How to choose rows.

    Attributes:
        method: noun_phrases takes rows from rare phrases to common ones, as LLaVA did
            (arXiv:2304.08485, appendix). balance does the same with a hard cap: no phrase occurs in
            more than `max_per_phrase` of the chosen rows. random chooses by a hash of seed and uid.
            top_fraction chooses the rows with the highest `score`, as DataComp does with CLIP
            (arXiv:2304.14108).
        captions: Captions whose phrases count: web (including those that dedup took over from
            copies), synthetic, or both. A phrase counts once per row, and a row is chosen with all
            its captions.
        min_frequency: Minimum number of rows with a phrase; rarer phrases choose no rows.
        max_per_phrase: A phrase with more rows than this chooses this many of them at random.
        variant: For noun_phrases, the rows that a frequent phrase chooses from, since the paper is
            ambiguous. literal: all rows with the phrase. not_pooled: those that no rarer phrase has
            chosen. quota: as not_pooled, but rows already chosen count towards `max_per_phrase`.
        model: A spaCy pipeline, installed or in a folder.
        phrase: How phrases are normalised before counting: raw; lower; no_determiner (lower case,
            without leading determiners); or lemma (no_determiner, with each word in its dictionary
            form). The paper does not say. The number of distinct phrases, and so the size of the
            subset, depends on it more than on `variant`.
        require_caption: Whether a row without a caption is rejected by noun_phrases and balance;
            otherwise it is kept.
        score: Column that top_fraction ranks by, such as itm_web: a number, or a list of which the
            largest number counts.
        fraction: Share of rows that random and top_fraction choose, above 0 and at most 1. random
            decides on each row independently, so the share is met on average only; top_fraction
            rounds to whole rows.
        number: Number of rows, in place of `fraction`.
        seed: Seed of the random choices.
    """

    method: Literal["noun_phrases", "balance", "random", "top_fraction"] = threshold("noun_phrases")
    captions: Literal["web", "synthetic", "both"] = "web"
    min_frequency: int = threshold(3)
    max_per_phrase: int = threshold(100)
    variant: Literal["literal", "not_pooled", "quota"] = threshold("literal")
    model: str = "en_core_web_sm"
    phrase: PhraseForm = "lower"
    require_caption: bool = threshold(True)
    score: str | None = None
    fraction: float | None = threshold(None)
    number: int | None = threshold(None)
    seed: int = threshold(0)

    def __post_init__(self) -> None:
        for name in ("min_frequency", "max_per_phrase", "number"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"select.{name} must be at least 1, got {value}")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ValueError(
                f"select.fraction must be above 0 and at most 1, got {self.fraction}; to give a "
                "number of rows, set select.number"
            )
        is_share, is_ranked = self.method in BY_SHARE, self.method == "top_fraction"
        if (self.fraction is not None) + (self.number is not None) != is_share:
            takes = "needs one of" if is_share else "takes none of"
            raise ValueError(
                f"select.method: {self.method} {takes} select.fraction and select.number"
            )
        if is_ranked and self.score is None:
            raise ValueError("select.score must name the column to rank by, such as itm_web")
        if self.score is not None and not is_ranked:
            raise ValueError(
                f"select.score is for the method top_fraction; remove it, or change "
                f"select.method, which is {self.method}"
            )
        if not self.model:
            raise ValueError('select.model must name a spaCy pipeline, such as "en_core_web_sm"')

    @property
    def reads(self) -> tuple[str, ...]:
        """The score column, and the synthetic captions if their phrases count."""
        synthetic = ("synthetic",) if self.method in BY_PHRASE and self.captions != "web" else ()
        return synthetic if self.score is None else (*synthetic, self.score)

    def check(self, columns: pa.Schema) -> None:
        """Check that the score is a numeric column, and that synthetic captions exist if needed."""
        numbers = [field.name for field in columns if _is_numeric(field.type)]
        if self.score is not None and self.score not in numbers:
            what = (
                "not numeric" if self.score in columns.names else "not a column of an earlier stage"
            )
            raise ValueError(
                f"select.score: {self.score!r} is {what}; choose from {', '.join(numbers)}"
            )
        if "synthetic" in self.reads and "synthetic" not in columns.names:
            raise ValueError(
                f"select.captions: {self.captions} needs the stage caption before select"
            )

    def measurement(self) -> dict[str, Any]:
        """Return the fields that change the phrases or the score, and the pipeline's revision.

        Raises:
            FileNotFoundError: The method needs phrases and the spaCy pipeline is not installed.
        """
        if self.method in BY_PHRASE:
            fields = {name: getattr(self, name) for name in ("captions", "model", "phrase")}
            return {**fields, "revision": revision(self.model)}
        return {} if self.score is None else {"score": self.score}


class SelectStage(KeyedStage[SelectConfig], RankedStage[SelectConfig]):
    """Chooses a subset in which rare concepts keep all their rows and common ones are sampled.

    Phrases are visited from the least to the most frequent, equal frequencies in byte order. The
    frequency of a phrase is the number of live rows with it. With noun_phrases, rows that any
    phrase has chosen stay, so a frequent phrase may end up with far more rows than
    `max_per_phrase`. `balance` skips rows with a phrase that has reached its maximum.
    """

    name: ClassVar[str] = "select"
    version: ClassVar[int] = 3
    config_type: ClassVar[type[StageConfig]] = SelectConfig
    reads: ClassVar[tuple[str, ...]] = ("caption",)
    uses: ClassVar[tuple[str, ...]] = ("text", "further_captions")
    writes = pa.schema(WRITES)
    summary: ClassVar[pa.Schema] = pa.schema(SUMMARY)
    reasons: ClassVar[Mapping[str, str]] = {
        "no_caption": "The row has no caption to take noun phrases from.",
        "no_noun_phrase": "The captions have no noun phrase.",
        "no_score": "The row has no score.",
        "not_selected": "The row was not chosen for the subset.",
    }
    help: ClassVar[str] = "choose a subset: balanced by noun phrase, by a score, or at random"
    examples: ClassVar[tuple[str, ...]] = (
        "capfilt select manifest.yaml --set select.max_per_phrase=50",
    )
    paper: ClassVar[str] = "LLaVA (arXiv:2304.08485); DataComp (arXiv:2304.14108) for top_fraction"
    loader: ClassVar[str] = "a spaCy pipeline"
    histograms: ClassVar[tuple[str, ...]] = ()

    def load(self) -> None:
        """Load the spaCy pipeline if the method needs phrases."""
        if self.config.method in BY_PHRASE:
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
        elif self.config.score is not None:
            scores = _scores(rows[self.config.score].combine_chunks())
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
        """`keys` for the variant literal, whose phrases are independent; `ranks` for shares."""
        if self.config.method in BY_SHARE:
            return "ranks"
        is_literal = self.config.method == "noun_phrases" and self.config.variant == "literal"
        return "keys" if is_literal else None

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
        brought = self._walk(mentions, np.asarray(lines["uid"])[first])
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
        """Rank all rows at random, or, for top_fraction, by score with the highest first."""
        uids = uid_hashes(rows["uid"].cast(pa.string()))
        lot = splitmix(uids ^ splitmix(self.config.seed))
        rank, is_in = np.zeros(len(lot)), np.ones(len(lot), bool)
        if self.config.method == "top_fraction":
            rank = -rows["score"].to_numpy()
            is_in = ~np.isnan(rank)
        elif self.config.fraction is not None:
            is_in = (lot >> np.uint64(11)) < self.config.fraction * 2.0**53
        return pa.table({"row": np.flatnonzero(is_in), "rank": rank[is_in], "lot": lot[is_in]})

    def size(self, ranked: int) -> int:
        """Return `number`, or the fraction of the rows with a score."""
        fraction, number = self.config.fraction, self.config.number
        if number is not None:
            return number
        assert fraction is not None
        return round(fraction * ranked) if self.config.method == "top_fraction" else ranked

    def conclude(self, rows: pa.Table, results: pa.Table) -> pa.Table:
        """Return the summary, with the rarest of the phrases that choose each row."""
        if self.config.method in BY_SHARE:
            selected = np.zeros(len(rows), bool)
            selected[np.asarray(results["row"])] = True
            nulls: Any = pa.nulls(len(rows), pa.string())
            return self._summary(rows["uid"], selected, nulls)
        ranked = results.sort_by([(name, "ascending") for name in ("row", "frequency", "phrase")])
        row, first = np.unique(ranked["row"], return_index=True)
        which = np.full(len(rows), -1)
        which[row] = first
        by: Any = ranked["phrase"].combine_chunks().take(pa.array(which, mask=which < 0))
        return self._summary(rows["uid"], which >= 0, by)

    def _summary(self, uids: Any, selected: Bools, by: Any) -> pa.Table:
        columns = [uids.cast(pa.string()), pa.array(selected), by]
        return pa.table(columns, names=["uid", *self.summary.names])

    def summarize(self, annotations: Iterator[pa.Table]) -> pa.Table:
        """Choose the subset.

        Returns:
            uid; selected; and selected_by, the rarest phrase that chose the row, null for other
            rows and for methods without phrases.
        """
        if self.config.method in BY_SHARE:
            scored = pa.schema(SCORED)
            tables = (table.select(scored.names).cast(scored) for table in annotations)
            rows = pa.concat_tables([scored.empty_table(), *tables])
            ranked = self.ranks(rows)
            taken = in_order(ranked)[: self.size(len(ranked))]
            return self.conclude(rows, pa.table({"row": taken}))
        uids: list[Any] = []
        parts: list[Any] = []
        for table in annotations:
            uids.append(table["uid"].cast(pa.string()).combine_chunks())
            parts.append(_encoded(table["noun_phrases"].combine_chunks()))
        uid = pa.chunked_array(uids, pa.string())
        mentions = Mentions.joined(parts)
        choose = self._walk if self.config.method == "noun_phrases" else self._balance
        first = choose(mentions, uid_hashes(uid))
        by = mentions.phrases.take(pa.array(first, mask=first < 0))
        return self._summary(uid, first >= 0, by)

    def _ranked(self, mentions: Mentions) -> Int64s:
        """Return the codes of the phrases that may choose rows, in the order of the walk."""
        frequent = np.flatnonzero(mentions.frequency >= self.config.min_frequency)
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
        elif self.config.method == "top_fraction":
            reason[np.asarray(annotations["score"].is_null())] = "no_score"
        verdicts: pa.StringArray = pa.array(reason, pa.string(), mask=is_kept)
        return verdicts

    def cutoffs(self, annotations: pa.Table) -> Iterator[Cutoff]:
        """See `Stage.cutoffs`; the pool decides where a top fraction ends."""
        if self.config.method == "top_fraction":
            yield Cutoff("not_selected", "score", None, floats(annotations["score"]))


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


def _is_numeric(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.ListType):
        kind = kind.value_type
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


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
