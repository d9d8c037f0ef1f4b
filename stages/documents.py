"""Interleaved documents: texts and images in the order of a web page, as in Flamingo's M3W.

The images of documents are ordinary rows of the pool without a caption. This module parses
documents, judges their texts, and cuts them into sequences (arXiv:2204.14198, A.1.1).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from models.random import hash_of
from models.text.captions import LanguageDetector
from models.text.documents import ProseMeasures, measure_prose
from models.weights import folder_of
from stages.base import StageConfig

__all__ = ["EOC", "IMAGE", "Document", "Documents", "DocumentsConfig", "Excerpt", "parse"]

IMAGE = "<image>"
EOC = "<EOC>"

Part = tuple[Literal["text", "image"], str]

SHARES = (
    "min_language_score",
    "max_bullets",
    "max_ellipses",
    "min_alphabetic",
    "max_duplicate_lines",
    "max_duplicate_line_characters",
    "max_top_ngrams",
    "max_duplicate_ngrams",
)


@dataclass(frozen=True)
class Document:
    """The texts and image URLs of a web page, in order.

    Attributes:
        uid: 128-bit hash of the URL and the parts, as 32 hex characters.
        url: URL of the page; empty if unknown.
        parts: Tuples ("text", text) and ("image", URL).
    """

    uid: str
    url: str
    parts: tuple[Part, ...]

    @property
    def images(self) -> list[str]:
        """The URLs of the images, in order."""
        return [value for kind, value in self.parts if kind == "image"]

    @property
    def texts(self) -> list[str]:
        """The texts, in order."""
        return [value for kind, value in self.parts if kind == "text"]


def parse(record: Mapping[str, Any]) -> Document | None:
    """Parse a record of MMC4 or OBELICS; returns None if it is neither.

    MMC4 (arXiv:2304.06939) has `text_list`, and `image_info` with a `raw_url` and the index of the
    matched text; the image is put before that text. OBELICS (arXiv:2306.16527) has `texts` and
    `images` of equal length, one of which is null at each position.
    """
    parts: list[Part] = []
    texts, images = record.get("text_list"), record.get("image_info")
    if isinstance(texts, list) and isinstance(images, list):
        before: dict[int, list[str]] = {}
        for image in images:
            if isinstance(image, dict) and isinstance(url := image.get("raw_url"), str):
                index = image.get("matched_text_index")
                before.setdefault(index if isinstance(index, int) else 0, []).append(url)
        for index, text in enumerate(texts):
            parts += [("image", url) for url in before.pop(index, [])]
            parts += [("text", text)] if isinstance(text, str) else []
        parts += [("image", url) for _, urls in sorted(before.items()) for url in urls]
    elif isinstance(texts := record.get("texts"), list) and isinstance(
        images := record.get("images"), list
    ):
        if len(texts) != len(images):
            return None
        for text, image in zip(texts, images, strict=True):
            parts += [("image", image)] if isinstance(image, str) and image else []
            parts += [("text", text)] if isinstance(text, str) and text else []
    else:
        return None
    url = record.get("url")
    url = url if isinstance(url, str) else ""
    content = json.dumps([url, parts]).encode()
    return Document(hashlib.blake2b(content, digest_size=16).hexdigest(), url, tuple(parts))


@dataclass(frozen=True, kw_only=True)
class DocumentsConfig(StageConfig):
    """The rules that documents must pass, and the length of sequences.

    The order of the rules and the sequence lengths are Flamingo's. For texts it refers to
    MassiveText, which gives the limits (arXiv:2112.11446, A.1 and table A1).

    Attributes:
        tokenizer: Tokenizer that counts tokens: a folder written by `save_pretrained`, or a name on
            the hub. The paper's own is not public.
        max_tokens: Maximum length of a sequence, including `<image>` and `<EOC>`.
        max_images: Maximum number of images in a sequence; further ones are dropped.
        languages: Allowed languages, as fastText's codes; empty for any.
        min_language_score: Minimum total probability of the allowed languages.
        min_words: Minimum number of words.
        max_words: Maximum number of words.
        min_word_length: Minimum mean length of words, in characters.
        max_word_length: Maximum mean length of words, in characters.
        max_symbols: Maximum number of hash signs, or of ellipses, per word.
        max_bullets: Maximum share of texts that begin with a bullet.
        max_ellipses: Maximum share of texts that end with an ellipsis.
        min_alphabetic: Minimum share of words that contain a letter.
        min_stop_words: How many of eight English stop words must occur.
        max_duplicate_lines: Maximum share of repeated texts.
        max_duplicate_line_characters: Maximum share of characters in repeated texts.
        max_top_ngrams: Maximum share of characters in the most frequent 2-, 3- and 4-gram.
        max_duplicate_ngrams: Maximum share of characters in repeated 5- to 10-grams.
        shard_size: Documents per shard of the export.
        seed: Seed of the choice of subsequences.
    """

    tokenizer: str = "bert-base-uncased"
    max_tokens: int = 256
    max_images: int = 5
    languages: tuple[str, ...] = ("en",)
    min_language_score: float = 0.5
    min_words: int = 50
    max_words: int = 100_000
    min_word_length: float = 3.0
    max_word_length: float = 10.0
    max_symbols: float = 0.1
    max_bullets: float = 0.9
    max_ellipses: float = 0.3
    min_alphabetic: float = 0.8
    min_stop_words: int = 2
    max_duplicate_lines: float = 0.3
    max_duplicate_line_characters: float = 0.2
    max_top_ngrams: tuple[float, float, float] = (0.20, 0.18, 0.16)
    max_duplicate_ngrams: tuple[float, float, float, float, float, float] = (
        *(0.15, 0.14, 0.13),
        *(0.12, 0.11, 0.10),
    )
    shard_size: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_tokens", "max_images", "shard_size"):
            if getattr(self, name) < (4 if name == "max_tokens" else 1):
                raise ValueError(
                    f"export.documents.{name} must be at least "
                    f"{4 if name == 'max_tokens' else 1}, got {getattr(self, name)}"
                )
        for name in ("min_words", "min_word_length", "max_symbols", "min_stop_words", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"export.documents.{name} must be at least 0, got {getattr(self, name)}"
                )
        for name in ("words", "word_length"):
            minimum, maximum = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if maximum < minimum:
                raise ValueError(
                    f"export.documents.max_{name} must be at least min_{name}, {minimum}, got "
                    f"{maximum}"
                )
        for name in SHARES:
            value = getattr(self, name)
            if not all(
                0 <= share <= 1 for share in (value if isinstance(value, tuple) else (value,))
            ):
                raise ValueError(f"export.documents.{name} must be from 0 to 1, got {value}")


@dataclass(frozen=True)
class Excerpt:
    """The sequence that is exported for a document.

    Attributes:
        text: The texts, with `<image>` for each image, and `<EOC>` before every image and at the
            end.
        images: uids of the pool rows of the images, one for each `<image>`.
        tokens: Length in tokens; each tag counts as one.
    """

    text: str
    images: tuple[str, ...]
    tokens: int


class Documents:
    """Judges documents and cuts them into sequences.

    Args:
        config: The rules and lengths.
    """

    reasons: ClassVar[Mapping[str, str]] = {
        "unreadable": "The line is not a document in the format of MMC4 or OBELICS.",
        "not_english": "The texts are in none of the allowed languages.",
        "no_image": "The document has no image.",
        "too_few_words": "The texts have fewer words than min_words.",
        "too_many_words": "The texts have more words than max_words.",
        "word_length": "The mean word length is outside min_word_length and max_word_length.",
        "symbols": "There are more hash signs or ellipses per word than max_symbols.",
        "bullets": "The share of texts that begin with a bullet is above max_bullets.",
        "ellipses": "The share of texts that end with an ellipsis is above max_ellipses.",
        "alphabetic": "The share of words with a letter is below min_alphabetic.",
        "stop_words": "Fewer English stop words occur than min_stop_words.",
        "repetitive": "Texts or phrases are repeated too often.",
        "no_image_left": "None of its images passed the image rules.",
    }
    """The reasons in the order of the paper; the first that applies is the verdict."""

    def __init__(self, config: DocumentsConfig) -> None:
        from transformers import AutoTokenizer

        self.config = config
        self._detect = LanguageDetector(config.languages) if config.languages else None
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(
                folder_of(config.tokenizer), use_fast=True, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise ValueError(
                f"export.documents.tokenizer: cannot load {config.tokenizer!r}: {error}. Give a "
                "folder with a tokenizer, or a name on the hub"
            ) from error

    def judge(self, document: Document | None, live: Callable[[str], str | None]) -> str | None:
        """Return the reason to reject a document, or None.

        Args:
            document: The document, or None for a line that is not a document.
            live: Returns the uid of the pool row of an image URL, or None if the image was
                rejected.
        """
        if document is None:
            return "unreadable"
        limits = self.config
        if self._detect is not None:
            _, score = self._detect(" ".join(document.texts))
            if score < limits.min_language_score:
                return "not_english"
        if not document.images:
            return "no_image"
        reason = self._prose(measure_prose(document.texts))
        if reason is None and not any(live(url) for url in document.images):
            return "no_image_left"
        return reason

    def _prose(self, measures: ProseMeasures) -> str | None:
        limits = self.config
        length = measures.word_length
        rules = {
            "too_few_words": measures.words < limits.min_words,
            "too_many_words": measures.words > limits.max_words,
            "word_length": not limits.min_word_length <= length <= limits.max_word_length,
            "symbols": measures.symbols > limits.max_symbols,
            "bullets": measures.bullets > limits.max_bullets,
            "ellipses": measures.ellipses > limits.max_ellipses,
            "alphabetic": measures.alphabetic < limits.min_alphabetic,
            "stop_words": measures.stop_words < limits.min_stop_words,
            "repetitive": measures.duplicate_lines > limits.max_duplicate_lines
            or measures.duplicate_line_characters > limits.max_duplicate_line_characters
            or _exceed(measures.top_ngrams, limits.max_top_ngrams)
            or _exceed(measures.duplicate_ngrams, limits.max_duplicate_ngrams),
        }
        return next((name for name, fires in rules.items() if fires), None)

    def cut(self, document: Document, live: Callable[[str], str | None]) -> Excerpt:
        """Return a subsequence of at most `max_tokens` tokens and `max_images` images.

        Rejected images are left out, with their tags. A longer document is cut to a random window,
        uniform among those that contain an image and determined by the seed and the uid. The paper
        draws a new window, with or without images, whenever a page is read; here the window is
        part of the data.
        """
        units: list[tuple[str, str | None]] = []  # (token, None) or (tag, uid of the image)
        for kind, value in document.parts:
            if kind == "text":
                units += [(token, None) for token in self._tokens(value)]
            elif (uid := live(value)) is not None:
                units += [(EOC, None), (IMAGE, uid)]
        units.append((EOC, None))
        size = self.config.max_tokens
        if len(units) > size:
            start = self._start(document.uid, [uid is not None for _, uid in units])
            units = units[start : start + size]
        kept: list[tuple[str, str | None]] = []
        images: list[str] = []
        for text, uid in units:
            if uid is not None:
                if len(images) == self.config.max_images:
                    kept = kept[:-1] if kept and kept[-1][0] == EOC else kept
                    continue
                images.append(uid)
            kept.append((text, uid))
        return Excerpt("".join(text for text, _ in kept).strip(), tuple(images), len(kept))

    def _tokens(self, text: str) -> list[str]:
        """Split a text into tokens; joined, they are the text and a space after it."""
        text = " ".join(text.split()).replace(IMAGE, " ").replace(EOC, " ")
        offsets = self._tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )["offset_mapping"]
        ends = [*(start for start, _ in offsets[1:]), len(text)] if offsets else []
        cuts = [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        return [*cuts[:-1], f"{cuts[-1]} "] if cuts else []

    def _start(self, uid: str, is_image: Sequence[bool]) -> int:
        """Choose the start of the window, which must contain an image but not begin with one."""
        size, last_start = self.config.max_tokens, len(is_image) - self.config.max_tokens
        num_images = np.concatenate([[0], np.cumsum(is_image)])
        starts = np.arange(last_start + 1)
        candidates = starts[
            (num_images[starts + size] > num_images[starts]) & ~np.array(is_image)[starts]
        ]
        return int(candidates[hash_of(f"{self.config.seed} {uid}") % len(candidates)])


def _exceed(shares: Sequence[float], limits: Sequence[float]) -> bool:
    return any(share > limit for share, limit in zip(shares, limits, strict=True))
