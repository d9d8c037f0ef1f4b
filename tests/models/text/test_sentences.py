from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.text.sentences import MAX_SENTENCES, split_sentences


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("...", ["..."]),
        ("a photo | stock", ["a photo | stock"]),
        ("a red ball. two blue stars in the sea.", ["a red ball. ", "two blue stars in the sea."]),
        ("A dog runs!  Why? It is late... ok", ["A dog runs!  ", "Why? ", "It is late... ", "ok"]),
        (
            'He said "No." Then (quietly.) he left.',
            ['He said "No." ', "Then (quietly.) ", "he left."],
        ),
        ("Mr. Fox sits in St. Ives. Dr. Owl", ["Mr. Fox sits in St. Ives. ", "Dr. Owl"]),
        ("J. K. Rowling in the U.S. Army", ["J. K. Rowling in the U.S. Army"]),
        ("at 5.30 p.m. on the mat. pole no. 7", ["at 5.30 p.m. on the mat. ", "pole no. 7"]),
        ("it was no. he left", ["it was no. ", "he left"]),
        ("a cup of vitamin c. a spoon", ["a cup of vitamin c. ", "a spoon"]),
        ("see www.foo.com and 3.5 m. done", ["see www.foo.com and 3.5 m. ", "done"]),
        ("1. a dog runs. 2. a cat sits.", ["1. a dog runs. ", "2. a cat sits."]),
        ("A title\n\nIt shows a dog", ["A title\n\n", "It shows a dog"]),
        ("it has\n- a dog\n- a cat", ["it has\n", "- a dog\n", "- a cat"]),
        ("a line\nthat goes on", ["a line\nthat goes on"]),
        ("a red ball. . ...", ["a red ball. . ..."]),
        ("一只狗在跑。它是棕色的\uff01", ["一只狗在跑。", "它是棕色的\uff01"]),
        ("「はい。」と言った。", ["「はい。」", "と言った。"]),
        ("एक कुत्ता है। वह भूरा है।", ["एक कुत्ता है। ", "वह भूरा है।"]),
        ("هل هذا كلب؟ نعم هو كلب.", ["هل هذا كلب؟ ", "نعم هو كلب."]),
    ],
)
def test_sentences_end_where_readers_end_them(text: str, parts: list[str]) -> None:
    assert split_sentences(text) == parts


@given(st.text(st.sampled_from("ab Z.!?\n-\"')1。।"), max_size=60), st.integers(1, 5))
def test_the_parts_joined_are_the_text_and_each_has_a_letter(text: str, most: int) -> None:
    parts = split_sentences(text, most)
    assert "".join(parts) == text
    assert len(parts) <= most
    if len(parts) > 1:
        assert all(any(map(str.isalpha, part)) for part in parts)


@pytest.mark.parametrize("unit", [". ", '."', "...", "a. ", "\n ", "\n- ", "。", " "])
def test_a_long_run_of_marks_is_split_in_one_pass(unit: str) -> None:
    text = unit * (200_000 // len(unit)) + "a"
    parts = split_sentences(text)
    assert "".join(parts) == text and len(parts) <= MAX_SENTENCES
