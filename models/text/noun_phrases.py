"""Extracts noun phrases with spaCy."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from spacy.tokens import Doc

__all__ = ["NounPhrases", "PhraseForm", "revision"]

PhraseForm = Literal["raw", "lower", "no_determiner", "lemma"]

# Noun chunks need the parse and the parts of speech, which the attribute ruler derives from tags.
UNUSED = (
    "ner",
    "beam_ner",
    "entity_linker",
    "entity_ruler",
    "span_ruler",
    "span_finder",
    "spancat",
    "spancat_singlelabel",
    "textcat",
    "textcat_multilabel",
)
LEMMATIZERS = ("lemmatizer", "trainable_lemmatizer")

MAX_CHARS = 10_000
"""Maximum characters read of a caption; the memory of a parse grows with its length."""


class NounPhrases:
    """Extracts the noun phrases of captions, spaCy's `doc.noun_chunks`.

    Args:
        model: An installed spaCy pipeline, or a folder with one.
        phrase: raw, as written; lower, in lower case; no_determiner, in lower case without leading
            determiners ("The old bridges" becomes "old bridges"); lemma, as no_determiner, with
            each word in its dictionary form ("old bridge").
        batch_size: Captions per batch.

    Raises:
        FileNotFoundError: The pipeline does not exist.
        ValueError: `phrase` is lemma and the pipeline has no lemmatizer.
    """

    def __init__(
        self,
        model: str = "en_core_web_sm",
        phrase: PhraseForm = "lower",
        batch_size: int = 128,
    ) -> None:
        import spacy

        unused = UNUSED if phrase == "lemma" else (*UNUSED, *LEMMATIZERS)
        try:
            self.nlp = spacy.load(model, exclude=list(unused))
        except OSError as error:
            raise _missing(model) from error
        if phrase == "lemma" and not any(
            "token.lemma" in self.nlp.get_pipe_meta(name).assigns for name in self.nlp.pipe_names
        ):
            raise ValueError(
                f"select.phrase: the spaCy pipeline {model!r} has no lemmatizer; choose "
                "no_determiner, or another select.model"
            )
        _use_numpy(self.nlp)
        self.phrase = phrase
        self.batch_size = batch_size

    def __call__(self, captions: Sequence[str]) -> list[list[str]]:
        """Return the distinct noun phrases of each caption, in order.

        Only the first 10,000 characters of a caption are read. Equal captions are parsed once.

        Raises:
            ValueError: The pipeline does not parse dependencies.
        """
        distinct = list(dict.fromkeys(caption[:MAX_CHARS] for caption in captions))
        # Frees the words of these captions from spaCy's vocabulary afterwards.
        with self.nlp.memory_zone():
            docs = self.nlp.pipe(distinct, batch_size=self.batch_size)
            phrases = {text: self._phrases(doc) for text, doc in zip(distinct, docs, strict=True)}
        return [phrases[caption[:MAX_CHARS]] for caption in captions]

    def _phrases(self, doc: Doc) -> list[str]:
        phrases: dict[str, None] = {}
        strip = self.phrase in ("no_determiner", "lemma")
        for chunk in doc.noun_chunks:
            start = chunk.start
            while strip and start < chunk.end and doc[start].pos_ == "DET":
                start += 1
            words = doc[start : chunk.end]
            text = words.lemma_ if self.phrase == "lemma" else words.text
            text = " ".join(text.split())
            if text:
                phrases[text if self.phrase == "raw" else text.lower()] = None
        return list(phrases)


def _use_numpy(nlp: Any) -> None:
    """Make the layers multiply matrices with numpy, whose BLAS is about three times faster."""
    from thinc.api import Model, NumpyOps

    ops = NumpyOps(use_blis=False)
    for _, pipe in nlp.pipeline:
        if isinstance(model := getattr(pipe, "model", None), Model):
            for layer in model.walk():
                if type(layer.ops) is NumpyOps:
                    layer.ops = ops


@functools.cache
def revision(model: str) -> str:
    """Identify the weights of a spaCy pipeline.

    Returns:
        For a folder, the SHA-256 of its files and their names; for a package, its version.

    Raises:
        FileNotFoundError: The pipeline does not exist.
    """
    folder = Path(model)
    if folder.is_dir():
        digest = hashlib.sha256()
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            digest.update(
                f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode()
            )
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]
    try:
        return importlib.metadata.version(model)
    except importlib.metadata.PackageNotFoundError:
        raise _missing(model) from None


def _missing(model: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"select.model: no spaCy pipeline {model!r}; install it with "
        f"`python -m spacy download {model}`, or give a folder with one"
    )
