from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from helpers.blips import drawn, save, save_clip, tokenizer_of
from PIL import Image
from transformers import BlipForImageTextRetrieval, CLIPModel

from models.inference.dual_encoder import DualEncoder

IMAGES = [drawn(seed) for seed in range(5)]
TEXTS = [["a dog", "two cats on a tree"], [], ["a red house", "a " * 90, "bird"], ["dog"], [""]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(folder: str) -> DualEncoder:
    return DualEncoder.from_pretrained(folder, dtype="float32")


def test_scores_are_the_stock_models_own_similarity(clip: DualEncoder, folder: str) -> None:
    stock = CLIPModel.from_pretrained(folder).eval()
    scores = clip.score(IMAGES, TEXTS, batch_size=2)
    assert [len(some) for some in scores] == [2, 0, 3, 1, 1]
    for image, texts, found in zip(IMAGES, TEXTS, scores, strict=True):
        for text, score in zip(texts, found, strict=True):
            tokens = clip.tokenizer([text], return_tensors="pt", truncation=True, max_length=77)
            opened = Image.open(io.BytesIO(image)).convert("RGB")
            pixels = clip.processor(opened, return_tensors="pt")["pixel_values"]
            with torch.inference_mode():
                logits = stock(**tokens, pixel_values=pixels).logits_per_image
                similarity = float(logits / stock.logit_scale.exp())
            assert score.cosine == pytest.approx(similarity, abs=1e-5)
    assert len({round(score.cosine, 4) for some in scores for score in some}) > 4


def test_an_image_is_seen_once_whatever_the_number_of_texts(clip: DualEncoder) -> None:
    seen = []
    hook = clip.model.vision_model.register_forward_hook(lambda *_: seen.append(1))
    clip.score(IMAGES[:1], [["a dog", "a cat", "a house"]])
    hook.remove()
    assert len(seen) == 1


def test_an_image_that_does_not_open_gets_no_scores(clip: DualEncoder) -> None:
    assert clip.score([b"junk", IMAGES[0]], [["a dog"], ["a dog"]])[0] == []


def test_scores_need_the_texts_of_each_image(clip: DualEncoder) -> None:
    with pytest.raises(ValueError, match="texts"):
        clip.score(IMAGES[:2], [["a dog"]])


def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, BlipForImageTextRetrieval, tokenizer_of(["dog"]))
    with pytest.raises(ValueError, match="a blip and not a dual encoder"):
        DualEncoder.from_pretrained(folder)
