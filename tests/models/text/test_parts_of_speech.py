from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import spacy

from models.text.parts_of_speech import PartsOfSpeech


def test_the_parts_of_each_caption_come_in_order(tmp_path: Path) -> None:
    nlp = spacy.blank("en")
    ruler: Any = nlp.add_pipe("attribute_ruler")
    for tag, word in (("NOUN", "dog"), ("DET", "the"), ("ADP", "on")):
        ruler.add([[{"LOWER": word}]], {"POS": tag})
    nlp.to_disk(tmp_path)
    parts = PartsOfSpeech(str(tmp_path), batch_size=2)
    captions = ["The dog", "on dog", "", "dog " * 1_000_000, "The " + "x " * 600 + "dog"]
    assert [one - {""} for one in parts(captions)] == [
        {"DET", "NOUN"},
        {"ADP", "NOUN"},
        set(),
        {"NOUN"},
        {"DET"},
    ]
    assert list(parts([])) == []


def test_a_pipeline_without_parts_of_speech_is_refused(tmp_path: Path) -> None:
    spacy.blank("en").to_disk(tmp_path)
    with pytest.raises(ValueError, match="does not tag parts of speech; use one with a tagger"):
        PartsOfSpeech(str(tmp_path))
    with pytest.raises(OSError):
        PartsOfSpeech("nowhere_sm")
