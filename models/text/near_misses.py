"""Makes near misses: texts that are nearly true, with one word changed or two swapped.

As negatives, they teach a matcher what texts of other images cannot. NegCLIP (ARO,
arXiv:2210.01936) swaps words, and Doubly Right (arXiv:2306.08832) changes one.
"""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

__all__ = ["KINDS", "Kind", "NearMiss", "NearMisses", "Vocabulary", "words_of"]

Kind = Literal["noun", "number", "colour", "size", "relation", "order"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""The kinds of change: one word of this kind is replaced, or for `order` two words are swapped."""

WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
COLOURS = frozenset(
    [
        *("red", "orange", "yellow", "green", "blue", "purple", "violet", "pink", "brown"),
        *("black", "white", "grey", "gray", "golden", "silver", "beige", "turquoise"),
    ]
)
SAME_COLOUR = (frozenset({"grey", "gray", "silver"}), frozenset({"purple", "violet"}))
SIZES = (
    frozenset({"small", "little", "tiny", "miniature"}),
    frozenset({"big", "large", "huge", "giant", "enormous"}),
)
LENGTHS = (frozenset({"short"}), frozenset({"long", "tall"}))
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
RELATIONS = (
    (frozenset({"left"}), frozenset({"right"})),
    (frozenset({"above", "over"}), frozenset({"below", "under", "beneath", "underneath"})),
    (frozenset({"inside"}), frozenset({"outside"})),
    (frozenset({"top"}), frozenset({"bottom"})),
)
SIDES = frozenset({"left", "right", "top", "bottom"})
"""Words that are relations only before "of" or "side": "right" also means correct."""
SYMMETRIC = frozenset({"and", "or", "with", "beside", "near", "by", "&"})
"""Words between two things whose order does not matter."""
NOUNS = frozenset({"NN", "NNS", "NOUN"})
SHARE = 0.1
"""A tag of a word counts if at least this share of its uses has the tag."""
FEW = 2.0
"""With fewer expected images of two words together, their number says nothing."""
LEAST_RIVAL = 0.8
"""Two words are not alternatives if they occur together more often than this share of chance."""


class NearMiss(NamedTuple):
    """A text that is nearly true, and the kind of its change."""

    kind: str
    text: str


@dataclass(frozen=True)
class _Token:
    word: str
    start: int
    end: int


@dataclass(frozen=True)
class _Edit:
    """A change of a text: spans with their replacements, and the weight of the change."""

    spans: tuple[tuple[int, int, str], ...]
    weight: float = 1.0


class Vocabulary:
    """The words of training texts: parts of speech, neighbours, and words of the same image.

    Args:
        captions: The texts of each image.
        tagger: A spaCy pipeline that tags parts of speech: a name or a folder.
    """

    def __init__(self, captions: Iterable[Sequence[str]], tagger: str) -> None:
        from models.text.parts_of_speech import PartsOfSpeech

        tags: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.after: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.before: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.images: Counter[str] = Counter()
        self.together: Counter[tuple[str, str]] = Counter()
        self.num_images = 0
        texts: list[str] = []
        for own in captions:
            self.num_images += 1
            texts += own
            words = sorted(words_of(own))
            self.images.update(words)
            self.together.update(
                (first, second) for i, first in enumerate(words) for second in words[i + 1 :]
            )
        for text, tagged in zip(texts, PartsOfSpeech(tagger).tags(texts), strict=True):
            for word, tag in tagged:
                tags[word.lower()][tag] += 1
            words = ["", *(token.word for token in _tokens(text)), ""]
            for first, second in itertools.pairwise(words):
                self.after[first][second] += 1
                self.before[second][first] += 1
        self.tags = {word: counts.most_common(1)[0][0] for word, counts in tags.items()}
        self.all_tags = {
            word: frozenset(tag for tag, n in counts.items() if n >= SHARE * counts.total())
            for word, counts in tags.items()
        }

    def are_rivals(self, first: str, second: str) -> bool:
        """Whether two words are seldom true of the same image.

        This is decided by how often both occur in the texts of an image. Synonyms and unrelated
        words occur together at least as often as by chance.
        """
        expected = self.images[first] * self.images[second] / max(self.num_images, 1)
        if expected < FEW:
            return True
        pair = (first, second) if first < second else (second, first)
        return self.together[pair] <= LEAST_RIVAL * expected

    def between(self, before: Collection[str], after: str) -> Counter[str]:
        """The words that occur after one of the words `before`, and also before the word `after`.

        The count of each is the smaller of the two. "" stands for the beginning or end of a text.
        """
        first = sum((self.after[word] for word in before), Counter[str]())
        second = self.before[after]
        return first & second

    def plural_of(self, noun: str) -> str | None:
        """The plural of a noun; None if it is not in the texts."""
        forms = (f"{noun}s", f"{noun}es", f"{noun[:-1]}ies", noun)
        return next((form for form in forms if "NNS" in self.all_tags.get(form, ())), None)


class NearMisses:
    """Makes near misses of texts.

    Example:
        >>> make = NearMisses(Vocabulary([["a red ball", "a ball"], ["a blue kite"]], "tagger/"))
        >>> make("a red ball", random.Random(0))
        NearMiss(kind='colour', text='a blue ball')

    Args:
        vocabulary: The words to use.
        weights: How often each kind is drawn, relative to 1 for those without a weight.
    """

    def __init__(self, vocabulary: Vocabulary, weights: Mapping[Kind, float] | None = None) -> None:
        self.vocabulary = vocabulary
        self.weights = dict(weights or {})

    def __call__(
        self,
        text: str,
        rng: random.Random,
        *,
        known: Collection[str] = (),
        kind: str | None = None,
    ) -> NearMiss | None:
        """Make a near miss of a text; None if no word can be changed.

        Args:
            text: A true text.
            rng: Draws the kind, then the change.
            known: Words that are true of the image; they are not used as replacements.
            kind: The kind of change, of `KINDS`; any by default.
        """
        tokens = _tokens(text)
        edits_by_kind = {name: self._edits(name, tokens, frozenset(known)) for name in KINDS}
        kinds = [
            name
            for name in KINDS
            if edits_by_kind[name] and (self.weights.get(name, 1) if kind is None else name == kind)
        ]
        if not kinds:
            return None
        if self.weights and kind is None:
            [chosen] = rng.choices(kinds, [self.weights.get(name, 1) for name in kinds])
        else:
            chosen = rng.choice(kinds)
        edits = edits_by_kind[chosen]
        [edit] = rng.choices(edits, [edit.weight for edit in edits])
        return NearMiss(chosen, _with_articles(_replaced(text, edit.spans)))

    def _edits(self, kind: str, tokens: list[_Token], known: frozenset[str]) -> list[_Edit]:
        if kind == "order":
            return list(self._swaps(tokens))
        if kind == "number":
            return list(self._numbers(tokens))
        edits = []
        for index, token in enumerate(tokens):
            if kind == "noun":
                options = self._nouns(tokens, index)
            else:
                options = {word: 1.0 for word in _OPPOSITES[kind].get(token.word, ())}
                if kind == "relation" and not _is_position(tokens, index):
                    options = {}
            options = {
                word: weight
                for word, weight in options.items()
                if word in self.vocabulary.images and (kind == "relation" or word not in known)
            }
            total = sum(options.values())
            edits += [
                _Edit(((token.start, token.end, word),), weight / total)
                for word, weight in options.items()
            ]
        return edits

    def _nouns(self, tokens: list[_Token], index: int) -> dict[str, float]:
        """Other nouns, singular or plural alike, that occur between the same neighbours."""
        vocabulary, word = self.vocabulary, tokens[index].word
        if vocabulary.tags.get(word) not in NOUNS or word in _CLOSED:
            return {}
        tag = self._number_of(tokens, index)
        before = tokens[index - 1].word if index else ""
        before = {"an": "a"}.get(before, before)
        befores = ("a", "an") if before == "a" else (before,)
        after = tokens[index + 1].word if index + 1 < len(tokens) else ""
        return {
            other: float(count)
            for other, count in vocabulary.between(befores, after).items()
            if other != word
            and tag in vocabulary.all_tags.get(other, ())
            and other not in _CLOSED
            and vocabulary.are_rivals(word, other)
        }

    def _number_of(self, tokens: list[_Token], index: int) -> str:
        """The tag of a noun; its article or number decides between singular and plural."""
        tags = self.vocabulary.tags
        for token in reversed(tokens[:index]):
            if token.word in ("a", "an", "one"):
                return "NN" if tags[tokens[index].word] != "NOUN" else "NOUN"
            if token.word in NUMBERS:
                return "NNS" if tags[tokens[index].word] != "NOUN" else "NOUN"
            if tags.get(token.word, "") not in ("JJ", "ADJ"):
                break
        return tags[tokens[index].word]

    def _numbers(self, tokens: list[_Token]) -> Iterator[_Edit]:
        """Replace a number by another; or "a" by a number, with noun and verb in the plural."""
        words = [token.word for token in tokens]
        there = [word for word in NUMBERS[1:] if word in self.vocabulary.images]
        for index, token in enumerate(tokens):
            if token.word in there:
                others = [word for word in there if word != token.word]
                for word in others:
                    yield _Edit(((token.start, token.end, word),), 1 / len(others))
            elif token.word in ("a", "an") and there:
                head = self._head(words, index)
                plural = None if head is None else self.vocabulary.plural_of(words[head])
                if head is None or plural is None:
                    continue
                spans = [(tokens[head].start, tokens[head].end, plural)]
                for verb in (index - 1, head + 1):
                    if 0 <= verb < len(words) and words[verb] == "is":
                        spans.append((tokens[verb].start, tokens[verb].end, "are"))
                for word in there:
                    yield _Edit(((token.start, token.end, word), *spans), 1 / len(there))

    def _head(self, words: list[str], article: int) -> int | None:
        """The index of the singular noun of an article; only adjectives may stand between them."""
        tags = self.vocabulary.tags
        for index in range(article + 1, len(words)):
            if tags.get(words[index], "") in NOUNS:
                after = words[index + 1] if index + 1 < len(words) else ""
                return None if tags.get(after, "") in NOUNS else index
            if tags.get(words[index], "") not in ("JJ", "ADJ"):
                return None
        return None

    def _swaps(self, tokens: list[_Token]) -> Iterator[_Edit]:
        """Swap two nouns, colours, sizes or numbers, if this changes the meaning."""
        for first, one in enumerate(tokens):
            for second in range(first + 1, len(tokens)):
                other = tokens[second]
                if not self._can_swap(tokens, first, second):
                    continue
                between = {token.word for token in tokens[first + 1 : second]}
                if between & SYMMETRIC and not between & _ORDERING:
                    modifiers = [self._modifiers(tokens, index) for index in (first, second)]
                    if modifiers[0] == modifiers[1]:
                        continue
                elif not between & _ORDERING:
                    continue
                yield _Edit(((one.start, one.end, other.word), (other.start, other.end, one.word)))

    def _can_swap(self, tokens: list[_Token], first: int, second: int) -> bool:
        """Whether two words are of the same kind and differ in meaning."""
        one, other = tokens[first].word, tokens[second].word
        for kind in ("colour", "size"):
            if other in _OPPOSITES[kind].get(one, ()):
                return True
        if one in NUMBERS[1:] and other in NUMBERS[1:]:
            return one != other
        tags = self.vocabulary.tags
        return (
            one != other
            and tags.get(one) in NOUNS
            and tags.get(other) in NOUNS
            and self._number_of(tokens, first) == self._number_of(tokens, second)
            and not {one, other} & _CLOSED
            and self.vocabulary.are_rivals(one, other)
        )

    def _modifiers(self, tokens: list[_Token], index: int) -> tuple[str, ...]:
        """The other words of the noun phrase of a word: adjectives, number and noun."""
        tags = self.vocabulary.tags
        start = end = index
        while start and tags.get(tokens[start - 1].word, "") in _WITHIN:
            start -= 1
        while end + 1 < len(tokens) and tags.get(tokens[end].word, "") not in NOUNS:
            end += 1
        return tuple(tokens[i].word for i in range(start, end + 1) if i != index)


_OPPOSITES: dict[str, dict[str, tuple[str, ...]]] = {
    "colour": {
        word: tuple(
            sorted(
                other
                for other in COLOURS - {word}
                if not any({word, other} <= same for same in SAME_COLOUR)
            )
        )
        for word in COLOURS
    },
    "size": {
        word: tuple(sorted(other))
        for pair in (SIZES, LENGTHS)
        for own, other in (pair, pair[::-1])
        for word in own
    },
    "relation": {
        word: tuple(sorted(other))
        for pair in RELATIONS
        for own, other in (pair, pair[::-1])
        for word in own
    },
}
"""The replacements of the words of closed classes."""
_CLOSED = frozenset(word for words in _OPPOSITES.values() for word in words) | set(NUMBERS)
_ORDERING = frozenset(_OPPOSITES["relation"]) | {"on", "in", "behind", "front", "of"}
"""Words between two things whose order matters."""
_WITHIN = frozenset({"JJ", "ADJ", "CD", "NUM"})


def words_of(texts: Iterable[str]) -> frozenset[str]:
    """The words of texts, in lower case."""
    return frozenset(token.word for text in texts for token in _tokens(text))


def _tokens(text: str) -> list[_Token]:
    return [_Token(m[0].lower(), m.start(), m.end()) for m in WORD.finditer(text)]


def _is_position(tokens: list[_Token], index: int) -> bool:
    """Whether a word is a position, judged by its neighbours."""
    if tokens[index].word not in SIDES:
        return True
    following = tokens[index + 1].word if index + 1 < len(tokens) else ""
    return following in ("of", "side", "hand", "corner")


def _replaced(text: str, spans: Sequence[tuple[int, int, str]]) -> str:
    for start, end, word in sorted(spans, reverse=True):
        text = text[:start] + word + text[end:]
    return text


def _with_articles(text: str) -> str:
    """The text with "a" and "an" corrected for the words after them."""
    return re.sub(
        r"\b(a)n?( +)(?=([^\W_]))",
        lambda m: m[1] + ("n" if m[3].lower() in "aeiou" else "") + m[2],
        text,
        flags=re.IGNORECASE,
    )
