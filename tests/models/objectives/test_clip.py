import math
from pathlib import Path

import pytest
import torch
from helpers.blips import WORDS, tokenizer_of
from helpers.contract import check_contract, small
from helpers.contrasts import (
    check_that_hidden_patches_change_the_loss_in_training_alone,
    check_that_layers_computed_again_give_the_same_gradients,
    check_that_the_loss_is_that_of_the_stock_model,
)
from helpers.nano import CAPTIONS, NANO, batch_of, step_of
from transformers import AutoTokenizer, CLIPModel

from models.objectives.clip import Contrastive, info_nce
from models.objectives.clip_config import ClipConfig
from models.objectives.sizes import clip_config


def test_the_contract_of_an_objective_is_kept(tokenizer: str, tmp_path: Path) -> None:
    check_contract(small(ClipConfig, tokenizer), tmp_path)


def make(tokenizer: str) -> Contrastive:
    torch.manual_seed(0)
    return Contrastive.from_pretrained("nano", tokenizer=tokenizer)


def test_the_loss_and_its_gradient_worked_by_hand() -> None:
    images = torch.eye(2)
    texts = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    scale = torch.tensor(math.log(3), requires_grad=True)
    # Cosines are 1, 1 and 0, 0. By image: 1/2 each; by text: 3/4 for the first, 1/4 the second.
    loss = info_nce(images, texts, scale)
    expected = (math.log(2) + (-math.log(3 / 4) - math.log(1 / 4)) / 2) / 2
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    # d/d scale of -log softmax is the expected cosine less that of the own partner.
    by_text = ((3 / 4 - 1) + (3 / 4 - 0)) / 2
    assert scale.grad.item() == pytest.approx((0 + by_text) / 2)


def test_the_loss_is_that_of_the_stock_model(tokenizer: str) -> None:
    check_that_the_loss_is_that_of_the_stock_model(make(tokenizer), "clip")


def test_stock_clip_loads_what_is_written(tokenizer: str, tmp_path: Path) -> None:
    model = make(tokenizer).eval()
    model.write(tmp_path)
    stock = CLIPModel.from_pretrained(tmp_path).eval()
    tokens = AutoTokenizer.from_pretrained(tmp_path)(CAPTIONS, padding=True, return_tensors="pt")
    pixels = batch_of(model).pixels
    found = stock(**tokens, pixel_values=pixels)
    ours = batch_of(model)
    torch.testing.assert_close(found.text_embeds, model.embed_texts(ours.tokens))
    torch.testing.assert_close(found.image_embeds, model.embed_images(pixels))
    again = Contrastive.from_pretrained(tmp_path)
    assert again.temperature.item() == pytest.approx(0.07)


def test_the_scale_is_kept_at_a_hundred(tokenizer: str) -> None:
    model = make(tokenizer)
    with torch.no_grad():
        model.model.logit_scale.fill_(9.0)
    model(batch_of(model), step_of())
    assert model.model.logit_scale.item() == pytest.approx(math.log(100))
    assert model.temperature.item() == pytest.approx(0.01)


def test_hidden_patches_change_the_loss_in_training_alone(tokenizer: str) -> None:
    check_that_hidden_patches_change_the_loss_in_training_alone(make(tokenizer), "clip")


def test_layers_computed_again_give_the_same_gradients(tokenizer: str) -> None:
    check_that_layers_computed_again_give_the_same_gradients(lambda: make(tokenizer), "clip")


def test_a_tokenizer_whose_texts_have_no_end_is_refused(tmp_path: Path) -> None:
    reader = tokenizer_of(WORDS.split())
    reader.sep_token = None
    with pytest.raises(ValueError, match="reads a text at its last token"):
        clip_config(NANO, reader)


def test_another_image_size_than_the_models_is_refused(tokenizer: str, tmp_path: Path) -> None:
    make(tokenizer).write(tmp_path)
    with pytest.raises(ValueError, match="image_size must be 32"):
        Contrastive.from_pretrained(tmp_path, image_size=64)
    with pytest.raises(ValueError, match="needs a tokenizer"):
        Contrastive.from_pretrained("nano")
