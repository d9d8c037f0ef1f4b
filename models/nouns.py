"""Noun phrases, by spaCy."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from spacy.tokens import Doc

__all__ = ["NounPhrases", "PhraseForm", "revision"]

PhraseForm = Literal["raw", "lower", "no_determiner"]

# Noun chunks need the parse and the parts of speech, nothing else.
UNUSED = ("ner", "entity_linker", "entity_ruler", "lemmatizer", "textcat", "textcat_multilabel")


class NounPhrases:
    """The noun phrases of captions: spaCy's `doc.noun_chunks`.

    Args:
        model: An installed spaCy pipeline, or a folder that holds one.
        phrase: raw, as written; lower, in lower case; no_determiner, in lower case without leading
            determiners ("the old bridge" is "old bridge").
        batch_size: Captions that go through the pipeline at once.

    Raises:
        FileNotFoundError: There is no such pipeline.
    """

    def __init__(
        self,
        model: str = "en_core_web_sm",
        phrase: PhraseForm = "lower",
        batch_size: int = 256,
    ) -> None:
        import spacy

        try:
            self.nlp = spacy.load(model, exclude=list(UNUSED))
        except OSError as error:
            raise _missing(model) from error
        self.phrase = phrase
        self.batch_size = batch_size

    def __call__(self, captions: Sequence[str]) -> list[list[str]]:
        """The distinct noun phrases of each caption, in order; each distinct caption parsed once.

        Raises:
            ValueError: The pipeline does not parse dependencies.
        """
        distinct = list(dict.fromkeys(captions))
        docs = self.nlp.pipe(distinct, batch_size=self.batch_size)
        phrases = {text: self._phrases(doc) for text, doc in zip(distinct, docs, strict=True)}
        return [phrases[caption] for caption in captions]

    def _phrases(self, doc: Doc) -> list[str]:
        found: dict[str, None] = {}
        for chunk in doc.noun_chunks:
            start = chunk.start
            while self.phrase == "no_determiner" and start < chunk.end and doc[start].pos_ == "DET":
                start += 1
            text = " ".join(doc[start : chunk.end].text.split())
            if text:
                found[text if self.phrase == "raw" else text.lower()] = None
        return list(found)


@functools.cache
def revision(model: str) -> str:
    """What identifies the weights of a spaCy pipeline.

    The SHA-256 of the files of a folder, their names included; the version of an installed
    package.

    Raises:
        FileNotFoundError: There is no such pipeline.
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
        f"`python -m spacy download {model}`, or name a folder that holds one"
    )
