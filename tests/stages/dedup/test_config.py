from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from stages.dedup import DedupConfig


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"dedup\.max_hamming must be from 0 to 16, got 20"):
        DedupConfig(max_hamming=20)
    with pytest.raises(ValueError, match=r"dedup\.bands x dedup\.rows must be at most 128"):
        DedupConfig(bands=32, rows=8)
    with pytest.raises(ValueError, match=r"dedup\.min_jaccard"):
        DedupConfig(min_jaccard=1.5)
    with pytest.raises(ValidationError):
        TypeAdapter(DedupConfig).validate_python({"threshold": 3})
    assert TypeAdapter(DedupConfig).validate_python({}) == DedupConfig()
    assert DedupConfig(max_hamming=1).measurement() == DedupConfig().measurement() == {}
