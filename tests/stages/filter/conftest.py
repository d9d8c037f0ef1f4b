from __future__ import annotations

import pytest
from helpers.blips import WORDS, save, save_clip, tokenizer_of
from transformers import BlipForImageTextRetrieval

from stages.filter import FilterConfig, FilterStage


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("filter")
    return save(folder, BlipForImageTextRetrieval, tokenizer_of(WORDS.split()))


@pytest.fixture(scope="session")
def stage(model: str) -> FilterStage:
    stage = FilterStage(FilterConfig(model=model, device="cpu"))
    stage.load()
    return stage


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    first, second = (tmp_path_factory.mktemp(name) for name in ("clip", "second"))
    return save_clip(first), save_clip(second, seed=1)
