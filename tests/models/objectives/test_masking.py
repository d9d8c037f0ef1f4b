import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.objectives.masking import IGNORED, distilled, kept_patches, kept_paths, mask_tokens


def test_a_token_is_masked_replaced_or_kept_by_its_chances() -> None:
    tokens = torch.tensor([[2, 7, 8, 9, 10, 0]])
    chances = torch.tensor(
        [
            [
                [0.0, 0.0, 0.0],  # [CLS] is never asked for
                [0.14, 0.79, 0.0],  # [MASK]
                [0.14, 0.85, 0.55],  # token 11 of 20
                [0.14, 0.95, 0.0],  # itself
                [0.15, 0.0, 0.0],  # not asked for
                [0.0, 0.0, 0.0],  # padding
            ]
        ]
    )
    read, labels = mask_tokens(tokens, chances, special=(0, 2), mask=4, vocabulary=20)
    assert read.tolist() == [[2, 4, 11, 9, 10, 0]]
    assert labels.tolist() == [[IGNORED, 7, 8, 9, IGNORED, IGNORED]]


def test_fifteen_in_a_hundred_are_asked_for_and_eight_in_ten_of_them_masked() -> None:
    tokens = torch.full((100, 100), 7)
    chances = torch.rand(100, 100, 3, generator=torch.Generator().manual_seed(0))
    read, labels = mask_tokens(tokens, chances, special=(), mask=4, vocabulary=20)
    asked = labels != IGNORED
    assert asked.float().mean().item() == pytest.approx(0.15, abs=0.01)
    assert (read[asked] == 4).float().mean().item() == pytest.approx(0.8, abs=0.03)
    assert (read[~asked] == 7).all()


def test_distillation_worked_by_hand() -> None:
    logits = torch.tensor([[math.log(2), 0.0, 0.0]], requires_grad=True)
    momentum = torch.tensor([[0.0, 0.0, math.log(2)]])
    loss = distilled(logits, torch.tensor([0]), momentum, 0.4)
    # Probabilities 1/2, 1/4, 1/4; the momentum model's 1/4, 1/4, 1/2.
    expected = 0.6 * math.log(2) + 0.4 * (math.log(2) / 4 + 3 * math.log(4) / 4)
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    target = torch.tensor([[0.6 + 0.1, 0.1, 0.2]])
    torch.testing.assert_close(logits.grad, torch.tensor([[0.5, 0.25, 0.25]]) - target)


def test_nothing_asked_for_is_no_loss() -> None:
    empty = torch.zeros(0, 5, requires_grad=True)
    assert distilled(empty, torch.zeros(0).long(), torch.zeros(0, 5), 0.4).item() == 0.0


@given(st.integers(1, 40), st.floats(0, 0.99), st.integers(0, 2**31))
@settings(deadline=None, max_examples=40)
def test_a_share_of_the_patches_stays_in_order(patches: int, masked: float, seed: int) -> None:
    chances = torch.rand(5, patches, generator=torch.Generator().manual_seed(seed))
    kept = kept_patches(chances, masked)
    assert kept.shape == (5, patches - int(masked * patches))
    for row in kept.tolist():
        assert row == sorted(set(row))
        assert row[0] >= 0 and row[-1] < patches


def test_paths_are_dropped_by_depth_and_keep_their_expectation() -> None:
    chances = torch.rand(20_000, 5, 2, generator=torch.Generator().manual_seed(0))
    paths = kept_paths(chances, 0.4)
    for layer, rate in enumerate((0.0, 0.1, 0.2, 0.3, 0.4)):
        own = paths[:, layer]
        assert set(own.unique().tolist()) <= {0.0, torch.tensor(1 / (1 - rate)).item()}
        assert (own == 0).float().mean().item() == pytest.approx(rate, abs=0.01)
        assert own.mean().item() == pytest.approx(1.0, abs=0.02)
