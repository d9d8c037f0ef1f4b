from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from models.inference.decoding import Settings


@pytest.mark.slow
def test_settings_need_no_torch() -> None:
    code = "import sys, models.inference.decoding; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_captions": 2, "decoding": "greedy"}, "num_captions"),
        ({"num_captions": 4, "decoding": "beam"}, "num_captions"),
        ({"num_captions": 0}, "num_captions"),
        ({"temperature": 0.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**wrong)
