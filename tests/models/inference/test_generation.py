from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from models.inference.generation import from_nucleus, uniforms


@given(st.lists(st.integers(-(2**70), 2**70), min_size=1, max_size=4), st.integers(1, 3))
def test_the_random_numbers_of_a_row_are_its_own(seeds: list[int], num_captions: int) -> None:
    together = uniforms(seeds, num_captions, 5)
    assert together.shape == (len(seeds), num_captions, 5, 2)
    assert (together >= 0).all() and (together < 1).all()
    for i, seed in enumerate(seeds):
        np.testing.assert_array_equal(uniforms([seed], 7, 9)[0, :num_captions, :5], together[i])


def test_the_random_numbers_are_uniform_and_uncorrelated() -> None:
    numbers = uniforms(range(100), 10, 16)
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > 1e-3
    for axis in range(4):
        moved = np.roll(numbers, 1, axis)
        assert abs(np.corrcoef(numbers.ravel(), moved.ravel())[0, 1]) < 0.03


@given(st.data())
def test_a_token_of_the_nucleus_and_no_other_is_drawn(data: st.DataObject) -> None:
    top_p = data.draw(st.sampled_from([0.05, 0.5, 0.9, 1.0]))
    logits = data.draw(st.lists(st.integers(-6, 6), min_size=2, max_size=12))
    chances = torch.rand(500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = torch.tensor(logits, dtype=torch.float32).expand(500, -1)
    shares = torch.tensor(logits).double().softmax(0).tolist()
    for token in set(from_nucleus(rows, chances, top_p).tolist()):
        likelier = sum(share for share in shares if share > shares[token])
        assert likelier < top_p + 1e-6


@pytest.mark.parametrize("top_p", [0.4, 0.7, 0.9])
def test_a_nucleus_of_any_mass_keeps_the_shares_of_its_tokens(top_p: float) -> None:
    shares = torch.tensor([0.02, 0.04, 0.05, 0.06, 0.05, 0.2, 0.18, 0.3, 0.1])
    chances = torch.from_numpy(uniforms(range(100), 60, 1)).flatten(0, 2)
    drawn = from_nucleus(shares.log().expand(6000, -1), chances, top_p)
    inside = {0.4: [7, 5], 0.7: [7, 5, 6, 8], 0.9: [7, 5, 6, 8, 3, 2, 4]}[top_p]
    assert set(drawn.tolist()) == set(inside)
    counts = [int((drawn == token).sum()) for token in inside]
    expected = 6000 * shares[inside].double() / shares[inside].double().sum()
    assert stats.chisquare(counts, expected.numpy()).pvalue > 1e-3


def test_top_k_leaves_the_likeliest_alone() -> None:
    logits = torch.tensor([0.0, 3.0, 1.0, 2.0]).expand(400, 4)
    chances = torch.rand(400, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert set(from_nucleus(logits, chances, 1.0, 2).tolist()) == {1, 3}
    assert set(from_nucleus(logits, chances, 1.0, 9).tolist()) == {0, 1, 2, 3}


def test_a_temperature_sharpens_the_shares() -> None:
    shares = torch.tensor([0.2, 0.3, 0.5])
    chances = torch.from_numpy(uniforms(range(100), 60, 1)).flatten(0, 2)
    drawn = from_nucleus(shares.log().expand(6000, -1), chances, 1.0, temperature=0.5)
    counts = [int((drawn == token).sum()) for token in range(3)]
    expected = 6000 * shares.double() ** 2 / (shares.double() ** 2).sum()
    assert stats.chisquare(counts, expected.numpy(), sum_check=False).pvalue > 1e-3
