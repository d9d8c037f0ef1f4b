import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.objectives.itc import contrast_loss, contrast_targets, hard_negatives


def test_targets_mix_the_truth_of_all_texts_of_an_image_with_the_momentum_model() -> None:
    similarity = torch.tensor([[0.0, math.log(2), 0.0], [math.log(2), 0.0, 0.0]])
    targets = contrast_targets(torch.tensor([5, 6]), torch.tensor([5, 6, 5]), similarity, 0.4)
    # Image 5 owns candidates 0 and 2; the momentum model believes 1/4, 1/2, 1/4 and 1/2, 1/4, 1/4.
    expected = torch.tensor([[0.4, 0.2, 0.4], [0.2, 0.7, 0.1]])
    torch.testing.assert_close(targets, expected)


def test_without_repeats_and_alpha_targets_are_one_hot() -> None:
    ids = torch.tensor([3, 1, 2])
    assert torch.equal(contrast_targets(ids, ids, torch.randn(3, 3), 0.0), torch.eye(3))


def test_contrast_loss_is_the_cross_entropy_with_soft_targets() -> None:
    similarity = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    targets = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    rows = [-0.5 * math.log(3 / 4) - 0.5 * math.log(1 / 4), math.log(2)]
    assert contrast_loss(similarity, targets).item() == pytest.approx(sum(rows) / 2)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=8),
    st.integers(0, 2**31),
    st.booleans(),
    st.sampled_from([0.0, 1e-4]),
)
@settings(deadline=None, max_examples=60)
def test_a_hard_negative_is_never_of_the_same_image(
    ids: list[int], seed: int, underflow: bool, floor: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    image_ids = torch.tensor(ids)
    similarity = torch.randn(len(ids), len(ids), generator=generator)
    if underflow:
        similarity = 1e4 * torch.eye(len(ids))
    drawn = hard_negatives(
        similarity, image_ids, image_ids, torch.rand(len(ids), generator=generator), floor
    )
    for row, column in enumerate(drawn.tolist()):
        if set(ids) == {ids[row]}:
            assert column == -1
        else:
            assert ids[column] != ids[row]


@pytest.mark.parametrize("floor", [0.0, 1e-4])
def test_hard_negatives_are_drawn_in_proportion_to_the_softmax(floor: float) -> None:
    similarity = torch.tensor([[9.0, math.log(3), 0.0]]).repeat(4000, 1)
    ids = torch.zeros(4000).long()  # every row is the image of column 0
    chances = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    drawn = hard_negatives(similarity, ids, torch.arange(3), chances, floor)
    assert set(drawn.tolist()) == {1, 2}
    weights = torch.tensor([3.0, 1.0]) / (math.exp(9) + 4) + floor
    share = (drawn == 1).float().mean()
    assert share.item() == pytest.approx((weights[0] / weights.sum()).item(), abs=0.03)


@given(st.floats(0.001, 0.5), st.integers(2, 40), st.integers(0, 2**31))
@settings(deadline=None, max_examples=40)
def test_the_colder_the_softmax_the_oftener_the_near_miss_is_drawn(
    temperature: float, count: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    cosine = torch.rand(1, count + 2, generator=generator) * 0.5 - 0.2
    cosine[0, :2] = torch.tensor([0.6, 0.4])  # the row's own and the near miss
    draws = 2000
    drawn = hard_negatives(
        (cosine / temperature).repeat(draws, 1),
        torch.zeros(draws).long(),
        torch.arange(count + 2),
        torch.rand(draws, generator=generator),
    )
    expected = (cosine[0, 1:].double() / temperature).softmax(0)[0].item()
    assert (drawn == 1).double().mean().item() == pytest.approx(expected, abs=0.05)


def test_the_least_and_the_greatest_chance_draw_the_first_and_the_last() -> None:
    similarity, ids = torch.zeros(2, 4), torch.tensor([5, 6])
    chances = torch.tensor([0.0, 1 - 2**-24])
    drawn = hard_negatives(similarity, ids, torch.tensor([5, 7, 8, 6]), chances)
    assert drawn.tolist() == [1, 2]


def test_the_gradient_of_contrast_is_probability_less_target_over_the_rows() -> None:
    similarity = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]], requires_grad=True)
    contrast_loss(similarity, torch.tensor([[0.6, 0.4], [1.0, 0.0]])).backward()
    expected = torch.tensor([[0.75 - 0.6, 0.25 - 0.4], [0.5 - 1.0, 0.5]]) / 2
    torch.testing.assert_close(similarity.grad, expected)


def test_local_negatives_are_of_the_own_stream() -> None:
    ids, chances = torch.arange(8), torch.rand(8, generator=torch.Generator().manual_seed(0))
    drawn = hard_negatives(torch.zeros(8, 8), ids, ids, chances, streams=2)
    assert all(row // 4 == column // 4 and row != column for row, column in enumerate(drawn))
    same = torch.tensor([5] * 4 + [0, 1, 2, 3])
    assert (
        hard_negatives(torch.zeros(8, 8), same, same, chances, streams=2)[:4].tolist() == [-1] * 4
    )
