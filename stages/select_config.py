"""The settings of select."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from models.embedding.selection import BATCH_SIZE
from models.text.noun_phrases import PhraseForm, revision
from stages.base import StageConfig, threshold

__all__ = ["BY_PHRASE", "SCORED", "SelectConfig"]

Method = Literal[
    "noun_phrases",
    "balance",
    "metadata",
    "random",
    "top_fraction",
    "sample",
    "target",
    "neg_clip_loss",
    "density",
]

BY_PHRASE = ("noun_phrases", "balance", "metadata")
"""Methods that choose by phrases; the others take a share or a number of rows."""

SCORED = ("top_fraction", "sample")
"""Methods that take `score`."""

EMBEDDED = ("target", "neg_clip_loss", "density")
"""Methods that need the stage embed."""

OF_METHODS: Mapping[str, tuple[str, ...]] = {
    "entries": ("metadata",),
    "tail": ("metadata",),
    "norm": ("target",),
    "temperature": ("neg_clip_loss", "density", "sample"),
    "batch_size": ("neg_clip_loss", "sample"),
    "shuffles": ("neg_clip_loss",),
    "clusters": ("density",),
    "penalty": ("sample",),
}
"""Fields that belong to some methods alone."""


@dataclass(frozen=True, kw_only=True)
class SelectConfig(StageConfig):
    """How to choose rows.

    Attributes:
        method: noun_phrases takes rows from rare phrases to common ones, as LLaVA did
            (arXiv:2304.08485, appendix). balance does the same with a hard cap: no phrase occurs in
            more than `max_per_phrase` of the chosen rows. random chooses by a hash of seed and uid.
            top_fraction chooses the rows with the highest `score`, as DataComp does with CLIP
            (arXiv:2304.14108). metadata balances phrases as MetaCLIP does (arXiv:2309.16671): a row
            stays with probability t over the number of rows with the rarest of its phrases. sample
            draws rows with repetition by the softmax of `score` (SCS, arXiv:2503.08805). The others
            compare the embeddings of the stage embed: target chooses the rows most like a target
            set or the pool (NormSim, arXiv:2405.19547), neg_clip_loss the pairs whose image and
            text find each other in random batches of the pool (the same paper), density rows far
            from the centres of their clusters, more of clusters that are wide and apart
            (arXiv:2401.04578; run `dedup.semantic` before). `filter: {recipe: neg_clip_loss}` with
            the fields of select is read as `select: {method: neg_clip_loss}` in its place.
        captions: Captions whose phrases count: web (including those that dedup took over from
            copies), synthetic, or both. A phrase counts once per row, and a row is chosen with all
            its captions.
        min_frequency: Minimum number of rows with a phrase; rarer phrases choose no rows.
        max_per_phrase: A phrase with more rows than this chooses this many of them at random. It is
            the t of metadata, unless `tail` is set.
        entries: For metadata, a text file of phrases, one a line, that are looked for in the
            captions word by word, without regard to case; unset are the noun phrases of the pool
            that occur in `min_frequency` rows.
        tail: For metadata, the share of all mentions that rare entries make up; t is then the least
            number of rows for which entries with at most t rows do, as MetaCLIP 2 sets it
            (arXiv:2507.22062). The right t depends on the size of the pool, the share does not.
        variant: For noun_phrases, the rows that a frequent phrase chooses from, since the paper is
            ambiguous. literal: all rows with the phrase. not_pooled: those that no rarer phrase has
            chosen. quota: as not_pooled, but rows already chosen count towards `max_per_phrase`.
        model: A spaCy pipeline, installed or in a folder.
        phrase: How phrases are normalised before counting: raw; lower; no_determiner (lower case,
            without leading determiners); or lemma (no_determiner, with each word in its dictionary
            form). The paper does not say. The number of distinct phrases, and so the size of the
            subset, depends on it more than on `variant`.
        require_caption: Whether a row without a caption is rejected by the methods by phrase;
            otherwise it is kept.
        score: Column that top_fraction ranks by and sample draws by, such as itm_web: a number, or
            a list of which the largest number counts.
        fraction: Share of rows that the methods but those by phrase choose, above 0 and at most 1.
            random decides on each row independently, so the share is met on average only; the
            others round to whole rows. sample draws as many times as it says of the rows.
        number: Number of rows, in place of `fraction`.
        norm: What target ranks by: max, the highest cosine with an image of `embed.target`; l2, the
            L2 norm of the cosines with all of them; pool, that of the cosines with all images of
            the pool.
        temperature: Of the softmax of neg_clip_loss (0.01 if unset, for OpenAI's CLIP), of density
            (0.1) and of sample (1; scores that are cosines need one near 0.01).
        batch_size: Pairs of a batch of neg_clip_loss (32,768 if unset), or draws of sample between
            two changes of the scores (100,000).
        shuffles: How often neg_clip_loss cuts the pool into other batches.
        clusters: The most clusters of density.
        penalty: What a draw of sample takes from the score over the temperature.
        seed: Seed of the random choices.
    """

    method: Method = threshold("noun_phrases")  # noqa: RUF009
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
    entries: str | None = None
    tail: float | None = threshold(None)
    norm: Literal["max", "l2", "pool"] = threshold("max")
    temperature: float | None = threshold(None)
    batch_size: int | None = threshold(None)
    shuffles: int = threshold(5)
    clusters: int = threshold(500)
    penalty: float = threshold(0.15)
    seed: int = threshold(0)

    def __post_init__(self) -> None:
        counts = ("min_frequency", "max_per_phrase", "number", "batch_size", "shuffles", "clusters")
        for name in counts:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"select.{name} must be at least 1, got {value}")
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(f"select.temperature must be above 0, got {self.temperature}")
        if self.penalty < 0:
            raise ValueError(f"select.penalty must be at least 0, got {self.penalty}")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ValueError(
                f"select.fraction must be above 0 and at most 1, got {self.fraction}; to give a "
                "number of rows, set select.number"
            )
        if self.tail is not None and not 0 < self.tail < 1:
            raise ValueError(
                f"select.tail must be a share between 0 and 1, got {self.tail}; MetaCLIP 2's is "
                "about 0.06"
            )
        is_share, is_scored = self.method not in BY_PHRASE, self.method in SCORED
        if (self.fraction is not None) + (self.number is not None) != is_share:
            takes = "needs one of" if is_share else "takes none of"
            raise ValueError(
                f"select.method: {self.method} {takes} select.fraction and select.number"
            )
        if is_scored and self.score is None:
            raise ValueError("select.score must name the column to rank by, such as itm_web")
        if self.score is not None and not is_scored:
            raise ValueError(
                f"select.score is for the methods {' and '.join(SCORED)}; remove it, or change "
                f"select.method, which is {self.method}"
            )
        for name, methods in OF_METHODS.items():
            is_set = getattr(self, name) != type(self).__dataclass_fields__[name].default
            if is_set and self.method not in methods:
                raise ValueError(
                    f"select.{name} is for {', '.join(methods)}; remove it, or change "
                    f"select.method, which is {self.method}"
                )
        if not self.model:
            raise ValueError('select.model must name a spaCy pipeline, such as "en_core_web_sm"')

    @property
    def ranked_by(self) -> str | None:
        """The column of numbers that the method ranks by, if it is one of an earlier stage."""
        if self.method == "target":
            return {"max": "target_cosine", "l2": "target_norm"}.get(self.norm)
        return self.score

    @property
    def reads(self) -> tuple[str, ...]:
        """The column to rank by, and the synthetic captions if their phrases count."""
        synthetic = ("synthetic",) if self.method in BY_PHRASE and self.captions != "web" else ()
        return synthetic if self.ranked_by is None else (*synthetic, self.ranked_by)

    @property
    def options(self) -> dict[str, Any]:
        """The fields of the method that are set, as `models.embedding.selection` takes them."""
        own = [name for name, methods in OF_METHODS.items() if self.method in methods]
        return {name: value for name in own if (value := getattr(self, name)) is not None}

    @property
    def pairs_of_batch(self) -> int:
        """The most pairs of a batch of neg_clip_loss."""
        return BATCH_SIZE if self.batch_size is None else self.batch_size

    @property
    def pooled(self) -> tuple[str, ...]:
        """The embeddings that the method compares within the pool."""
        if self.method == "neg_clip_loss":
            return ("image_embedding", "text_embedding")
        is_compared = self.method == "density" or (self.method == "target" and self.norm == "pool")
        return ("image_embedding",) if is_compared else ()

    def check(self, columns: pa.Schema) -> None:
        """Check that what the method takes of earlier stages exists."""
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
        if self.method in EMBEDDED and "image_embedding" not in columns.names:
            raise ValueError(f"select.method: {self.method} needs the stage embed before select")
        if self.method == "target" and self.ranked_by not in (None, *columns.names):
            raise ValueError(
                "select.method: target needs images in embed.target, or select.norm: pool"
            )
        if self.method == "neg_clip_loss" and "text_embedding" not in columns.names:
            raise ValueError("select.method: neg_clip_loss needs embed.texts")

    def settings(self) -> dict[str, Any]:
        """Return every field that a method without embeddings had, and the others that are set."""
        fields = super().settings()
        for name in OF_METHODS:
            if fields[name] == type(self).__dataclass_fields__[name].default:
                del fields[name]  # as before there was this field
        return fields

    def measurement(self) -> dict[str, Any]:
        """Return the fields that change the phrases or the score, and the pipeline's revision.

        Raises:
            FileNotFoundError: The method needs phrases and the spaCy pipeline is not installed, or
                there is no file of entries.
        """
        if self.entries is not None:
            try:
                with open(self.entries, "rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()[:16]
            except OSError as error:
                raise FileNotFoundError(
                    f"select.entries: {self.entries}: {error.strerror}; name a text file with a "
                    "phrase a line"
                ) from None
            return {"captions": self.captions, "entries": content}
        if self.method in BY_PHRASE:
            fields = {name: getattr(self, name) for name in ("captions", "model", "phrase")}
            return {**fields, "revision": revision(self.model)}
        return {} if self.ranked_by is None else {"score": self.ranked_by}


def _is_numeric(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.ListType):
        kind = kind.value_type
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)
