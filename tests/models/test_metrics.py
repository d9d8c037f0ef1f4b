import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.metrics import (
    bleu_counts,
    bleu_of,
    bootstrap,
    cider_scores,
    retrieval_hits,
    roc_auc,
    words_of,
)


def bleu(candidates: list[str], references: list[list[str]]) -> float:
    return bleu_of(bleu_counts(candidates, references).sum(0))


def cider(candidates: list[str], references: list[list[str]]) -> float:
    return float(cider_scores(candidates, references).mean())


def recall(similarity: np.ndarray, owners: list[int], ks: tuple[int, ...]) -> dict[str, float]:
    by_image, by_text = retrieval_hits(similarity, owners, ks)
    return {
        **{f"TR@{k}": float(hits.mean()) for k, hits in by_image.items()},
        **{f"IR@{k}": float(hits.mean()) for k, hits in by_text.items()},
    }


def test_words_are_lower_case_and_free_of_punctuation() -> None:
    assert words_of('A dog, "Rex", isn\'t here.') == ["a", "dog", "rex", "isn't", "here"]


def test_bleu_of_a_caption_worked_by_hand() -> None:
    # Precisions 4/5, 3/4, 2/3, 1/2; five words against six.
    expected = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25 * math.exp(1 - 6 / 5)
    assert bleu(["a b c d e"], [["a b c d f g"]]) == pytest.approx(expected)


def test_bleu_clips_a_word_to_its_most_in_any_one_reference() -> None:
    # Matches of "a a a a b": a twice and b; a-a and a-b; a-a-b; nothing of four words.
    references = ["a a b", "a c", "b a a a b"]
    assert bleu(["a a a a b"], [references[:2]]) == 0.0
    # With the third: a 3 and b; a-a 2 and a-b; a-a-a and a-a-b; a-a-a-b. Lengths agree.
    expected = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert bleu(["a a a a b"], [references]) == pytest.approx(expected)


def test_bleu_takes_the_shorter_of_two_references_equally_close_in_length() -> None:
    # Four and six words are equally close to five: with four there is no penalty.
    assert bleu(["a b c d e"], [["a b c d", "a b c d e f"]]) == pytest.approx(1.0)


def test_bleu_pools_the_counts_of_the_corpus() -> None:
    candidates, references = ["a b c d", "x"], [["a b c d"], ["y z"]]
    # One word of five is wrong; a short caption has no longer n-grams to be wrong with.
    expected = (4 / 5) ** 0.25 * math.exp(1 - 6 / 5)
    assert bleu(candidates, references) == pytest.approx(expected)


def test_cider_of_the_references_themselves_is_ten() -> None:
    captions = ["a b c d", "e f g h"]
    assert cider(captions, [[c] for c in captions]) == pytest.approx(10.0)


def test_cider_of_a_short_caption_worked_by_hand() -> None:
    # All weights are ln 2: 2 of 4 words, 1 of 3 pairs; two words shorter.
    penalty = math.exp(-(2**2) / (2 * 6**2))
    short = 10 / 4 * penalty * (2 / (math.sqrt(2) * 2) + 1 / math.sqrt(3))
    assert cider(["a b", "e f g h"], [["a b c d"], ["e f g h"]]) == pytest.approx((short + 10) / 2)


def test_cider_gives_nothing_for_a_word_of_every_image() -> None:
    assert cider(["the", "the"], [["the dog"], ["the cat"]]) == 0.0


def test_cider_clips_a_repeated_word_but_counts_it_in_the_norm() -> None:
    # "a a" against "a b", each of one image of two: min(2, 1) * 1 over |(2)| * |(1, 1)|.
    score = 10 / 4 * (1 / (2 * math.sqrt(2)))
    assert cider(["a a", "x"], [["a b"], ["c d"]]) == pytest.approx(score / 2)


def test_cider_is_the_mean_over_references() -> None:
    references = [["a b c d", "x y z w"], ["e f g h"]]
    assert cider(["a b c d", "e f g h"], references) == pytest.approx((5 + 10) / 2)


def test_recall_counts_an_image_by_its_best_text_and_a_text_by_its_image() -> None:
    similarity = np.array([[0.9, 0.1, 0.8], [0.95, 0.2, 0.3]])
    # Texts 0 and 1 are of image 0, text 2 of image 1.
    found = recall(similarity, [0, 0, 1], ks=(1, 2))
    # Image 0: own 0.9 first. Image 1: own 0.3 second. Every text prefers the wrong image.
    assert found == {"TR@1": 0.5, "TR@2": 1.0, "IR@1": 0.0, "IR@2": 1.0}


def test_equal_similarities_retrieve_nothing() -> None:
    found = recall(np.zeros((20, 20)), list(range(20)), ks=(1, 5))
    assert found == {"TR@1": 0.0, "TR@5": 0.0, "IR@1": 0.0, "IR@5": 0.0}


scores = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=8)


@given(scores, scores)
def test_auc_is_the_share_of_pairs_in_order(positive: list[float], negative: list[float]) -> None:
    wins = [(p > n) + (p == n) / 2 for p in positive for n in negative]
    expected = sum(wins) / len(wins)
    assert roc_auc(np.array(positive), np.array(negative)) == pytest.approx(expected)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(1, 3)), min_size=1, max_size=6), scores)
def test_a_weight_is_so_many_copies(pairs: list[tuple[int, int]], negative: list[float]) -> None:
    values = np.array([float(value) for value, _ in pairs])
    weights = np.array([float(weight) for _, weight in pairs])
    copies = np.repeat(values, weights.astype(int))
    found = roc_auc(values, np.array(negative), weights)
    assert found == pytest.approx(roc_auc(copies, np.array(negative)))
    turned = roc_auc(np.array(negative), values, None, weights)
    assert turned == pytest.approx(roc_auc(np.array(negative), copies))


def test_the_interval_of_a_mean_is_that_of_the_normal_law() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)

    def mean(weights: np.ndarray) -> dict[str, float]:
        assert weights.sum() == 400
        return {"mean": float(weights @ values / weights.sum())}

    low, high = bootstrap(mean, 400, seed=1)["mean"]
    error = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.05)
    assert bootstrap(mean, 400, seed=1)["mean"] == (low, high)
