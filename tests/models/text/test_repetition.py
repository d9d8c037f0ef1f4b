from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.text.repetition import repeats_at_end

THINGS = st.sampled_from(["a", "dog", "sits", "on", "the", "green", "grass"])
WORDS = st.lists(THINGS, min_size=1, max_size=9)


@given(WORDS, WORDS, st.integers(4, 9), st.data())
def test_a_loop_is_found_wherever_it_is_cut_off(
    before: list[str], loop: list[str], times: int, data: st.DataObject
) -> None:
    times = max(times, -(-16 // len(loop)))
    cut = data.draw(st.integers(0, len(loop)))
    assert repeats_at_end(" ".join([*before, *loop * times, *loop[:cut]]))


@given(st.lists(st.integers(0, 10**9), unique=True, max_size=60))
def test_words_that_differ_are_no_loop(numbers: list[int]) -> None:
    assert not repeats_at_end(" ".join(map(str, numbers)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ha ha ha ha ha",
        "The sign says stop. The sign says stop. The sign says stop.",
        "A red house, a red car, a red boat and a red bicycle stand beside a red river, and a red "
        "sun sets over a red field with a red fence and a red gate in a red frame.",
    ],
)
def test_what_people_write_is_no_loop(text: str) -> None:
    assert not repeats_at_end(text)


def test_a_loop_of_chinese_has_no_blanks() -> None:
    assert repeats_at_end("一只狗" + "在草地上" * 6)
    assert not repeats_at_end("一只狗在绿色的草地上奔跑旁边有一座红色的房子")


def test_a_loop_that_ended_is_none() -> None:
    assert not repeats_at_end("no " * 30 + "and then it ended with words of its own")
