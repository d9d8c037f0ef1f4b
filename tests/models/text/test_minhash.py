from __future__ import annotations

import numpy as np
from datasketch import LeanMinHash, MinHash, MinHashLSH
from hypothesis import given, settings
from hypothesis import strategies as st

from models.text.captions import caption_key
from models.text.minhash import band_keys, caption_centres, minhash, shingles

NAMES = ["anna", "bob smith", "acme", "del mar", "eve", "the fine fox", "gil", "hans"]


def caption_stars(
    captions: list[str], min_jaccard: float = 0.9, bands: int = 18, rows: int = 7
) -> list[int]:
    """The star of each caption; captions of one key are one."""
    keys = list(dict.fromkeys(caption_key(caption) for caption in captions))
    signatures = minhash([shingles(key) for key in keys])
    found = caption_centres(
        band_keys(signatures, bands, rows), keys.__getitem__, len(keys), min_jaccard=min_jaccard
    )
    numbers = [keys.index(caption_key(caption)) for caption in captions]
    return [int(found[number]) for number in numbers]


def jaccard(a: str, b: str) -> float:
    one, other = set(shingles(a)), set(shingles(b))
    return len(one & other) / len(one | other)


@settings(max_examples=20)
@given(st.lists(st.lists(st.text(max_size=8), min_size=1, max_size=9), min_size=1, max_size=20))
def test_minhashes_are_those_of_datasketch(sets: list[list[str]]) -> None:
    encoded = [[text.encode() for text in one] for one in sets]
    for row, one in zip(minhash(encoded), encoded, strict=True):
        expected = MinHash(128)
        expected.update_batch(one)
        assert row.tolist() == expected.hashvalues.tolist()


def test_no_captions_have_no_signatures() -> None:
    assert minhash([]).shape == (0, 128)
    assert caption_stars([]) == []


def test_a_signature_does_not_depend_on_its_neighbours() -> None:
    sets = [[f"{i} {j}".encode() for j in range(i % 7 + 1)] for i in range(3000)]
    assert (minhash(sets)[1500:1510] == minhash(sets[1500:1510])).all()


def test_short_captions_are_one_only_when_they_are_equal() -> None:
    captions = ["dog", "dogs", "red dog", "dog red", "a red dog", "the red dog", "a red dog runs"]
    assert caption_stars([*captions, "A red DOG!", "Dog."]) == [0, 1, 2, 3, 4, 5, 6, 4, 0]


def test_the_sentences_of_a_small_grammar_stay_apart() -> None:
    captions = [
        f"a {size} {first} ball above a {other} {second} kite on a green field"
        for size in ("small", "big")
        for other in ("small", "big")
        for first in ("red", "blue", "white")
        for second in ("red", "blue", "white")
    ]
    assert caption_stars(captions) == list(range(len(captions)))
    swapped = [
        "a red ball above a blue ball on the beach",
        "a blue ball above a red ball on the beach",
    ]
    assert caption_stars(swapped) == [0, 1]


def test_long_captions_that_differ_in_a_word_are_one() -> None:
    words = [f"word{i}" for i in range(60)]
    changed = [*words[:30], "other", *words[31:]]
    assert caption_stars(
        [" ".join(words), " ".join(changed), "something else entirely, and longer"]
    ) == [
        0,
        0,
        2,
    ]


def test_a_chain_of_near_captions_does_not_join_its_ends() -> None:
    words = [f"w{i}" for i in range(200)]
    captions = [" ".join(["x"] * step + words[step:]) for step in range(0, 40, 4)]
    stars = caption_stars(captions)
    for position, centre in enumerate(stars):
        a, b = set(shingles(captions[position])), set(shingles(captions[centre]))
        assert len(a & b) / len(a | b) >= 0.9
    assert stars[-1] != 0


def template(number: int, slot: str, words: int = 20) -> str:
    """A caption of some words, the last but two of which are given."""
    text = [f"w{chr(97 + number)}{chr(97 + i)}" for i in range(words)]
    text[words - 3] = slot
    return " ".join(text)


@settings(max_examples=30, deadline=None)
@given(st.integers(6, 30), st.integers(2, 40), st.integers(0, 25))
def test_a_template_with_a_running_number_is_one_caption(
    words: int, many: int, number: int
) -> None:
    captions = [template(number, f"{i} 000", words + 1) for i in range(many)]
    assert caption_stars(captions) == [0] * many


def test_a_number_is_half_of_what_a_short_caption_says() -> None:
    captions = [f"{year} yearbook of our school" for year in range(1960, 1980)]
    assert caption_stars(captions) == list(range(20))
    assert caption_stars([f"{i}" for i in range(20)]) == list(range(20))


@settings(max_examples=30, deadline=None)
@given(st.integers(20, 40), st.lists(st.sampled_from(NAMES), min_size=2, max_size=8, unique=True))
def test_a_long_template_with_a_name_is_one_caption(words: int, names: list[str]) -> None:
    keys = [template(3, name, words) for name in names]
    bands = np.zeros((1, len(keys)), np.uint64)  # all are compared
    joined = caption_centres(bands, keys.__getitem__, len(keys), min_jaccard=0.9, min_template=15)
    assert joined.tolist() == [0] * len(keys)
    apart = caption_centres(bands, keys.__getitem__, len(keys), min_jaccard=0.99)
    assert apart.tolist() == list(range(len(keys)))


def test_two_runs_of_other_words_are_no_template() -> None:
    words = [f"w{i}x" for i in range(24)]
    other = ["red" if i in (4, 15) else word for i, word in enumerate(words)]
    keys = [" ".join(words), " ".join(other), " ".join(["red", *words[1:]]), " ".join(words[8:])]
    bands = np.zeros((1, 4), np.uint64)
    found = caption_centres(bands, keys.__getitem__, 4, min_jaccard=0.9, min_template=15)
    assert found.tolist() == [0, 1, 0, 3]


def test_rank_decides_which_caption_is_the_centre() -> None:
    words = [f"word{i}" for i in range(60)]
    keys = [" ".join(words), " ".join([*words[:-1], "end"]), " ".join(["start", *words[1:]])]
    assert caption_stars(keys) == [0, 0, 0]
    assert caption_stars(keys[::-1]) == [0, 0, 0]


def variants(seed: int, number: int) -> list[str]:
    """Sentences of some templates, many of them near others."""
    rng = np.random.default_rng(seed)
    templates = [[f"t{t}w{i}" for i in range(rng.integers(1, 30))] for t in range(8)]
    captions = []
    for _ in range(number):
        words = list(templates[rng.integers(len(templates))])
        for _ in range(rng.integers(0, 4)):
            words[rng.integers(len(words))] = f"x{rng.integers(5)}"
        captions.append(" ".join(words))
    return list(dict.fromkeys(captions))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.5, 0.8, 0.9]))
def test_stars_are_those_that_the_index_of_datasketch_finds(seed: int, similar: float) -> None:
    keys = variants(seed, 120)
    index = MinHashLSH(num_perm=128, params=(18, 7))
    expected: list[int] = []
    for position, signature in enumerate(minhash([shingles(key) for key in keys])):
        sketch = LeanMinHash(seed=1, hashvalues=signature, scheme="affine32")
        near = [i for i in index.query(sketch) if jaccard(keys[position], keys[i]) >= similar]
        expected.append(min(near, default=position))
        if not near:
            index.insert(position, sketch)
    assert caption_stars(keys, similar) == expected


def test_pairs_of_similarity_0_8_are_found() -> None:
    rng = np.random.default_rng(0)
    pairs = []
    while len(pairs) < 1000:
        words = [f"{len(pairs)}w{i}" for i in range(rng.integers(12, 60))]
        other = list(words)
        for _ in range(rng.integers(1, 4)):
            other[rng.integers(len(other))] = "else"
        a, b = " ".join(words), " ".join(other)
        if 0.8 <= jaccard(a, b) < 0.84:
            pairs.append((a, b))
    stars = caption_stars([caption for pair in pairs for caption in pair], 0.8)
    recall = np.mean([stars[i] == stars[i + 1] for i in range(0, len(stars), 2)])
    assert recall >= 0.97
    own = [star // 2 == i // 2 for i, star in enumerate(stars)]
    assert all(own)


def test_distinct_captions_of_one_to_four_words_never_merge() -> None:
    words = ["red", "blue", "dog", "dogs", "a", "the", "car", "ferrari"]
    captions = [w for w in words]
    captions += [f"{a} {b}" for a in words for b in words]
    captions += [f"{a} {b} {c}" for a in words for b in words for c in words]
    captions += [f"{a} {b} {c} car" for a in words for b in words for c in words]
    assert caption_stars(captions, 0.1) == list(range(len(captions)))


def test_no_bands_are_shared_by_no_captions() -> None:
    for n in (0, 1):
        bands = np.zeros((18, n), np.uint64)
        assert caption_centres(bands, str, n, min_jaccard=0.9).tolist() == list(range(n))
