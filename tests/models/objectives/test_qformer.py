"""BLIP-2's first stage: masks, first losses, pairs learnt by heart, and the stock class."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.blips import drawn
from helpers.contract import HEART, check_contract, learnt_by_heart, small
from helpers.nano import NANO, batch_of, stand_in, step_of
from helpers.starts import blip_of
from transformers import (
    BertConfig,
    BertForMaskedLM,
    Blip2ForImageTextRetrieval,
    BlipForImageTextRetrieval,
)

from models.inference.decoding import Settings
from models.inference.generation import Reread, write
from models.inference.trained import QFormer as Reader
from models.objectives.qformer import QFormer, generation_mask
from models.objectives.qformer_config import QFormerConfig


def config(tokenizer: str, **fields: Any) -> Any:
    return small(QFormerConfig, tokenizer, **fields)


def make(tokenizer: str, **fields: Any) -> Any:
    """A nano Q-Former whose weights are large enough to matter."""
    torch.manual_seed(0)
    model = config(tokenizer, **fields).build().eval()
    with torch.no_grad():
        for parameter in model.trained().values():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    return model


def test_the_contract_of_an_objective_is_kept(tokenizer: str, tmp_path: Path) -> None:
    check_contract(config(tokenizer), tmp_path)


def test_the_first_losses_are_those_of_a_guess(tokenizer: str) -> None:
    model = make(tokenizer)
    with torch.no_grad():
        model.model.vision_projection.weight.zero_()
        model.model.itm_head.weight.zero_()
        model.head.dense.weight.zero_()
        model.head.dense.bias.zero_()
        model.head.norm.bias.zero_()
    losses = model(batch_of(model), step_of(0))
    assert losses["itc"].item() == pytest.approx(math.log(4))
    assert losses["itm"].item() == pytest.approx(math.log(2))
    assert losses["itg"].item() == pytest.approx(math.log(len(model.tokenizer)), rel=1e-5)


def test_contrast_takes_the_query_most_like_the_text_and_smooths_its_targets(
    tokenizer: str,
) -> None:
    model = make(tokenizer)
    batch = batch_of(model)
    images, texts = model.embed_images(batch.pixels), model.embed_texts(batch.texts)
    cosines = torch.stack([(images @ text).amax(1) for text in texts], 1) / model.temperature
    own = torch.arange(4)
    expected = sum(
        torch.nn.functional.cross_entropy(side, own, label_smoothing=0.1)
        for side in (cosines, cosines.T)
    )
    found = model(batch, step_of(0))["itc"]
    torch.testing.assert_close(found, expected / 2)


def test_the_mask_of_generation_is_the_papers() -> None:
    allowed = generation_mask(1, 2, 3, torch.device("cpu"))[0, 0] == 0
    expected = [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1] * 5]
    assert allowed.int().tolist() == expected


def test_a_changed_token_moves_what_it_may(tokenizer: str) -> None:
    model = make(tokenizer)
    batch = batch_of(model, ["a red dog on the house"])
    features = model.remember(batch.pixels)
    changed = batch.texts.clone()
    changed[0, 3] = model.tokenizer.convert_tokens_to_ids("cat")
    length, queries = changed.shape[1], model.queries

    def read(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mask = generation_mask(1, queries, length, torch.device("cpu"))
        return model._read(features, tokens, mask)[0], model.match(tokens, features)

    with torch.no_grad():
        (before, matched), (after, other) = read(batch.texts), read(changed)
    moved = (before - after).abs().amax(1) > 1e-6
    assert moved.tolist() == [False] * queries + [place >= 3 for place in range(length)]
    assert (matched - other).abs().max() > 1e-5  # matching: queries see the text
    # Contrast: the text does not see the image, nor the image the text.
    assert torch.equal(model.embed_images(batch.pixels), model._embed_queries(features))


def test_texts_do_not_see_their_padding(tokenizer: str) -> None:
    model = make(tokenizer)
    alone = model.tokenize(["a red dog"], 24)
    padded = model.tokenize(["a red dog", "two big blue birds on the big green house"], 24)[:1]
    memory = model.remember(batch_of(model, ["a"]).pixels)
    torch.testing.assert_close(model.embed_texts(padded), model.embed_texts(alone))
    torch.testing.assert_close(model.match(padded, memory), model.match(alone, memory))


def test_the_image_encoder_is_frozen_and_lacks_its_last_layer(tokenizer: str) -> None:
    model = make(tokenizer).train()
    vision = model.model.vision_model
    assert not vision.training and len(vision.encoder.layers) == 1
    source = BlipForImageTextRetrieval.from_pretrained(f"{blip_of(tokenizer)}/captioner")
    layer = source.vision_model.encoder.layers[0].state_dict()
    for name, value in vision.encoder.layers[0].state_dict().items():
        assert torch.equal(value, layer[name])
    trained = {name for name in model.trained() if "vision_model" in name}
    assert trained == {f"model.vision_model.post_layernorm.{name}" for name in ("weight", "bias")}
    sum(model(batch_of(model), step_of(0)).values()).backward()
    assert vision.post_layernorm.weight.grad.abs().sum() > 0
    assert all(p.grad is not None for p in model.trained().values())


def test_stock_transformers_gives_the_same_numbers(tokenizer: str, tmp_path: Path) -> None:
    model = make(tokenizer)
    model.write(tmp_path)
    stock = Blip2ForImageTextRetrieval.from_pretrained(tmp_path).eval()
    batch = batch_of(model)
    mask = (batch.texts != model.pad).long()
    with torch.no_grad():
        found = stock(batch.pixels, batch.texts, mask).logits_per_image
        images, texts = model.embed_images(batch.pixels), model.embed_texts(batch.texts)
        torch.testing.assert_close((images @ texts.T).amax(1), found)
        logits = stock(batch.pixels, batch.texts, mask, use_image_text_matching_head=True)
        expected = logits.logits_per_image
        torch.testing.assert_close(model.match(batch.texts, model.remember(batch.pixels)), expected)


def test_sixteen_pairs_are_learnt_by_heart(tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, dataclasses.replace(NANO, spread=0.25))
    model, batch = learnt_by_heart(config(tokenizer, label_smoothing=0.0), 250)
    with torch.no_grad():
        cosines = (model.embed_images(batch.pixels) @ model.embed_texts(batch.texts).T).amax(1)
        settings = Settings(decoding="beam", max_length=8, min_length=0)
        begun = torch.tensor([model.begin])
        decoder = Reread(model.next_logits, model.remember(batch.pixels))
        ids = write(decoder, begun, [0] * 16, settings, end=model.end, pad=model.pad)[:, 0]
        matching = model(batch, step_of(0))["itm"].item()
    own = torch.arange(16)
    assert torch.equal(cosines.argmax(0), own) and torch.equal(cosines.argmax(1), own)
    assert model.tokenizer.batch_decode(ids, skip_special_tokens=True) == list(HEART)
    # Two in three are wrong, and the wrong ones are the hardest there are.
    assert matching < 0.6 < -math.log(1 / 3) / 3 - 2 * math.log(2 / 3) / 3


def test_what_is_trained_is_what_the_filter_runs(tokenizer: str, tmp_path: Path) -> None:
    model = make(tokenizer)
    model.write(tmp_path)
    reader = Reader.from_pretrained(str(tmp_path), dtype="float32")
    images, texts = [drawn(seed) for seed in range(2)], ["A red dog.", "two cats"]
    pixels = model.preprocess(images)
    tokens = model.tokenize([model.prepare(text) for text in texts], 24)
    cosines = (model.embed_images(pixels) @ model.embed_texts(tokens).T).amax(1)
    memory = model.remember(pixels)
    for image, own in enumerate(reader.score(images, [texts] * 2)):
        logits = model.match(tokens, memory[[image, image]]).softmax(1)[:, 1]
        assert [match.itm for match in own] == pytest.approx(logits.tolist(), abs=1e-5)
        assert [match.itc for match in own] == pytest.approx(cosines[image].tolist(), abs=1e-5)
    assert reader.score([b"junk", images[0]], [["a"], []]) == [[], []]
    # It reads as many tokens as in training, and writes as many as it has places for.
    assert (reader.max_text, reader.longest) == (12, NANO.positions)
    assert reader.unread(["a " * 20]) == [10]


def test_it_starts_from_a_bert(tokenizer: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    bert = BertForMaskedLM(
        BertConfig(
            vocab_size=20,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=24,
            initializer_range=0.3,
        )
    )
    bert.save_pretrained(tmp_path)
    model = config(tokenizer, bert=str(tmp_path)).build()
    layers = model.model.qformer.encoder.layer
    for ours, theirs in zip(layers, bert.bert.encoder.layer, strict=True):
        for part in (ours.intermediate, ours.intermediate_query):
            assert torch.equal(part.dense.weight, theirs.intermediate.dense.weight)
        query = theirs.attention.self.query.weight
        assert torch.equal(ours.attention.attention.query.weight, query)
    words = bert.bert.embeddings.word_embeddings.weight
    assert torch.equal(model.model.embeddings.word_embeddings.weight[:20], words)
    assert model.model.query_tokens.std().item() == pytest.approx(0.02, rel=0.3)
    assert QFormerConfig.of(model="nano", vision="v", bert="b").models() == {
        "model": "nano",
        "vision": "v",
        "bert": "b",
    }


def test_what_does_not_fit_is_refused(tokenizer: str, tmp_path: Path) -> None:
    blip = blip_of(tokenizer)
    with pytest.raises(ValueError, match=r"train\.vision: a Q-Former looks through"):
        QFormer.from_pretrained("nano", tokenizer=tokenizer)
    with pytest.raises(ValueError, match="image_size must be 32, that of the frozen"):
        QFormer.from_pretrained("nano", tokenizer=tokenizer, vision=blip, image_size=64)
    with pytest.raises(ValueError, match="skip_layers must leave a layer of the 2"):
        QFormer.from_pretrained("nano", tokenizer=tokenizer, vision=blip, skip_layers=2)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ValueError, match="is 'clip' and not a BLIP or BLIP-2"):
        QFormer.from_pretrained("nano", tokenizer=tokenizer, vision=str(tmp_path))
