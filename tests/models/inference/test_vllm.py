"""A chat model in vLLM. These tests skip where vLLM is not installed; its build for CPUs serves."""

from __future__ import annotations

import pytest
import torch
from helpers import fakes
from helpers.vlms import save_released_llava

from models.inference.decoding import Settings

pytest.importorskip("vllm", reason="vLLM is an extra")
pytestmark = pytest.mark.slow

PROMPT = "Describe this image."
IMAGES = [fakes.jpeg(number) for number in range(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_released_llava(tmp_path_factory.mktemp("llava"), width=64)


@pytest.fixture(scope="module")
def captioner(folder: str):
    from models.inference.vllm import VllmCaptioner

    return VllmCaptioner.from_pretrained(folder, dtype="float32")


def asked(number: int) -> dict[str, list[str]]:
    return {"prompt": [PROMPT] * number}


def test_each_image_has_its_captions_and_a_broken_one_has_none(captioner) -> None:
    images = [IMAGES[0], b"no image", *IMAGES[1:]]
    settings = Settings(num_captions=2, max_tokens=12)
    written = captioner.caption(images, range(5), settings, **asked(5))
    assert [len(own) for own in written] == [2, 0, 2, 2, 2]
    texts = [caption.text for own in written for caption in own]
    assert all(len(text.split()) <= 12 for text in texts) and len(set(texts)) > 4


def test_the_same_seed_gives_the_same_caption_in_any_batch(captioner) -> None:
    settings = Settings(max_tokens=12)
    together = captioner.caption(IMAGES, range(4), settings, **asked(4))
    alone = [
        captioner.caption([image], [seed], settings, **asked(1))[0]
        for seed, image in enumerate(IMAGES)
    ]
    assert together == alone
    other = captioner.caption(IMAGES, range(4, 8), settings, **asked(4))
    assert other != together


def test_greedy_captions_are_those_of_transformers(captioner, folder: str) -> None:
    from models.inference.vlm import GenericCaptioner

    settings = Settings(decoding="greedy", max_tokens=12, temperature=1.0, repetition_penalty=1.0)
    stock = GenericCaptioner.from_pretrained(folder, device="cpu", dtype="float32")
    ours = captioner.caption(IMAGES, range(4), settings, **asked(4))
    with torch.inference_mode():
        theirs = stock.caption(IMAGES, range(4), settings, **asked(4))
    assert [[c.text for c in own] for own in ours] == [[c.text for c in own] for own in theirs]
