"""Select: a subset balanced by noun phrase, as LLaVA chose 595,000 pairs of CC3M."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.nouns import NounPhrases, PhraseForm, revision
from stages.base import GlobalStage, StageConfig, threshold
from stages.schema import web_captions

__all__ = ["SelectConfig", "SelectStage"]

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]

SUMMARY: dict[str, pa.DataType] = {"selected": pa.bool_(), "selected_by": pa.string()}


@dataclass(frozen=True, kw_only=True)
class SelectConfig(StageConfig):
    """How captions are chosen by their noun phrases (LLaVA, arXiv:2304.08485, appendix).

    Attributes:
        min_frequency: Phrases in fewer captions bring in nothing.
        max_per_phrase: A phrase in more captions brings in a random choice of this many.
        variant: Which captions a frequent phrase chooses from, where the paper can be read in
            several ways. literal: from all that hold it. not_pooled: from those that no rarer
            phrase has brought in. quota: as not_pooled, and those brought in count towards
            `max_per_phrase`.
        model: A spaCy pipeline, installed or in a folder.
        phrase: How a phrase is written when it is counted: raw, lower, or no_determiner (lower
            case, without leading determiners). The paper does not say, and the number of distinct
            phrases, and with it the size of the subset, depends on it more than on `variant`.
        require_caption: Whether a row without a web caption is rejected; otherwise it stays.
        seed: Of the random choices.
    """

    min_frequency: int = threshold(3)
    max_per_phrase: int = threshold(100)
    variant: Literal["literal", "not_pooled", "quota"] = threshold("literal")
    model: str = "en_core_web_sm"
    phrase: PhraseForm = "lower"
    require_caption: bool = threshold(True)
    seed: int = threshold(0)

    def __post_init__(self) -> None:
        for name in ("min_frequency", "max_per_phrase"):
            if getattr(self, name) < 1:
                raise ValueError(f"select.{name} must be at least 1, got {getattr(self, name)}")
        if not self.model:
            raise ValueError('select.model must name a spaCy pipeline, such as "en_core_web_sm"')

    def measurement(self) -> dict[str, Any]:
        """The fields that change the phrases, and the revision of the pipeline."""
        return {**super().measurement(), "revision": revision(self.model)}


class SelectStage(GlobalStage[SelectConfig]):
    """A subset in which rare concepts keep all their captions and common ones are sampled.

    Phrases are taken from the least frequent up, equal frequencies in the order of their bytes.
    Frequency is the number of live rows whose caption holds the phrase. A caption that one phrase
    has brought in stays, so a frequent phrase may end with far more captions than
    `max_per_phrase`: it is no cap on the subset.
    """

    name: ClassVar[str] = "select"
    version: ClassVar[int] = 1
    config_type: ClassVar[type[StageConfig]] = SelectConfig
    reads: ClassVar[tuple[str, ...]] = ("caption",)
    uses: ClassVar[tuple[str, ...]] = ("text",)
    writes: ClassVar[pa.Schema] = pa.schema({"noun_phrases": pa.list_(pa.string())})
    summary: ClassVar[pa.Schema] = pa.schema(SUMMARY)
    reasons: ClassVar[Mapping[str, str]] = {
        "no_caption": "There is no web caption to choose by.",
        "no_noun_phrase": "The caption holds no noun phrase.",
        "not_selected": "No noun phrase of the caption brought it into the subset.",
    }

    def load(self) -> None:
        """Load the spaCy pipeline."""
        self.extract = NounPhrases(self.config.model, self.config.phrase)

    def annotate(self, rows: pa.Table) -> pa.Table:
        """Parse the captions.

        Returns:
            noun_phrases, the distinct ones of each caption in order; null without a caption.
        """
        captions = web_captions(rows).to_pylist()
        phrases = iter(self.extract([text for text in captions if text is not None]))
        lists = [None if text is None else next(phrases) for text in captions]
        return pa.table([pa.array(lists, pa.list_(pa.string()))], schema=self.writes)

    def summarize(self, annotations: Iterator[pa.Table]) -> pa.Table:
        """Choose the subset.

        Returns:
            uid; selected; selected_by, the rarest phrase that brought the row in, null for the
            others.
        """
        schema = pa.schema([pa.field("uid", pa.string()), *self.writes])
        tables = [table.select(schema.names).cast(schema) for table in annotations]
        rows = pa.concat_tables([schema.empty_table(), *tables]).combine_chunks()
        uid, lists = rows["uid"].combine_chunks(), rows["noun_phrases"].combine_chunks()
        encoded: Any = pc.list_flatten(lists).dictionary_encode()
        phrases = encoded.dictionary
        row = np.asarray(pc.list_parent_indices(lists)).astype(np.int64)
        phrase = np.asarray(encoded.indices).astype(np.int64)
        frequency = np.bincount(phrase, minlength=len(phrases))
        ranked = pc.sort_indices(
            pa.table({"frequency": frequency, "phrase": phrases}),
            [("frequency", "ascending"), ("phrase", "ascending")],
        )
        rank = np.argsort(np.asarray(ranked))
        tickets = draw(self.config.seed, hashes(phrases)[phrase], hashes(uid)[row])
        by = self._choose(row, rank[phrase], frequency[phrase], tickets, len(rows))
        selected = pa.array(by < len(phrases))
        ranks: Any = pc.if_else(selected, by, None)
        return pa.table(
            [uid, selected, phrases.take(ranked.take(ranks))], names=["uid", *self.summary.names]
        )

    def _choose(
        self, row: Int64s, rank: Int64s, frequency: Int64s, tickets: UInt64s, num_rows: int
    ) -> Int64s:
        """The rank of the phrase that brings each row in; that after the last for the others.

        Args:
            row: (m,) the row of each mention of a phrase.
            rank: (m,) the rank of the phrase, 0 the first to be taken.
            frequency: (m,) its frequency.
            tickets: (m,) the mention's lot; the lowest of a phrase are drawn.
            num_rows: Rows in all.
        """
        size, variant = self.config.max_per_phrase, self.config.variant
        nobody = int(rank.max(initial=-1)) + 1
        by = np.full(num_rows, nobody)
        is_drawn = frequency >= self.config.min_frequency
        order = np.lexsort((tickets, rank))
        order = order[is_drawn[order]]
        row, rank, frequency = row[order], rank[order], frequency[order]
        starts = np.flatnonzero(np.diff(rank, prepend=-1))
        place = np.arange(len(rank)) - np.repeat(starts, np.diff(starts, append=len(rank)))
        whole = (place < size) if variant == "literal" else (frequency <= size)
        np.minimum.at(by, row[whole], rank[whole])
        if variant == "literal":
            return by
        for start in starts[frequency[starts] > size]:
            members = row[start : start + frequency[start]]
            free = members[by[members] == nobody]
            pooled = len(members) - len(free) if variant == "quota" else 0
            by[free[: max(size - pooled, 0)]] = rank[start]
        return by

    def judge(self, annotations: pa.Table) -> pa.StringArray:
        """Reject rows outside the subset."""
        lengths = pc.list_value_length(annotations["noun_phrases"])
        lengths = np.asarray(lengths.fill_null(pa.scalar(-1, pa.int32())))
        is_selected = np.asarray(annotations["selected"].fill_null(pa.scalar(False)))
        reason = np.select(
            [lengths < 0, lengths == 0], ["no_caption", "no_noun_phrase"], "not_selected"
        )
        is_kept = is_selected | ((lengths < 0) & (not self.config.require_caption))
        verdicts: pa.StringArray = pa.array(reason, pa.string(), mask=is_kept)
        return verdicts


def hashes(texts: pa.Array[Any]) -> UInt64s:
    """64 bits of each text, the same in every process."""
    digests = (hashlib.blake2b(str(text).encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def draw(seed: int, phrases: UInt64s, uids: UInt64s) -> UInt64s:
    """A lot for each (seed, phrase, uid), uniform and independent of everything else."""
    return splitmix(splitmix(phrases ^ splitmix(np.array([seed % 2**64], np.uint64))) ^ uids)


def splitmix(values: UInt64s) -> UInt64s:
    """The finalizer of splitmix64 (Steele et al., OOPSLA 2014), elementwise."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
