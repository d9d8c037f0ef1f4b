"""English phrases with their parse: words, Penn Treebank tags and dependencies."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["HEAD", "Phrase", "noun_phrase", "phrase", "prepositional", "word"]

HEAD = "ROOT"
"""The label of the part that the other parts of a phrase depend on."""

MODIFIERS = {
    "CD": "nummod",
    "DT": "det",
    "JJ": "amod",
    "NN": "compound",
    "NNP": "compound",
    "PRP$": "poss",
}
"""Dependency label of a word before a noun, by its Penn tag."""


@dataclass(frozen=True)
class Phrase:
    """A run of words with its dependency tree.

    Attributes:
        words: n words as written.
        tags: n Penn Treebank tags.
        heads: n positions of the heads of words; the root's own position for the root.
        labels: n ClearNLP dependency labels, as in spaCy's English pipelines; ROOT for the root.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]
    heads: tuple[int, ...]
    labels: tuple[str, ...]

    @property
    def root(self) -> int:
        """The position of the root word."""
        return self.labels.index(HEAD)

    @property
    def text(self) -> str:
        """The words, joined by single spaces."""
        return " ".join(self.words)


def word(text: str, tag: str) -> Phrase:
    """Make a phrase of one word."""
    return Phrase((text,), (tag,), (0,), (HEAD,))


def phrase(*parts: tuple[str, Phrase]) -> Phrase:
    """Concatenate phrases, whose roots become dependents of the root of one of them.

    Args:
        parts: (label, phrase) in word order; exactly one has the label `HEAD`.
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
    """Make a noun phrase of modifiers followed by a noun, each (text, tag)."""
    *modifiers, noun = words
    return phrase(
        *((MODIFIERS[tag], word(text, tag)) for text, tag in modifiers), (HEAD, word(*noun))
    )


def prepositional(preposition: str, thing: Phrase) -> Phrase:
    """Make a prepositional phrase: "on the beach", "in front of a wall".

    Args:
        preposition: One or several words; the object depends on the last one.
        thing: The object.
    """
    first, *rest = preposition.split()
    if not rest:
        return phrase((HEAD, word(first, "IN")), ("pobj", thing))
    *determiners, noun, last = rest
    place = noun_phrase(*((w, "DT") for w in determiners), (noun, "NN"))
    tail = ("prep", phrase((HEAD, word(last, "IN")), ("pobj", thing)))
    return phrase((HEAD, word(first, "IN")), ("pobj", phrase((HEAD, place), tail)))
