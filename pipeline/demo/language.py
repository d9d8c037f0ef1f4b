"""A small English pipeline for noun phrases, trained on the grammar of the drawn world."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import spacy
from spacy.language import Language
from spacy.pipeline import AttributeRuler
from spacy.tokens import Doc
from spacy.training import Example
from thinc.api import fix_random_seed

from pipeline.demo.grammar import HEAD, Phrase, noun_phrase, phrase, prepositional, word
from pipeline.demo.world import sample_scene, tell

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
"""Ordinary words, so that alt-text from outside the world is parsed with some sense."""

STYLES = (str, str.capitalize, str.title, str.upper)

WIDTH = 64
NUM_EPOCHS = 4
BATCH = 32
LEARNING_RATE = 0.002


def one_of(words: str, rng: random.Random) -> str:
    """One of some words that spaces part."""
    return rng.choice(words.split())


def unheard(rng: random.Random) -> str:
    """A word that nobody has heard, so that the pipeline learns to go by its neighbours."""
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 9)))


def ordinary_noun_phrase(rng: random.Random) -> Phrase:
    """A noun phrase that is not of the world: "the old wooden bridge", "3 shoes"."""
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
    """Alt-text that is not of the world: "young woman sitting near the lake with a dog"."""
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
    """A phrase as a web page shows it: "Photo: ...", "... | Stock Photo", a full stop."""
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
    """The same phrase in other letters."""
    style = rng.choice(STYLES)
    if style is str.capitalize:
        words = (text.words[0].capitalize(), *text.words[1:])
    else:
        words = tuple(style(w) for w in text.words)
    return Phrase(words, text.tags, text.heads, text.labels)


def sample_phrases(rng: random.Random) -> Iterator[Phrase]:
    """Captions of the world and, among them, other alt-text, without end."""
    while True:
        text = tell(sample_scene(rng), rng) if rng.random() < 0.6 else ordinary_phrase(rng)
        if rng.random() < 0.25:
            text = dress(text, rng)
        yield restyle(text, rng) if rng.random() < 0.3 else text


def gold(nlp: Language, text: Phrase) -> Doc:
    """A phrase as a parsed document; its `noun_chunks` are the right ones."""
    return Doc(
        nlp.vocab,
        words=list(text.words),
        tags=list(text.tags),
        pos=[POS[tag] for tag in text.tags],
        heads=list(text.heads),
        deps=list(text.labels),
    )


def blank_language() -> Language:
    """An untrained pipeline: word vectors that a tagger and a parser share."""
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


def train_language(folder: str | Path, *, seed: int = 0, num_sentences: int = 2000) -> Language:
    """Train a pipeline whose `doc.noun_chunks` suit the demo, and write it.

    Seconds on one core; no download. `spacy.load(folder)` loads it.

    Args:
        folder: Made if it does not exist.
        seed: Of the sentences, of the weights and of their order.
        num_sentences: Sentences to learn from, `NUM_EPOCHS` times each.

    Returns:
        The trained pipeline: tok2vec, tagger, parser, attribute_ruler.
    """
    fix_random_seed(seed)
    rng = random.Random(f"{seed} language")
    nlp = blank_language()
    examples = [
        Example(Doc(nlp.vocab, words=list(text.words)), gold(nlp, text))
        for text in islice(sample_phrases(rng), num_sentences)
    ]
    optimizer = nlp.initialize(lambda: examples)
    optimizer.learn_rate = LEARNING_RATE
    for _ in range(NUM_EPOCHS):
        rng.shuffle(examples)
        for start in range(0, num_sentences, BATCH):
            nlp.update(examples[start : start + BATCH], sgd=optimizer)
    ruler = nlp.add_pipe("attribute_ruler")
    assert isinstance(ruler, AttributeRuler)
    ruler.load_from_tag_map({tag: {"POS": pos} for tag, pos in POS.items()})
    nlp.to_disk(folder)
    return nlp
