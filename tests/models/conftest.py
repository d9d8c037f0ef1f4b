from __future__ import annotations

import pytest


@pytest.fixture
def nano(monkeypatch: pytest.MonkeyPatch) -> None:
    """The size `nano`, of BLIP and of CLIP."""
    from helpers.nano import stand_in

    stand_in(monkeypatch)


@pytest.fixture(scope="session")
def saved_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    from helpers.blips import WORDS, save_tokenizer

    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"), WORDS.split())


@pytest.fixture
def tokenizer(nano: None, saved_tokenizer: str) -> str:
    """The folder of a tokenizer for `nano`."""
    return saved_tokenizer
