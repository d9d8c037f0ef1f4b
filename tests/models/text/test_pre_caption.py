from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from models.text.pre_caption import pre_caption

WORDS = st.lists(st.sampled_from(["a", "red", "dog's", "t-shirt,", "cat?", "été"]), max_size=60)
DRESS = st.text('.!"()*#:;~ \t\n', max_size=3)


def test_captions_are_prepared_as_blip_does() -> None:
    assert pre_caption('A "Dog" runs, (fast): look!  #1') == "a dog runs, fast look 1"
    assert pre_caption("It's a T-shirt; 100% cotton?\n") == "it's a t-shirt 100% cotton?"
    assert pre_caption(' "..." ') == ""


@given(WORDS, st.lists(DRESS, min_size=61, max_size=61))
def test_case_marks_and_spaces_say_nothing_and_no_word_is_lost(
    words: list[str], dress: list[str]
) -> None:
    dressed = "".join(f"{mark} {word}" for mark, word in zip(dress, words, strict=False))
    assert pre_caption(dressed.upper() + dress[-1]) == " ".join(words)


@given(st.text())
def test_to_prepare_a_prepared_caption_changes_nothing(caption: str) -> None:
    prepared = pre_caption(caption)
    assert pre_caption(prepared) == prepared
