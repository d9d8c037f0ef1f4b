from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from models.embedding import selection
from models.embedding.cells import Cells
from models.embedding.selection import (
    density,
    neg_clip_loss,
    pool_norm,
    quotas,
    soft_cap_draws,
)
from models.embedding.vectors import Float16s
from models.random import splitmix


def unit(rng: np.random.Generator, number: int, size: int = 16) -> Float16s:
    rows = rng.normal(size=(number, size))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def lots(number: int) -> np.ndarray:
    return splitmix(np.arange(number, dtype=np.uint64))


def plain_loss(images: Float16s, texts: Float16s, temperature: float) -> np.ndarray:
    """The formula for one batch, read out in float64."""
    cosines = images.astype(np.float64) @ texts.astype(np.float64).T
    powers = np.exp(cosines / temperature)
    both = np.log(powers.sum(axis=1)) + np.log(powers.sum(axis=0))
    return np.diag(cosines) - temperature / 2 * both


@given(st.integers(1, 80), st.sampled_from([0.01, 0.07]), st.integers(0, 9))
def test_neg_clip_loss_of_one_batch_is_the_formula(n: int, temperature: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images, texts = unit(rng, n), unit(rng, n)
    found = neg_clip_loss(images, texts, lots(n), temperature=temperature, batch_size=n)
    np.testing.assert_allclose(found, plain_loss(images, texts, temperature), atol=1e-5)


def test_neg_clip_loss_is_the_mean_over_batches_of_every_shuffle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(selection, "ROWS", 17)
    rng = np.random.default_rng(1)
    images, texts, own = unit(rng, 250), unit(rng, 250), lots(250)
    expected = np.zeros(250)
    for shuffle in range(3):
        order = sorted(range(250), key=lambda row: int(splitmix(own ^ splitmix(shuffle))[row]))
        for batch in (order[:84], order[84:167], order[167:]):
            expected[batch] += plain_loss(images[batch], texts[batch], 0.05) / 3
    found = neg_clip_loss(images, texts, own, temperature=0.05, batch_size=100, shuffles=3)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    turn = rng.permutation(250)
    again = neg_clip_loss(
        images[turn], texts[turn], own[turn], temperature=0.05, batch_size=100, shuffles=3
    )
    np.testing.assert_allclose(again, found[turn], atol=1e-6)


def test_a_text_that_fits_every_image_scores_less_than_one_that_fits_its_own() -> None:
    rng = np.random.default_rng(2)
    images = unit(rng, 60)
    texts = images.copy()
    mean = images.astype(float).mean(axis=0)
    texts[7] = (mean / np.linalg.norm(mean)).astype(np.float16)
    found = neg_clip_loss(images, texts, lots(60))
    assert found.argmin() == 7


def test_the_norm_of_the_pool_is_that_of_all_cosines() -> None:
    embeddings = unit(np.random.default_rng(3), 200)
    cosines = embeddings.astype(np.float64) @ embeddings.astype(np.float64).T
    np.testing.assert_allclose(pool_norm(embeddings), np.linalg.norm(cosines, axis=1), rtol=1e-9)


SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 0)


@given(SIZES, st.integers(0, 60), st.randoms(use_true_random=False))
def test_quotas_fit_and_are_nearest_to_those_wanted(
    sizes: list[int], number: int, rng: object
) -> None:
    of = np.array(sizes)
    number = min(number, int(of.sum()))
    wanted = np.array([rng.random() * 12 for _ in sizes])  # type: ignore[attr-defined]
    found = quotas(wanted, of, number)
    assert found.sum() == number and (found <= of).all() and (found >= 0).all()
    low = np.minimum(of, 1) if number >= (of > 0).sum() else np.zeros_like(of)
    assert (found >= low).all()
    exact = minimize(
        lambda x: ((x - wanted) ** 2).sum(),
        np.clip(of * number / of.sum(), low, of),
        method="SLSQP",
        bounds=list(zip(low, of, strict=True)),
        constraints={"type": "eq", "fun": lambda x: x.sum() - number},
    )
    if exact.success:
        assert np.abs(found - exact.x).max() < 1 + 1e-3


def by_the_book(embeddings: Float16s, own: np.ndarray, number: int, clusters: int) -> list[bool]:
    """Density-based pruning, a cluster after the other."""
    whole = embeddings.astype(np.float64)
    cells = Cells.train(embeddings, clusters, own)
    cell = cells.nearest(embeddings)[:, 0]
    centre = cells.centres.astype(np.float64)
    distance = np.array([1 - row @ centre[c] for row, c in zip(whole, cell, strict=True)])
    worth = []
    for c in range(clusters):
        others = sorted(1 - centre[c] @ centre[o] for o in range(clusters) if o != c)
        worth.append(distance[cell == c].mean() * np.mean(others[:20]))
    shares = np.exp(np.array(worth) / 0.1)
    sizes = np.bincount(cell, minlength=clusters)
    wanted = quotas(shares / shares.sum() * number, sizes, number)
    chosen = [False] * len(whole)
    for c in range(clusters):
        members = sorted(np.flatnonzero(cell == c), key=lambda row: -distance[row])
        for row in members[: wanted[c]]:
            chosen[row] = True
    return chosen


def test_density_is_the_rule_read_out() -> None:
    rng = np.random.default_rng(4)
    embeddings, own = unit(rng, 400), lots(400)
    chosen, distance = density(embeddings, own, 120, clusters=8)
    assert chosen.tolist() == by_the_book(embeddings, own, 120, 8) and chosen.sum() == 120
    assert (distance >= 0).all()
    turn = rng.permutation(400)
    again, _ = density(embeddings[turn], own[turn], 120, clusters=8)
    assert again.tolist() == chosen[turn].tolist()
    assert density(embeddings, own, 999)[0].all()
    assert not density(embeddings[:0], own[:0], 5)[0].any()


def test_density_and_draws_are_the_rules_read_out_on_many_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(7)
    embeddings, own = unit(rng, 10_000), lots(10_000)
    chosen, _ = density(embeddings, own, 2_500, clusters=40)
    assert chosen.tolist() == by_the_book(embeddings, own, 2_500, 40) and chosen.sum() == 2_500
    turn = rng.permutation(10_000)
    again, _ = density(embeddings[turn], own[turn], 2_500, clusters=40)
    assert again.tolist() == chosen[turn].tolist()
    scores = np.round(rng.normal(size=10_000), 1)
    whole = soft_cap_draws(scores, own, 7_000, batch_size=2_000)
    assert whole.tolist() == plain_draws(scores, own, 7_000, 2_000, 0.15)
    monkeypatch.setattr(selection, "DRAWN_ROWS", 999)
    assert soft_cap_draws(scores, own, 7_000, batch_size=2_000).tolist() == whole.tolist()


def test_density_with_a_cold_softmax_takes_the_widest_cell_first() -> None:
    rng = np.random.default_rng(8)
    chosen, distance = density(unit(rng, 300), lots(300), 90, clusters=6, temperature=1e-4)
    assert chosen.sum() == 90 and np.isfinite(distance).all()


def test_wide_clusters_keep_a_larger_share_than_dense_ones() -> None:
    rng = np.random.default_rng(5)
    centres = np.eye(16)[:2]
    rows = np.repeat(centres, 200, axis=0)
    rows[:200] += 0.02 * rng.normal(size=(200, 16))
    rows[200:] += 0.25 * rng.normal(size=(200, 16))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    chosen, _ = density(rows.astype(np.float16), lots(400), 100, clusters=2)
    assert chosen[:200].sum() < 30 and chosen.sum() == 100


def plain_draws(
    scores: np.ndarray, own: np.ndarray, number: int, size: int, penalty: float
) -> list[int]:
    """Batches drawn one after the other, a row after the other."""
    draws = [0] * len(scores)
    left, batch = number, 0
    while left > 0:
        keys = []
        for row, score in enumerate(scores):
            noise = int(splitmix(own[row : row + 1] ^ splitmix(batch))[0] >> 11)
            keys.append(score - penalty * draws[row] - np.log(-np.log((noise + 0.5) / 2**53)))
        for row in sorted(range(len(scores)), key=lambda row: -keys[row])[: min(size, left)]:
            draws[row] += 1
        left, batch = left - size, batch + 1
    return draws


def test_draws_are_the_rule_read_out_and_repeat_good_rows() -> None:
    rng = np.random.default_rng(6)
    scores, own = rng.normal(size=90) * 2, lots(90)
    found = soft_cap_draws(scores, own, 200, batch_size=15, penalty=0.3)
    assert found.tolist() == plain_draws(scores, own, 200, 15, 0.3) and found.sum() == 200
    best = np.argsort(-scores)
    assert found[best[:20]].mean() > 2 * found[best[-20:]].mean()
    flat = soft_cap_draws(scores, own, 200, batch_size=15, penalty=50)
    assert flat.max() - flat.min() <= 1  # so great a penalty makes all rows equal
    assert soft_cap_draws(scores, own, 7, batch_size=100_000).sum() == 7
    assert soft_cap_draws(scores[:0], own[:0], 7).sum() == 0


def test_a_batch_is_drawn_by_the_softmax() -> None:
    scores = np.log(np.array([1.0, 2.0, 5.0]))
    own = lots(30_000)
    found = soft_cap_draws(np.tile(scores, 10_000), own, 300, penalty=0.0)
    shares = found.reshape(-1, 3).sum(axis=0) / 300
    np.testing.assert_allclose(shares, [1 / 8, 2 / 8, 5 / 8], atol=0.09)
