"""Trains a small spaCy pipeline for noun phrases on the grammar of the drawn world."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import cast

import spacy
from spacy.language import Language
from spacy.pipeline import AttributeRuler
from spacy.tokens import Doc
from spacy.training import Example
from thinc.api import fix_random_seed

from pipeline.demo.grammar import HEAD, Phrase, noun_phrase, phrase, prepositional, word
from pipeline.demo.world import SMALL, World, sample_scene, tell

__all__ = ["gold", "sample_phrases", "train_language"]

POS = {
    "CC": "CCONJ",
    "CD": "NUM",
    "DT": "DET",
    "EX": "PRON",
    "IN": "ADP",
    "JJ": "ADJ",
    "NN": "NOUN",
    "NNS": "NOUN",
    "NNP": "PROPN",
    "PRP": "PRON",
    "PRP$": "PRON",
    "RB": "ADV",
    "VB": "VERB",
    "VBG": "VERB",
    "VBN": "VERB",
    "VBP": "AUX",
    "VBZ": "AUX",
    ",": "PUNCT",
    ".": "PUNCT",
    ":": "PUNCT",
}
"""The universal part of speech of each Penn tag that the grammar uses."""

NOUNS = (
    "dog cat man woman child girl boy car street tree window table chair kitchen garden beach "
    "bird horse boat bridge mountain river lake flower cup book phone shirt dress shoe hat bag "
    "lamp bed room city park road door picture sign bottle cake pizza train bus plane "
    "logo image design home decor store price shop sale watch camera laptop background"
)
ADJECTIVES = (
    "black brown pink young old new cute beautiful wooden happy tall modern best vintage cheap "
    "free wireless leather digital fresh white red blue large small little long short"
)
PARTICIPLES = "sitting standing walking running riding holding playing lying swimming"
VERBS = "buy find get download compare order enjoy see visit choose"
PREPOSITIONS = "in on at with of for from by near behind through across beside under over"
NAMES = "Stock Photo Image Download Amazon London Paris John Home Shop Gallery Free"
"""Ordinary words, so that other alt-text is parsed reasonably too."""

STYLES = (str, str.capitalize, str.title, str.upper)

WIDTH = 64
NUM_EPOCHS = 4
BATCH = 32
LEARNING_RATE = 0.002


def one_of(words: str, rng: random.Random) -> str:
    """Choose one of the words of a text."""
    return rng.choice(words.split())


def unheard(rng: random.Random) -> str:
    """Make up a word, so that the pipeline learns to use the context of words."""
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 9)))


def ordinary_noun_phrase(rng: random.Random) -> Phrase:
    """Make a noun phrase unrelated to the world: "the old wooden bridge", "3 shoes"."""
    noun = one_of(NOUNS, rng) if rng.random() < 0.75 else unheard(rng)
    words = [
        (adjective, "JJ")
        for adjective in rng.sample(ADJECTIVES.split(), rng.choice((0, 0, 1, 1, 2)))
    ]
    if rng.random() < 0.25:
        words.append((one_of(NOUNS, rng), "NN"))
    if rng.random() < 0.2:
        number = rng.choice(("two", "three", "four", str(rng.randint(2, 99))))
        return noun_phrase((number, "CD"), *words, (f"{noun}s", "NNS"))
    determiner = rng.choice(("a", "the", "the", "his", "her", None, None))
    if determiner is not None:
        words.insert(0, (determiner, "PRP$" if determiner in ("his", "her") else "DT"))
    return noun_phrase(*words, (noun, "NN"))


def ordinary_phrase(rng: random.Random) -> Phrase:
    """Make alt-text unrelated to the world: "young woman sitting near the lake with a dog"."""
    thing, other = ordinary_noun_phrase(rng), ordinary_noun_phrase(rng)
    place = ("prep", prepositional(one_of(PREPOSITIONS, rng), other))
    form = rng.randrange(5)
    if form == 0:
        return phrase((HEAD, thing), place)
    if form == 1:
        doing = phrase((HEAD, word(one_of(PARTICIPLES, rng), "VBG")), place)
        return phrase((HEAD, thing), ("acl", doing))
    if form == 2:
        return phrase((HEAD, word(one_of(VERBS, rng), "VB")), ("dobj", thing), place)
    if form == 3:
        return phrase((HEAD, thing), ("cc", word("and", "CC")), ("conj", other))
    return thing


def dress(text: Phrase, rng: random.Random) -> Phrase:
    """Decorate a phrase as web pages do: "Photo: ...", "... | Stock Photo", a full stop."""
    form = rng.randrange(4)
    if form == 0:
        return phrase((HEAD, text), ("punct", word(".", ".")))
    if form == 1:
        label = noun_phrase((rng.choice(("Photo", "Image", "Picture")), "NN"))
        return phrase((HEAD, label), ("punct", word(":", ":")), ("appos", text))
    if form == 2:
        name = noun_phrase(*((n, "NNP") for n in rng.sample(NAMES.split(), rng.choice((1, 2)))))
        bar = word(rng.choice("|-,"), ":")
        return phrase((HEAD, text), ("punct", bar), ("appos", name))
    return text


def restyle(text: Phrase, rng: random.Random) -> Phrase:
    """Change the case of a phrase."""
    style = rng.choice(STYLES)
    if style is str.capitalize:
        words = (text.words[0].capitalize(), *text.words[1:])
    else:
        words = tuple(style(w) for w in text.words)
    return Phrase(words, text.tags, text.heads, text.labels)


def sample_phrases(rng: random.Random, world: World = SMALL) -> Iterator[Phrase]:
    """Yield an endless mixture of captions of the world and other alt-text."""
    while True:
        text = tell(sample_scene(rng, world), rng) if rng.random() < 0.6 else ordinary_phrase(rng)
        if rng.random() < 0.25:
            text = dress(text, rng)
        yield restyle(text, rng) if rng.random() < 0.3 else text


def gold(nlp: Language, text: Phrase) -> Doc:
    """Convert a phrase to a parsed document, whose `noun_chunks` are correct."""
    return Doc(
        nlp.vocab,
        words=list(text.words),
        tags=list(text.tags),
        pos=[POS[tag] for tag in text.tags],
        heads=list(text.heads),
        deps=list(text.labels),
    )


def blank_language() -> Language:
    """Make an untrained pipeline: a tagger and a parser that share word vectors."""
    nlp = spacy.blank("en")
    nlp.meta["name"] = "demo"
    nlp.add_pipe(
        "tok2vec",
        config={
            "model": {
                "@architectures": "spacy.HashEmbedCNN.v2",
                "width": WIDTH,
                "depth": 3,
                "embed_size": 500,
                "window_size": 1,
                "maxout_pieces": 2,
                "subword_features": True,
                "pretrained_vectors": None,
            }
        },
    )
    listener = {"@architectures": "spacy.Tok2VecListener.v1", "width": WIDTH, "upstream": "*"}
    nlp.add_pipe(
        "tagger", config={"model": {"@architectures": "spacy.Tagger.v2", "tok2vec": listener}}
    )
    nlp.add_pipe(
        "parser",
        config={
            "model": {
                "@architectures": "spacy.TransitionBasedParser.v2",
                "state_type": "parser",
                "extra_state_tokens": False,
                "hidden_width": WIDTH,
                "maxout_pieces": 2,
                "use_upper": True,
                "nO": None,
                "tok2vec": listener,
            }
        },
    )
    return nlp


def train_language(
    folder: str | Path, *, seed: int = 0, num_sentences: int = 2000, world: World = SMALL
) -> None:
    """Train a pipeline that finds the noun phrases of the demo's captions, and write it.

    Takes seconds on one core, without downloads. `spacy.load(folder)` loads the result, with
    tok2vec, tagger, parser and attribute_ruler.

    Args:
        folder: Folder to write to; created if necessary.
        seed: Seed of the sentences, their order and the weights.
        num_sentences: Number of training sentences; each is used `NUM_EPOCHS` times.
        world: The world that the captions are of.
    """
    fix_random_seed(seed)
    rng = random.Random(f"{seed} language")
    nlp = blank_language()
    examples = [
        Example(Doc(nlp.vocab, words=list(text.words)), gold(nlp, text))
        for text in islice(sample_phrases(rng, world), num_sentences)
    ]
    optimizer = nlp.initialize(lambda: examples)
    optimizer.learn_rate = LEARNING_RATE
    for _ in range(NUM_EPOCHS):
        rng.shuffle(examples)
        for start in range(0, num_sentences, BATCH):
            nlp.update(examples[start : start + BATCH], sgd=optimizer)
    ruler = cast(AttributeRuler, nlp.add_pipe("attribute_ruler"))
    ruler.load_from_tag_map({tag: {"POS": pos} for tag, pos in POS.items()})
    nlp.to_disk(folder)
