"""Phrases of English that carry their own parse: words, Penn tags and dependency arcs."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["HEAD", "Phrase", "noun_phrase", "phrase", "prepositional", "word"]

HEAD = "ROOT"
"""The label of the part of a phrase that the other parts hang on."""

MODIFIERS = {
    "CD": "nummod",
    "DT": "det",
    "JJ": "amod",
    "NN": "compound",
    "NNP": "compound",
    "PRP$": "poss",
}
"""How a word before a noun hangs on it, by its Penn tag."""


@dataclass(frozen=True)
class Phrase:
    """A run of words and the tree that joins them.

    Attributes:
        words: n words as they are written.
        tags: n Penn Treebank tags.
        heads: n positions in the phrase; a word's head, and its own position for the root.
        labels: n ClearNLP dependency labels, as spaCy's English pipelines use; ROOT for the root.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]
    heads: tuple[int, ...]
    labels: tuple[str, ...]

    @property
    def root(self) -> int:
        """The position of the word that all others hang on."""
        return self.labels.index(HEAD)

    @property
    def text(self) -> str:
        """The words, joined by single spaces."""
        return " ".join(self.words)


def word(text: str, tag: str) -> Phrase:
    """A phrase of one word."""
    return Phrase((text,), (tag,), (0,), (HEAD,))


def phrase(*parts: tuple[str, Phrase]) -> Phrase:
    """Put phrases side by side and hang the roots of all on the root of one.

    Args:
        parts: (label, phrase) in the order of speech; the label of exactly one is `HEAD`.
    """
    offsets = [sum(len(p.words) for _, p in parts[:i]) for i in range(len(parts))]
    (root,) = (
        offset + part.root
        for offset, (label, part) in zip(offsets, parts, strict=True)
        if label == HEAD
    )
    heads: list[int] = []
    labels: list[str] = []
    for offset, (label, part) in zip(offsets, parts, strict=True):
        heads += [offset + head for head in part.heads]
        labels += part.labels
        heads[offset + part.root] = root
        labels[offset + part.root] = label
    return Phrase(
        tuple(w for _, part in parts for w in part.words),
        tuple(t for _, part in parts for t in part.tags),
        tuple(heads),
        tuple(labels),
    )


def noun_phrase(*words: tuple[str, str]) -> Phrase:
    """Modifiers and, last, a noun: each (text, tag); labels follow from the tags."""
    *modifiers, noun = words
    return phrase(
        *((MODIFIERS[tag], word(text, tag)) for text, tag in modifiers), (HEAD, word(*noun))
    )


def prepositional(preposition: str, thing: Phrase) -> Phrase:
    """A preposition and its object: "on the beach", "in front of a wall".

    Args:
        preposition: One word, or several of which the last governs the object.
        thing: The object.
    """
    first, *rest = preposition.split()
    if not rest:
        return phrase((HEAD, word(first, "IN")), ("pobj", thing))
    *determiners, noun, last = rest
    place = noun_phrase(*((w, "DT") for w in determiners), (noun, "NN"))
    tail = ("prep", phrase((HEAD, word(last, "IN")), ("pobj", thing)))
    return phrase((HEAD, word(first, "IN")), ("pobj", phrase((HEAD, place), tail)))
