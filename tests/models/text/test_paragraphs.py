from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.text.paragraphs import clean_paragraph, sentences


def english(sentence: str) -> bool:
    return "hund" not in sentence.lower()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a dog on the grass", "a dog on the grass"),
        ("A dog sits. It is red. A dog sits.", "A dog sits. It is red."),
        ("A dog sits. a DOG sits! It runs.", "A dog sits. It runs."),
        ("A dog sits. It has a", "A dog sits."),
        ("A dog sits on the wall. Der Hund ist gross.", "A dog sits on the wall."),
        ("Ja Hund ja. A dog sits.", "Ja Hund ja. A dog sits."),
        ("Ein Hund ist gross.", ""),
        ("I'm sorry, I made a mistake. A dog sits.", "A dog sits."),
        ("A dog ### sits \ufffd here. ... !!", "A dog sits here."),
        ('He said "go." Then he went.', 'He said "go." Then he went.'),
        ("", ""),
        ("...", ""),
    ],
)
def test_what_a_paragraph_should_not_hold_goes(text: str, expected: str) -> None:
    assert clean_paragraph(text, english) == expected


def test_sentences_keep_their_ends() -> None:
    assert sentences("One. Two!  Three? four") == ["One.", "Two!", "Three?", "four"]


@given(st.text("ab .!?#\u00e9\n", max_size=60))
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    once = clean_paragraph(text, english)
    assert clean_paragraph(once, english) == once
    assert len(set(sentences(once))) == len(sentences(once))
