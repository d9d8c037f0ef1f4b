from __future__ import annotations

import pytest


@pytest.fixture
def nano(monkeypatch: pytest.MonkeyPatch) -> None:
    """The size `nano`, of BLIP and of CLIP."""
    from nano import NANO

    from models.sizes import BLIP_SIZES, CLIP_SIZES

    for sizes in (BLIP_SIZES, CLIP_SIZES):
        monkeypatch.setitem(sizes, "nano", NANO)


@pytest.fixture(scope="session")
def saved_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    from blips import WORDS, tokenizer_of

    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer_of(WORDS.split()).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def tokenizer(nano: None, saved_tokenizer: str) -> str:
    """The folder of a tokenizer for `nano`."""
    return saved_tokenizer
