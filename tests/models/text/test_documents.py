import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.text.documents import measure_prose


def test_counts_by_hand():
    found = measure_prose(["the cat sat", "- the dog ...", "the cat sat"])
    assert found.words == 10
    assert found.word_length == pytest.approx(28 / 10)
    assert found.symbols == pytest.approx(1 / 10)
    assert found.bullets == pytest.approx(1 / 3)
    assert found.ellipses == pytest.approx(1 / 3)
    assert found.alphabetic == pytest.approx(8 / 10)
    assert found.stop_words == 1
    assert found.duplicate_lines == pytest.approx(1 / 3)
    assert found.duplicate_line_characters == pytest.approx(11 / 35)


def test_ngrams_by_hand():
    # "a b" three times (6 of 7 characters), "a b a" twice with one shared word.
    found = measure_prose(["a b a b a b c"])
    assert found.top_ngrams[0] == pytest.approx(6 / 7)
    assert found.top_ngrams[1] == pytest.approx(6 / 7)
    assert found.duplicate_ngrams == (0,) * 6
    twice = measure_prose(["one two three four five", "one two three four five"])
    assert twice.duplicate_ngrams[0] == pytest.approx(0.5)
    assert twice.duplicate_ngrams[1] == 0


def test_an_empty_text_has_nothing():
    found = measure_prose([" ", ""])
    assert found.words == 0 and found.top_ngrams == (0, 0, 0)


@given(st.lists(st.text(max_size=60), max_size=20))
def test_shares_are_shares(lines):
    found = measure_prose(lines)
    for name in ("bullets", "ellipses", "alphabetic", "duplicate_lines"):
        assert 0 <= getattr(found, name) <= 1
    assert all(0 <= share <= 1 for share in found.top_ngrams + found.duplicate_ngrams)
