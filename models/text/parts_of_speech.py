"""Parts of speech, by spaCy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

__all__ = ["PartsOfSpeech"]

# Parts of speech need a tagger or a morphologizer and what they rest on, nothing else.
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
    """The universal parts of speech (UPOS: NOUN, DET, ADP, ...) that occur in captions.

    Args:
        model: An installed spaCy pipeline, or a folder that holds one.
        batch_size: Captions that go through the pipeline at once.

    Raises:
        OSError: There is no such pipeline.
        ValueError: The pipeline tells no parts of speech.
    """

    max_characters = 1000
    """Enough to hold each part that a caption has; what follows is not read."""

    def __init__(self, model: str = "en_core_web_sm", batch_size: int = 256) -> None:
        import spacy

        self.nlp = spacy.load(model, exclude=list(UNUSED))
        self.batch_size = batch_size
        if not any(token.pos for token in self.nlp("the dog is on a table")):
            raise ValueError(
                f"the spaCy pipeline {model!r} tells no parts of speech; take one with a tagger, "
                "such as en_core_web_sm"
            )

    def __call__(self, captions: Sequence[str]) -> Iterator[frozenset[str]]:
        """The parts of speech of each caption, in order."""
        texts = (caption[: self.max_characters] for caption in captions)
        for doc in self.nlp.pipe(texts, batch_size=self.batch_size):
            yield frozenset(token.pos_ for token in doc)
