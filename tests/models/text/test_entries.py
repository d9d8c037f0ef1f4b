from __future__ import annotations

from pathlib import Path

import pytest

from models.text.entries import Entries


def test_entries_are_found_word_by_word_whatever_the_case_and_punctuation() -> None:
    entries = Entries(["Red  Kite", "kite", "sea", "the red kite flies", "", "!"])
    assert entries(["The red-kite, over the SEA!", "seaside kites", "", "kite kite"]) == [
        ["red kite", "kite", "sea"],
        [],
        [],
        ["kite"],
    ]


def test_a_file_has_a_phrase_a_line(tmp_path: Path) -> None:
    path = tmp_path / "entries.txt"
    path.write_text("kite\n\nNew York\n", encoding="utf-8")
    assert Entries.load(str(path))(["a kite in new york"]) == [["kite", "new york"]]
    path.write_text("\n \n")
    with pytest.raises(ValueError, match=r"entries.txt holds no phrase"):
        Entries.load(str(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not UTF-8"):
        Entries.load(str(path))
