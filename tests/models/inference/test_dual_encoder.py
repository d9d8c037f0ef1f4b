from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.blips import drawn, save, tokenizer_of
from helpers.dual_encoders import SAVED
from PIL import Image
from transformers import AutoModel, BlipForImageTextRetrieval

from models.image.decode import ImageError
from models.inference.dual_encoder import ARCHITECTURES, DualEncoder

IMAGES = [drawn(seed) for seed in range(5)]
LONG = "two cats on a tree " * 30
TEXTS = [["a dog", "two cats on a tree"], [], ["a red house", LONG, "bird"], ["dog"], [""]]


@pytest.fixture(scope="module", params=sorted(SAVED))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return SAVED[request.param](tmp_path_factory.mktemp("dual") / request.param)


@pytest.fixture(scope="module")
def clip(folder: str) -> DualEncoder:
    return DualEncoder.from_pretrained(folder, dtype="float32", device="cpu")


def stock_logit(model: Any, clip: DualEncoder, image: bytes, text: str) -> float:
    """What transformers' own model says, its text padded as its documentation asks for."""
    padding: Any = "max_length" if model.config.model_type.startswith("siglip") else False
    tokens = clip.tokenizer(
        [text], return_tensors="pt", truncation=True, max_length=clip.max_text, padding=padding
    )
    if padding:
        tokens = {"input_ids": tokens["input_ids"]}
    opened = Image.open(io.BytesIO(image)).convert("RGB")
    pixels = clip.processor(opened, return_tensors="pt")
    with torch.inference_mode():
        return float(model(**tokens, **pixels).logits_per_image)


def test_every_family_that_is_known_is_tested() -> None:
    assert set(SAVED) == set(ARCHITECTURES)


def test_scores_are_the_stock_models_own_logits(clip: DualEncoder, folder: str) -> None:
    stock = AutoModel.from_pretrained(folder).eval()
    scores = clip.score(IMAGES, TEXTS, batch_size=2)
    assert [len(some) for some in scores] == [2, 0, 3, 1, 1]
    for image, texts, found in zip(IMAGES, TEXTS, scores, strict=True):
        for text, score in zip(texts, found, strict=True):
            logit = float(clip.logits(torch.tensor([score.cosine])))
            assert logit == pytest.approx(stock_logit(stock, clip, image, text), abs=1e-3)
    assert len({round(score.cosine, 4) for some in scores for score in some}) > 4


def test_a_text_that_is_cut_says_how_much_was_not_read(clip: DualEncoder) -> None:
    [[short, long]] = clip.score(IMAGES[:1], [["a dog", LONG]])
    tokens = len(clip.tokenizer(LONG)["input_ids"])
    assert (short.unread, long.unread) == (0, tokens - clip.max_text)
    assert clip.unread(["a dog", LONG]) == [0, tokens - clip.max_text]


def test_embeddings_have_the_cosines_of_the_scores(clip: DualEncoder) -> None:
    images, texts = clip.embed_images(IMAGES[:2]), clip.embed_texts(["a dog", LONG, "bird"])
    [expected, _] = clip.score(IMAGES[:2], [["a dog", LONG, "bird"], []])
    found = (texts @ images[0]).tolist()
    assert found == pytest.approx([match.cosine for match in expected], abs=1e-5)
    assert texts.norm(dim=-1).tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    with pytest.raises(ImageError):
        clip.embed_images([b"junk"])


def test_an_image_is_encoded_once_whatever_the_number_of_texts(clip: DualEncoder) -> None:
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


def test_a_checkpoint_of_another_kind_is_refused_with_those_that_are_read(tmp_path: Path) -> None:
    folder = save(tmp_path, BlipForImageTextRetrieval, tokenizer_of(["dog"]))
    with pytest.raises(ValueError, match=r"is a blip, not a dual encoder.*clip, metaclip_2, sig"):
        DualEncoder.from_pretrained(folder)
