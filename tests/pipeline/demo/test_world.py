import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.demo.grammar import HEAD, noun_phrase, phrase, prepositional, word
from pipeline.demo.shapes import COLORS, GROUNDS, Shape, paint
from pipeline.demo.world import (
    MAX_WORDS,
    Group,
    Scene,
    arrange,
    describe,
    draw,
    holds,
    sample_scene,
    tell,
    vocabulary,
)

seeds = st.integers(0, 2**32)

BALL_LEFT_OF_STARS = Scene(
    groups=(
        Group(kind="ball", color="red", size="big", count=1),
        Group(kind="star", color="blue", size="small", count=2),
    ),
    relation="left",
    ground="beach",
)


@given(seeds)
def test_a_description_holds_of_its_scene(seed: int) -> None:
    rng = random.Random(seed)
    scene = sample_scene(rng)
    assert holds(describe(scene, rng), scene)


@given(seeds)
def test_a_description_never_holds_of_a_scene_without_its_things(seed: int) -> None:
    rng = random.Random(seed)
    scene, other = sample_scene(rng), sample_scene(rng)
    seen = {(group.kind, group.color) for group in scene.groups}
    if any((group.kind, group.color) not in seen for group in other.groups):
        assert not holds(describe(other, rng), scene)


@pytest.mark.parametrize(
    ("caption", "truth"),
    [
        ("a big red ball to the left of two blue stars on the sand", True),
        ("Photo: A Big Red Ball | Stock Photo", True),
        ("a red ball, 5 x 7 inches", True),
        ("two tiny blue stars right of a red ball", True),
        ("a red ball with two small blue stars to the right of it", True),
        ("a ball and two stars", True),
        ("a small red ball", False),
        ("three blue stars", False),
        ("two blue stars left of a red ball", False),
        ("a red ball above two blue stars", False),
        ("a red ball with two blue stars to the left of it", False),
        ("a red ball on the grass", False),
        ("a red ball and a red ball", False),
        ("a red ball and a green kite", False),
        ("sand", False),
        ("", False),
    ],
)
def test_a_caption_holds_when_all_it_says_is_seen(caption: str, truth: bool) -> None:
    assert holds(caption, BALL_LEFT_OF_STARS) is truth


@given(st.text())
def test_any_text_either_holds_or_not(caption: str) -> None:
    assert (
        not holds(caption, BALL_LEFT_OF_STARS)
        or "ball" in caption.lower()
        or "star" in caption.lower()
    )


@given(seeds)
def test_a_caption_is_short_lower_case_and_in_the_vocabulary(seed: int) -> None:
    rng = random.Random(seed)
    words = describe(sample_scene(rng), rng).split(" ")
    assert 5 <= len(words) <= MAX_WORDS
    assert set(words) <= set(vocabulary())


def test_every_word_of_the_vocabulary_is_said() -> None:
    rng = random.Random(0)
    said = {w for _ in range(3000) for w in describe(sample_scene(rng), rng).split()}
    assert said == set(vocabulary())


def test_hardly_any_two_images_share_a_caption() -> None:
    rng = random.Random(1)
    scenes = {sample_scene(rng) for _ in range(3000)}
    assert len(scenes) > 2500
    assert max(Counter(describe(scene, rng) for scene in scenes).values()) <= 5


@given(seeds)
def test_a_scene_survives_its_json(seed: int) -> None:
    scene = sample_scene(random.Random(seed))
    assert Scene.from_json(scene.to_json()) == scene


@pytest.mark.parametrize("size", [24, 64, 130])
def test_a_picture_has_the_size_asked_for(size: int) -> None:
    image = draw(BALL_LEFT_OF_STARS, size, random.Random(0))
    assert (image.mode, image.size) == ("RGB", (size, size))


def test_the_same_rng_draws_the_same_picture_and_another_a_different_one() -> None:
    def pixels(seed: int) -> bytes:
        return draw(BALL_LEFT_OF_STARS, 64, random.Random(seed)).tobytes()

    assert pixels(1) == pixels(1)
    assert pixels(1) != pixels(2)


@pytest.mark.parametrize("color", list(COLORS))
@pytest.mark.parametrize("ground", list(GROUNDS))
def test_a_thing_has_its_colour_in_the_middle(color: str, ground: str) -> None:
    shape = Shape(kind="ball", color=color, x=0.3, y=0.6, radius=0.2)
    rng = random.Random(f"{color} {ground}")
    image = np.asarray(paint([shape], ground, 64, rng), np.float32)
    seen = image[34:43, 15:24].mean(axis=(0, 1))
    distance = {name: np.abs(seen - rgb).sum() for name, rgb in COLORS.items()}
    assert min(distance, key=distance.__getitem__) == color


def test_left_and_above_are_drawn_where_they_are_said() -> None:
    for seed in range(20):
        for relation, axis in (("left", 1), ("above", 0)):
            groups = tuple(
                Group(kind="ball", color=color, size="big", count=1) for color in ("red", "blue")
            )
            scene = Scene(groups=groups, relation=relation, ground="wall")
            image = np.asarray(draw(scene, 64, random.Random(seed)), np.float32)
            red = np.argwhere(image[..., 0] > image[..., 2] + 80)[:, axis].mean()
            blue = np.argwhere(image[..., 2] > image[..., 0] + 80)[:, axis].mean()
            assert red < blue


def test_things_of_a_group_do_not_touch() -> None:
    group = Group(kind="fish", color="red", size="big", count=3)
    for seed in range(50):
        shapes = arrange(group, (0.0, 0.0, 1.0, 1.0), random.Random(seed))
        assert len(shapes) == 3
        for i, a in enumerate(shapes):
            assert a.x - a.radius >= 0 and a.x + a.radius <= 1
            assert a.y - a.radius >= 0 and a.y + a.radius <= 1
            for b in shapes[:i]:
                assert (a.x - b.x) ** 2 + (a.y - b.y) ** 2 > (a.radius + b.radius) ** 2


@given(seeds)
def test_a_telling_is_a_tree(seed: int) -> None:
    rng = random.Random(seed)
    text = tell(sample_scene(rng), rng)
    assert text.labels.count(HEAD) == 1
    for start in range(len(text.words)):
        at, steps = start, 0
        while at != text.root:
            at, steps = text.heads[at], steps + 1
            assert steps <= len(text.words)


def test_a_phrase_hangs_its_parts_on_its_head() -> None:
    place = prepositional("in front of", noun_phrase(("a", "DT"), ("wall", "NN")))
    text = phrase((HEAD, noun_phrase(("red", "JJ"), ("ball", "NN"))), ("prep", place))
    assert text.text == "red ball in front of a wall"
    assert text.heads == (1, 1, 1, 2, 3, 6, 4)
    assert text.labels == ("amod", "ROOT", "prep", "pobj", "prep", "det", "pobj")
    assert word("ball", "NN").labels == (HEAD,)
