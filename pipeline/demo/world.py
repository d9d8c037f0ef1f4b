"""The drawn world: its scenes, their images, and their captions."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from PIL import Image

from pipeline.demo import shapes
from pipeline.demo.grammar import HEAD, Phrase, noun_phrase, phrase, prepositional, word
from pipeline.demo.outlines import MANY

__all__ = [
    "SMALL",
    "WORLDS",
    "Group",
    "Scene",
    "World",
    "describe",
    "draw",
    "holds",
    "sample_scene",
    "tell",
    "vocabulary",
]

T = TypeVar("T")

RADII = {"small": 0.12, "big": 0.2}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "big": ("big", "large", "huge")}
PLURAL_OF = {
    "box": "boxes",
    "butterfly": "butterflies",
    "cactus": "cactuses",
    "cross": "crosses",
    "leaf": "leaves",
}
"""Plurals of the things of the long tail that do not end in a plain s."""

PLURALS = {
    "ball": "balls",
    "star": "stars",
    "heart": "hearts",
    "house": "houses",
    "fish": "fish",
    "kite": "kites",
    **{kind: PLURAL_OF.get(kind, f"{kind}s") for kind in MANY},
}
COUNT_WORDS = {2: "two", 3: "three"}
RELATION_WORDS = {
    "left": ("to the left of", "on the left of", "left of"),
    "right": ("to the right of", "on the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
}
INVERSE = {"left": "right", "right": "left", "above": "below", "below": "above"}
PLACES: dict[str, tuple[tuple[str, tuple[tuple[str, str], ...]], ...]] = {
    "meadow": (
        ("on", (("a", "DT"), ("green", "JJ"), ("field", "NN"))),
        ("on", (("a", "DT"), ("meadow", "NN"))),
        ("on", (("the", "DT"), ("grass", "NN"))),
    ),
    "beach": (
        ("on", (("a", "DT"), ("sandy", "JJ"), ("beach", "NN"))),
        ("on", (("the", "DT"), ("beach", "NN"))),
        ("on", (("the", "DT"), ("sand", "NN"))),
    ),
    "sea": (
        ("in", (("the", "DT"), ("sea", "NN"))),
        ("in", (("blue", "JJ"), ("water", "NN"))),
        ("on", (("the", "DT"), ("water", "NN"))),
    ),
    "wall": (
        ("on", (("a", "DT"), ("grey", "JJ"), ("wall", "NN"))),
        ("in front of", (("a", "DT"), ("brick", "NN"), ("wall", "NN"))),
        ("against", (("a", "DT"), ("wall", "NN"))),
    ),
    "night": (
        ("in", (("the", "DT"), ("dark", "JJ"), ("sky", "NN"))),
        ("at", (("night", "NN"),)),
        ("in", (("the", "DT"), ("night", "NN"), ("sky", "NN"))),
    ),
}
VIEWS = ("photo", "picture", "view", "drawing")
MAX_WORDS = 16


@dataclass(frozen=True, kw_only=True)
class Group:
    """One to three objects of the same kind, colour and size."""

    kind: str
    color: str
    size: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The content of an image.

    Attributes:
        groups: One or two groups; two differ in kind or colour.
        relation: Position of the first group relative to the second, "left" or "above"; None for
            one group.
        ground: A key of `shapes.GROUNDS`.
    """

    groups: tuple[Group, ...]
    relation: str | None
    ground: str

    def to_json(self) -> str:
        """Return the scene as JSON text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Scene:
        """Parse a scene written by `to_json`."""
        fields = json.loads(text)
        groups = tuple(Group(**group) for group in fields.pop("groups"))
        return cls(groups=groups, **fields)


@dataclass(frozen=True, kw_only=True)
class World:
    """What there is to be seen, and how often.

    Attributes:
        kinds: Keys of `shapes.OUTLINES`, the most common first.
        skew: The exponent of Zipf's law: the n-th kind, colour, size, number, ground or relation is
            n ** skew times as rare as the first. 0 makes all equally common.
    """

    kinds: tuple[str, ...]
    skew: float = 0.0

    def pick(self, options: Sequence[T], rng: random.Random) -> T:
        """Choose one of several, the first of which is the most common."""
        if not self.skew:
            return rng.choice(options)
        weights = [(rank + 1) ** -self.skew for rank in range(len(options))]
        return rng.choices(options, weights)[0]

    def even(self) -> World:
        """The same world with everything equally common."""
        return dataclasses.replace(self, skew=0.0)


SMALL = World(kinds=tuple(shapes.SHAPES))
"""The world of the demo."""

WORLDS = {
    "small": SMALL,
    "longtail": World(kinds=(*shapes.SHAPES, *MANY), skew=1.0),
}
"""Every world, by its name."""


def sample_scene(rng: random.Random, world: World = SMALL) -> Scene:
    """Choose a random scene of a world."""

    def group(counts: tuple[int, ...]) -> Group:
        return Group(
            kind=world.pick(world.kinds, rng),
            color=world.pick(list(shapes.COLORS), rng),
            size=world.pick(list(RADII), rng),
            count=world.pick(counts, rng),
        )

    ground = world.pick(list(shapes.GROUNDS), rng)
    if rng.random() < 0.35:
        return Scene(groups=(group((1, 2, 3)),), relation=None, ground=ground)
    first = second = group((1, 1, 2))
    while (second.kind, second.color) == (first.kind, first.color):
        second = group((1, 1, 2))
    relation = world.pick(("left", "above"), rng)
    return Scene(groups=(first, second), relation=relation, ground=ground)


def draw(scene: Scene, size: int, rng: random.Random) -> Image.Image:
    """Draw a photograph of a scene with random arrangement, light and imperfections.

    Args:
        scene: The scene to draw.
        size: Side in pixels; all attributes are recognisable from 64 pixels on.
        rng: Source of all randomness.

    Returns:
        An RGB image of size x size.
    """
    boxes = {
        None: [(0.0, 0.0, 1.0, 1.0)],
        "left": [(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)],
        "above": [(0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0)],
    }[scene.relation]
    drawn = [
        shape
        for group, box in zip(scene.groups, boxes, strict=True)
        for shape in arrange(group, box, rng)
    ]
    return shapes.paint(drawn, scene.ground, size, rng)


def arrange(
    group: Group, box: tuple[float, float, float, float], rng: random.Random
) -> list[shapes.Shape]:
    """Place the objects of a group in a box without overlap, shrinking them slightly if needed."""
    left, top, right, bottom = box
    radius = RADII[group.size] * rng.uniform(0.94, 1.06)
    centers: list[tuple[float, float]] = []
    while len(centers) < group.count:
        centers = []
        radius *= 0.995
        margin = radius + 0.02
        for _ in range(group.count * 8):
            x = rng.uniform(left + margin, right - margin)
            y = rng.uniform(top + margin, bottom - margin)
            if all(math.dist((x, y), other) > 2 * radius + 0.01 for other in centers):
                centers.append((x, y))
            if len(centers) == group.count:
                break
    return [
        shapes.Shape(
            kind=group.kind,
            color=group.color,
            x=x,
            y=y,
            radius=radius,
            angle=rng.uniform(-0.2, 0.2),
            is_mirrored=rng.random() < 0.5,
        )
        for x, y in centers
    ]


def describe(scene: Scene, rng: random.Random) -> str:
    """Write a true caption, in lower case, with at most `MAX_WORDS` words."""
    return tell(scene, rng).text


def tell(scene: Scene, rng: random.Random) -> Phrase:
    """Write a true caption, with its parse, that names the kind and colour of every group."""
    while True:
        caption = tell_one(scene, rng) if scene.relation is None else tell_two(scene, rng)
        if len(caption.words) <= MAX_WORDS:
            return caption


def name(group: Group, rng: random.Random, *, with_size: bool) -> Phrase:
    """Return the noun phrase of a group: "a small red ball", "two orange fish"."""
    size = rng.choice(SIZE_WORDS[group.size])
    adjectives = [(size, "JJ")] if with_size else []
    adjectives.append((group.color, "JJ"))
    if group.count > 1:
        return noun_phrase(
            (COUNT_WORDS[group.count], "CD"), *adjectives, (PLURALS[group.kind], "NNS")
        )
    article = "an" if adjectives[0][0][0] in "aeiou" else "a"
    return noun_phrase((article, "DT"), *adjectives, (group.kind, "NN"))


def locate(ground: str, rng: random.Random) -> Phrase:
    """Return a phrase for the ground of a scene: "on the beach"."""
    preposition, words = rng.choice(PLACES[ground])
    return prepositional(preposition, noun_phrase(*words))


def relate(relation: str, other: Phrase, rng: random.Random) -> tuple[str, Phrase]:
    """Return a relation as (label, phrase): "to the left of a blue star"."""
    words = rng.choice(RELATION_WORDS[relation])
    if words in ("left of", "right of"):
        side, of = words.split()
        tail = phrase((HEAD, word(of, "IN")), ("pobj", other))
        return "advmod", phrase((HEAD, word(side, "RB")), ("prep", tail))
    return "prep", prepositional(words, other)


def be(group: Group) -> Phrase:
    """Return "is" or "are", to agree with a group."""
    return word("is", "VBZ") if group.count == 1 else word("are", "VBP")


def there(group: Group) -> tuple[tuple[str, Phrase], tuple[str, Phrase]]:
    """Return the parts of "there is" or "there are"."""
    return ("expl", word("there", "EX")), (HEAD, be(group))


def view_of(thing: Phrase, rng: random.Random) -> Phrase:
    """Return a phrase for an image of something: "a photo of two red kites"."""
    view = noun_phrase(("a", "DT"), (rng.choice(VIEWS), "NN"))
    return phrase((HEAD, view), ("prep", prepositional("of", thing)))


def tell_one(scene: Scene, rng: random.Random) -> Phrase:
    """Write a caption of a scene with one group."""
    (group,) = scene.groups
    thing = name(group, rng, with_size=rng.random() < 0.8)
    place = ("prep", locate(scene.ground, rng))
    form = rng.randrange(7)
    if form == 0:
        return phrase(*there(group), ("attr", thing), place)
    if form == 1:
        return phrase(place, *there(group), ("attr", thing))
    if form == 2:
        return view_of(phrase((HEAD, thing), place), rng)
    if form == 3:
        return phrase(("nsubj", thing), (HEAD, be(group)), place)
    if form == 4:
        seen = phrase((HEAD, word(rng.choice(("seen", "shown")), "VBN")), place)
        return phrase((HEAD, thing), ("acl", seen))
    return phrase((HEAD, thing), place)


def tell_two(scene: Scene, rng: random.Random) -> Phrase:
    """Write a caption of a scene with two groups, with either of them first."""
    assert scene.relation is not None
    first, second, relation = *scene.groups, scene.relation
    if rng.random() < 0.5:
        first, second, relation = second, first, INVERSE[relation]
    thing = name(first, rng, with_size=rng.random() < 0.65)
    other = name(second, rng, with_size=rng.random() < 0.65)
    place = [("prep", locate(scene.ground, rng))] if rng.random() < 0.7 else []
    form = rng.randrange(8)
    if form == 0:
        return phrase((HEAD, thing), ("cc", word("and", "CC")), ("conj", other), *place)
    if form == 1 and first.count == 1:
        back = relate(INVERSE[relation], word("it", "PRP"), rng)
        company = phrase((HEAD, word("with", "IN")), ("pobj", phrase((HEAD, other), back)))
        return phrase((HEAD, thing), ("prep", company), *place)
    related = relate(relation, other, rng)
    if form == 2:
        return phrase(*there(first), ("attr", phrase((HEAD, thing), related)), *place)
    if form == 3 and place:
        return phrase(*place, *there(first), ("attr", phrase((HEAD, thing), related)))
    if form == 4:
        return view_of(phrase((HEAD, thing), related, *place), rng)
    if form == 5:
        return phrase(("nsubj", thing), (HEAD, be(first)), related, *place)
    return phrase((HEAD, thing), related, *place)


def alternatives(words: Iterable[str]) -> str:
    """Return a pattern that matches any of the words, longest first."""
    return "|".join(sorted(words, key=lambda w: (-len(w), w)))


SIZES = {w: size for size, words in SIZE_WORDS.items() for w in words}
RELATIONS = {w: relation for relation, words in RELATION_WORDS.items() for w in words}
KINDS = {w: kind for kind, plural in PLURALS.items() for w in (kind, plural)}
COUNTS = {"a": 1, "an": 1, **{w: count for count, w in COUNT_WORDS.items()}}
GROUNDS = {
    " ".join((preposition, *(text for text, _ in words))): ground
    for ground, places in PLACES.items()
    for preposition, words in places
}
NAME = (
    rf"\b(?P<count>{alternatives(COUNTS)}) (?:(?P<size>{alternatives(SIZES)}) )?"
    rf"(?:(?P<color>{alternatives(shapes.COLORS)}) )?(?P<kind>{alternatives(KINDS)})\b"
)
RELATED = re.compile(rf"0 (?:is |are )?({alternatives(RELATIONS)}) 1\b")
RELATED_TO_IT = re.compile(rf"0 with 1 ({alternatives(RELATIONS)}) it\b")
UNSEEN = -1
PLACE = re.compile(rf"\b({alternatives(GROUNDS)})\b")


def holds(caption: str, scene: Scene) -> bool:
    """Whether a caption names at least one group of a scene and says nothing false about it.

    Phrases that `describe` may write are understood; all other words are ignored.
    """
    text = " ".join(caption.lower().split())
    named: list[int] = []

    def find(match: re.Match[str]) -> str:
        """Replace a name by its number, 0 or 1, and append the named group to `named`."""
        size = SIZES.get(match["size"])
        for i, group in enumerate(scene.groups):
            if (
                i not in named
                and (group.kind, group.count) == (KINDS[match["kind"]], COUNTS[match["count"]])
                and match["color"] in (None, group.color)
                and size in (None, group.size)
            ):
                named.append(i)
                return str(len(named) - 1)
        named.append(UNSEEN)
        return ""

    text = re.sub(NAME, find, text)
    if not named or UNSEEN in named:
        return False
    if any(GROUNDS[place] != scene.ground for place in PLACE.findall(text)):
        return False
    relations = [RELATIONS[words] for words in RELATED.findall(text)]
    relations += [INVERSE[RELATIONS[words]] for words in RELATED_TO_IT.findall(text)]
    if not relations or scene.relation is None:
        return not relations
    true = scene.relation if named == [0, 1] else INVERSE[scene.relation]
    return all(relation == true for relation in relations)


def vocabulary(world: World = SMALL) -> list[str]:
    """Return every word that `describe` may use of a world, in lower case and sorted."""
    words = {*shapes.COLORS, *world.kinds, *COUNT_WORDS.values(), *VIEWS}
    words |= {PLURALS[kind] for kind in world.kinds}
    words |= {"a", "an", "and", "are", "is", "it", "of", "seen", "shown", "the", "there", "with"}
    words |= {w for choices in SIZE_WORDS.values() for w in choices}
    words |= {w for choices in RELATION_WORDS.values() for c in choices for w in c.split()}
    for choices in PLACES.values():
        for preposition, place in choices:
            words |= {*preposition.split(), *(text for text, _ in place)}
    return sorted(words)
