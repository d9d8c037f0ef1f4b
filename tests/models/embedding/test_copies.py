from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.embedding import copies, vectors
from models.embedding.cells import Cells
from models.embedding.copies import find_copies
from models.embedding.selection import density
from models.embedding.vectors import Float16s, blocks, cosines_with, highest, top


def unit(values: np.ndarray) -> Float16s:
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)


def scenes(number: int, size: int, seed: int, views: int = 3, noise: float = 0.02) -> Float16s:
    """Several views each of some scenes, in a random order."""
    rng = np.random.default_rng(seed)
    scene = rng.normal(size=(max(number // views, 1), size))
    rows = scene[rng.integers(0, len(scene), number)]
    return unit(rows + noise * np.sqrt(size) * rng.normal(size=rows.shape))


def lots(number: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**63, number).astype(np.uint64)


def by_the_book(embeddings: Float16s, least: float) -> tuple[list[bool], list[float]]:
    """One row after the other: it stays unless it is near a better one that stays."""
    whole = embeddings.astype(np.float64)
    staying: list[int] = []
    is_copy, cosine = [], []
    for row, one in enumerate(whole):
        best = max((float(whole[other] @ one) for other in staying), default=float("nan"))
        cosine.append(best)
        is_copy.append(best >= least)
        if not best >= least:
            staying.append(row)
    return is_copy, cosine


@given(st.integers(0, 60), st.integers(2, 8), st.integers(0, 99), st.floats(0.3, 0.99))
def test_copies_are_those_of_the_rule_read_out(
    number: int, size: int, seed: int, least: float
) -> None:
    embeddings = scenes(number, size, seed, noise=0.2) if number else np.zeros((0, 4), np.float16)
    whole = embeddings.astype(float)
    close = np.abs(whole @ whole.T - least) < 1e-5
    found = find_copies(embeddings, least, lots(number))
    is_copy, cosine = by_the_book(embeddings, least)
    if not close.any():
        assert found.is_copy.tolist() == is_copy
        np.testing.assert_allclose(found.cosine, np.array(cosine), atol=1e-5)


def test_it_is_exact_over_blocks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "ROWS", 7)
    embeddings = scenes(300, 16, 1)
    is_copy, cosine = by_the_book(embeddings, 0.9)
    found = find_copies(embeddings, 0.9, lots(300))
    assert found.is_copy.tolist() == is_copy and 100 < sum(is_copy) < 250
    np.testing.assert_allclose(found.cosine, np.array(cosine), atol=1e-5)
    near = found.nearest[found.is_copy]
    assert not found.is_copy[near].any()  # stars: what a copy is a copy of stays
    assert (near < np.flatnonzero(found.is_copy)).all()


def test_cells_find_nearly_all_copies_and_invent_none() -> None:
    embeddings = scenes(3000, 32, 2)
    exact = find_copies(embeddings, 0.9, lots(3000))
    found = find_copies(embeddings, 0.9, lots(3000), cells=40)
    assert (found.cosine[found.is_copy] >= np.float32(0.9)).all()
    assert found.is_copy.sum() >= 0.98 * exact.is_copy.sum()
    assert find_copies(embeddings, 0.9, lots(3000), cells=40).nearest.tolist() == (
        found.nearest.tolist()
    )
    every = find_copies(embeddings, 0.9, lots(3000), cells=40, probes=40)
    assert every.is_copy.tolist() == exact.is_copy.tolist()


def test_the_cells_do_not_depend_on_the_order_of_rows() -> None:
    embeddings, own = scenes(800, 16, 3), lots(800)
    order = np.random.default_rng(5).permutation(800)
    first = Cells.train(embeddings, 12, own)
    again = Cells.train(embeddings[order], 12, own[order])
    np.testing.assert_array_equal(first.centres, again.centres)
    np.testing.assert_array_equal(
        first.nearest(embeddings, 3)[order], again.nearest(embeddings[order], 3)
    )


def test_a_row_lies_in_the_cell_of_the_nearest_centre() -> None:
    embeddings = scenes(500, 16, 4)
    cells = Cells.train(embeddings, 9, lots(500))
    cosines = embeddings.astype(np.float32) @ cells.centres.T
    order = np.argsort(-cosines, axis=1, kind="stable")
    assert cells.nearest(embeddings)[:, 0].tolist() == order[:, 0].tolist()
    assert cells.nearest(embeddings, 4).tolist() == order[:, :4].tolist()
    np.testing.assert_allclose(np.linalg.norm(cells.centres, axis=1), 1, atol=1e-5)


def test_with_faiss_the_same_rows_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss", reason="the extra `faiss` is not installed")
    embeddings = scenes(4000, 32, 7)

    def chosen() -> list[np.ndarray]:
        found = find_copies(embeddings, 0.9, lots(4000), cells=60)
        stays = np.flatnonzero(~found.is_copy)
        some, _ = density(embeddings[stays], lots(4000)[stays], 500, clusters=20)
        return [found.is_copy, found.nearest, some]

    assert vectors._faiss() is not None
    given = chosen()
    monkeypatch.setattr(vectors, "_faiss", lambda: None)
    for one, other in zip(given, chosen(), strict=True):
        np.testing.assert_array_equal(one, other)


@given(st.integers(0, 99), st.integers(1, 40), st.integers(1, 5), st.sampled_from((0, 1e-7, 0.3)))
def test_float64_decides_which_others_are_nearest(
    seed: int, others: int, number: int, apart: float
) -> None:
    rng = np.random.default_rng(seed)
    centre = np.repeat(rng.normal(size=(-(-others // 3), 12)), 3, axis=0)[:others]
    centre = (centre + apart * rng.normal(size=centre.shape)).astype(np.float32)
    queries = scenes(50, 12, seed).astype(np.float32)
    number = min(number, others)
    exact = (queries[:, None].astype(float) * centre).sum(axis=2)
    order = np.lexsort((np.broadcast_to(np.arange(others), exact.shape), -exact))
    assert highest(queries, centre, number).tolist() == order[:, :number].tolist()
    alone = np.concatenate([highest(queries[i : i + 1], centre, number) for i in range(50)])
    assert alone.tolist() == order[:, :number].tolist()


def test_the_nearest_rows_are_found_exactly_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.embedding.vectors.blocks", lambda n: blocks(n, 13))
    embeddings = scenes(200, 8, 6)
    query = embeddings[17].astype(np.float32)
    rows, cosines = top(query, embeddings, 12)
    expected = embeddings.astype(np.float32) @ query
    assert sorted(expected)[::-1][:12] == pytest.approx(cosines.tolist(), abs=1e-6)
    assert rows[0] == 17 and expected[rows] == pytest.approx(cosines.tolist(), abs=1e-6)
    assert (
        len(top(query, embeddings[:3], 12)[0]) == 3 and len(top(query, embeddings[:0], 9)[0]) == 0
    )
    others = embeddings[:150].astype(np.float32)
    highest, nearest, norm = cosines_with(embeddings.astype(np.float32), others)
    whole = embeddings.astype(np.float64) @ others.T
    np.testing.assert_allclose(highest, whole.max(axis=1), atol=1e-5)
    np.testing.assert_allclose(norm, np.linalg.norm(whole, axis=1), rtol=1e-5)
    assert (whole[np.arange(200), nearest] >= whole.max(axis=1) - 1e-5).all()
