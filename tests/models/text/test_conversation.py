"""Conversations as one text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.text.conversation import Turn, as_text, turns_of

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(st.lists(st.builds(Turn, TEXTS, TEXTS), min_size=1, max_size=4))
def test_turns_come_back_as_they_were(turns: list[Turn]) -> None:
    assert turns_of(as_text(turns)) == turns


@pytest.mark.parametrize(
    "text", ["a red dog", "", '{"turns": ', '{"turns": 3}', '{"turns": [["a"]]}', '{"turns": []}']
)
def test_any_other_text_is_no_conversation(text: str) -> None:
    assert turns_of(text) is None
