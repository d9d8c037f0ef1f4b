"""SigLIP: `objective: clip` with `loss: sigmoid`."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.contract import check_contract, learnt_by_heart, small
from helpers.contrasts import (
    check_that_hidden_patches_change_the_loss_in_training_alone,
    check_that_layers_computed_again_give_the_same_gradients,
    check_that_the_loss_is_that_of_the_stock_model,
)
from helpers.nano import CAPTIONS, batch_of, step_of
from torch.nn import functional
from transformers import AutoTokenizer, SiglipModel

from models.objectives.batch import Batch
from models.objectives.clip_config import ClipConfig
from models.objectives.siglip import SigmoidContrast, sigmoid_contrast


def config(tokenizer: str, **fields: Any) -> ClipConfig:
    found = small(ClipConfig, tokenizer, loss="sigmoid", **fields)
    assert isinstance(found, ClipConfig)
    return found


def make(tokenizer: str) -> Any:
    torch.manual_seed(0)
    return SigmoidContrast.from_pretrained("nano", tokenizer=tokenizer, max_text_tokens=12)


def test_the_contract_of_an_objective_is_kept(tokenizer: str, tmp_path: Path) -> None:
    check_contract(config(tokenizer), tmp_path)


def test_its_defaults_are_those_of_siglip_and_do_not_touch_clip() -> None:
    siglip = ClipConfig.of(loss="sigmoid")
    assert (siglip.lr, siglip.beta2, siglip.max_text_tokens) == (1e-3, 0.95, 64)
    assert siglip.written()["."].architecture == "SiglipModel"
    assert siglip.measurement()["loss"] == "sigmoid" and "loss" not in ClipConfig().measurement()
    assert ClipConfig.of(loss="sigmoid", lr=1.0).lr == 1.0
    assert ClipConfig().written()["."].architecture == "CLIPModel"


def test_the_first_loss_is_what_the_bias_says(tokenizer: str) -> None:
    n, scale, bias = 4, torch.tensor(10.0), torch.tensor(-10.0)
    images, texts = torch.eye(8)[:n], torch.eye(8)[n:]  # all cosines are 0
    loss = sigmoid_contrast(images, texts, torch.arange(n), scale, bias).item()
    right, wrong = math.log1p(math.exp(10)), math.log1p(math.exp(-10))
    assert loss == pytest.approx(right + (n - 1) * wrong)
    model = make(tokenizer)
    assert model.logged() == {"scale": pytest.approx(10), "bias": -10}


def test_another_text_of_the_same_image_is_neither_right_nor_wrong() -> None:
    torch.manual_seed(0)
    images, texts = (functional.normalize(torch.randn(3, 8), dim=-1) for _ in range(2))
    scale, bias = torch.tensor(3.0), torch.tensor(-1.0)
    logits = scale * images @ texts.T + bias
    signs = torch.tensor([[1, 0, -1], [0, 1, -1], [-1, -1, 1]])
    expected = -(functional.logsigmoid(logits * signs) * signs.abs()).sum() / 3
    found = sigmoid_contrast(images, texts, torch.tensor([7, 7, 9]), scale, bias)
    torch.testing.assert_close(found, expected)


def test_the_loss_is_that_of_the_stock_model(tokenizer: str) -> None:
    check_that_the_loss_is_that_of_the_stock_model(make(tokenizer), "sigmoid")


def test_stock_siglip_loads_what_is_written(tokenizer: str, tmp_path: Path) -> None:
    model = make(tokenizer).eval()
    model.write(tmp_path)
    stock = SiglipModel.from_pretrained(tmp_path).eval()
    reader = AutoTokenizer.from_pretrained(tmp_path)
    tokens = reader(CAPTIONS, padding="max_length", max_length=12, return_tensors="pt").input_ids
    batch = batch_of(model)
    assert torch.equal(tokens, batch.tokens)
    found = stock(tokens, batch.pixels)
    torch.testing.assert_close(found.text_embeds, model.embed_texts(batch.tokens))
    torch.testing.assert_close(found.image_embeds, model.embed_images(batch.pixels))


def test_sixteen_pairs_are_learnt_by_heart(tokenizer: str) -> None:
    model, batch = learnt_by_heart(config(tokenizer), 120)
    with torch.no_grad():
        cosines = model.embed_images(batch.pixels) @ model.embed_texts(batch.texts).T
    own = torch.arange(len(cosines))
    assert torch.equal(cosines.argmax(0), own) and torch.equal(cosines.argmax(1), own)


def test_hidden_patches_change_the_loss_in_training_alone(tokenizer: str) -> None:
    check_that_hidden_patches_change_the_loss_in_training_alone(make(tokenizer), "sigmoid")


def test_layers_computed_again_give_the_same_gradients(tokenizer: str) -> None:
    check_that_layers_computed_again_give_the_same_gradients(lambda: make(tokenizer), "sigmoid")


def test_other_sizes_than_the_models_are_refused(tokenizer: str, tmp_path: Path) -> None:
    make(tokenizer).write(tmp_path)
    with pytest.raises(ValueError, match="image_size must be 32"):
        SigmoidContrast.from_pretrained(tmp_path, image_size=64, max_text_tokens=12)
    with pytest.raises(ValueError, match="max_text_tokens must be 12"):
        SigmoidContrast.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="needs a tokenizer"):
        SigmoidContrast.from_pretrained("nano")


def test_a_batch_without_texts_is_refused(tokenizer: str) -> None:
    model = make(tokenizer)
    batch = Batch(pixels=batch_of(model).pixels, image_ids=torch.arange(4))
    with pytest.raises(ValueError, match="images alone"):
        model(batch, step_of())
