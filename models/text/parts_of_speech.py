"""Finds the parts of speech in captions with spaCy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spacy.tokens import Doc

__all__ = ["PartsOfSpeech"]

# Only a tagger or a morphologizer and the layers below it are needed.
UNUSED = (
    "parser",
    "senter",
    "ner",
    "entity_linker",
    "entity_ruler",
    "lemmatizer",
    "textcat",
    "textcat_multilabel",
)


class PartsOfSpeech:
    """Finds the universal parts of speech (UPOS: NOUN, DET, ADP, ...) that occur in captions.

    Args:
        model: An installed spaCy pipeline, or a folder with one.
        batch_size: Captions per batch.

    Raises:
        OSError: The pipeline does not exist.
        ValueError: The pipeline does not tag parts of speech.
    """

    max_characters = 1000
    """Maximum characters read of a caption."""

    def __init__(self, model: str = "en_core_web_sm", batch_size: int = 256) -> None:
        import spacy

        self.nlp = spacy.load(model, exclude=list(UNUSED))
        self.batch_size = batch_size
        if not any(token.pos for token in self.nlp("the dog is on a table")):
            raise ValueError(
                f"the spaCy pipeline {model!r} does not tag parts of speech; use one with a "
                "tagger, such as en_core_web_sm"
            )

    def __call__(self, captions: Sequence[str]) -> Iterator[frozenset[str]]:
        """Yield the set of parts of speech of each caption."""
        for doc in self._docs(captions):
            yield frozenset(token.pos_ for token in doc)

    def tags(self, captions: Sequence[str]) -> Iterator[list[tuple[str, str]]]:
        """The words of each caption, in order, with their tags (Penn: NN, NNS, JJ, ...).

        A pipeline without tags of its own gives the parts of speech instead.
        """
        for doc in self._docs(captions):
            yield [(token.text, token.tag_ or token.pos_) for token in doc]

    def _docs(self, captions: Sequence[str]) -> Iterator[Doc]:
        texts = (caption[: self.max_characters] for caption in captions)
        yield from self.nlp.pipe(texts, batch_size=self.batch_size)
