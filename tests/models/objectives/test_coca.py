"""CoCa: what sees what, the first losses, pairs learnt by heart, and stock open_clip."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.blips import drawn
from helpers.contract import HEART, check_contract, learnt_by_heart, small
from helpers.nano import CAPTIONS, batch_of, step_of

from models.inference.decoding import Settings
from models.inference.generation import Reread, write
from models.inference.trained import Coca as Reader
from models.objectives.coca import Coca
from models.objectives.coca_config import CocaConfig


def config(tokenizer: str, **fields: Any) -> Any:
    return small(CocaConfig, tokenizer, **fields)


def make(tokenizer: str) -> Any:
    torch.manual_seed(0)
    return config(tokenizer).build().eval()


def test_the_contract_of_an_objective_is_kept(tokenizer: str, tmp_path: Path) -> None:
    check_contract(config(tokenizer), tmp_path)


def test_the_first_losses_are_those_of_a_guess(tokenizer: str) -> None:
    model = make(tokenizer)
    with torch.no_grad():
        # Nothing is known: all texts alike, all images alike, all words alike.
        model.text.text_projection.zero_()[0] = 1.0
        model.visual.proj.zero_()
        model.text_decoder.text_projection.zero_()
    batch = batch_of(model)
    losses = model(batch, step_of())
    assert losses["contrast"].item() == pytest.approx(math.log(len(CAPTIONS)))
    words = len(model.tokenizer)
    assert losses["caption"].item() == pytest.approx(2 * math.log(words), rel=1e-5)
    model.contrastive_weight = 0.0
    assert model(batch, step_of()).keys() == {"caption"}


def test_a_token_sees_those_before_it_and_the_embedding_sees_the_whole_text(
    tokenizer: str,
) -> None:
    model = make(tokenizer)
    tokens = model.tokenize(["a red dog on the house"], 24)
    memory = model.remember(batch_of(model, CAPTIONS[:1]).pixels)
    changed = tokens.clone()
    changed[0, 3] = model.tokenizer.convert_tokens_to_ids("cat")

    def read(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        embedded, lower = model.text(tokens, tokens != model.pad)
        return embedded, lower[0], model.text_decoder(memory, lower)[0]

    with torch.no_grad():
        before, after = read(tokens), read(changed)
    for one, other in zip(before[1:], after[1:], strict=True):
        moved = (one - other).abs().amax(1) > 1e-6
        assert moved.tolist() == [place >= 3 for place in range(tokens.shape[1])]
    assert (before[0] - after[0]).abs().max() > 1e-4


def test_padding_and_the_image_change_no_embedding_of_a_text(tokenizer: str) -> None:
    model = make(tokenizer)
    alone = model.tokenize(["a red dog"], 24)
    padded = model.tokenize(["a red dog", "two big blue birds on the big green house"], 24)
    torch.testing.assert_close(model.embed_texts(padded)[:1], model.embed_texts(alone))


def test_the_contrastive_query_is_not_among_the_tokens_that_captions_look_at(
    tokenizer: str,
) -> None:
    model = make(tokenizer)
    pixels = batch_of(model).pixels
    before = model.remember(pixels)
    assert before.shape[1] == 4
    with torch.no_grad():
        model.visual.attn_pool_contrastive.query.add_(1.0)
    assert torch.equal(model.remember(pixels), before)


def test_sixteen_pairs_are_learnt_by_heart(tokenizer: str) -> None:
    model, batch = learnt_by_heart(config(tokenizer), 150)
    with torch.no_grad():
        cosines = model.embed_images(batch.pixels) @ model.embed_texts(batch.texts).T
        decoder = Reread(model.next_logits, model.remember(batch.pixels))
        settings = Settings(decoding="beam", max_length=8, min_length=0)
        begun = torch.tensor([model.begin])
        ids = write(decoder, begun, [0] * 16, settings, end=model.end, pad=model.pad)[:, 0]
    own = torch.arange(len(cosines))
    assert torch.equal(cosines.argmax(0), own) and torch.equal(cosines.argmax(1), own)
    assert model.tokenizer.batch_decode(ids, skip_special_tokens=True) == list(HEART)


def test_what_is_trained_is_what_the_stages_run(tokenizer: str, tmp_path: Path) -> None:
    model = make(tokenizer)
    model.write(tmp_path)
    reader = Reader.from_pretrained(str(tmp_path), dtype="float32")
    images, texts = [drawn(seed) for seed in range(3)], ["a red dog", "two cats"]
    pixels = model.preprocess(images)
    expected = model.embed_images(pixels) @ model.embed_texts(model.tokenize(texts, 12)).T
    found = reader.score(images, [texts] * 3)
    for row, own in zip(expected.tolist(), found, strict=True):
        assert [match.cosine for match in own] == pytest.approx(row, abs=1e-5)
    assert reader.score([b"no image"], [texts]) == [[]]
    assert reader.unread(["a red dog", "a " * 20]) == [0, 10]
    settings = Settings(max_length=9, num_captions=2)
    captions = reader.caption(images, range(3), settings)
    assert [len(some) for some in captions] == [2, 2, 2]
    assert reader.caption(images[1:], [1, 2], settings) == captions[1:]
    prompted = reader.caption(images, range(3), settings, prompt="a red")
    assert prompted != captions
    with pytest.raises(ValueError, match="max_length counts the 1 tokens"):
        reader.caption(images, range(3), Settings(max_length=50))


def test_stock_open_clip_loads_what_is_written(tokenizer: str, tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed")
    model = make(tokenizer)
    model.write(tmp_path)
    stock = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    stock.text.correct_cls_mask = True
    batch = batch_of(model)
    longest = model.shape.positions
    tokens = torch.nn.functional.pad(batch.texts, (0, longest - batch.texts.shape[1]))
    with torch.no_grad():
        found = stock(batch.pixels, tokens, output_labels=False)
        images, memory = model.visual(batch.pixels)
        texts, read = model.text(tokens, tokens != model.pad)
        logits = model.text_decoder(memory, read) @ model.text_decoder.text_projection
    normalize = torch.nn.functional.normalize
    torch.testing.assert_close(found["image_features"].squeeze(1), normalize(images, dim=-1))
    torch.testing.assert_close(found["text_features"], normalize(texts, dim=-1))
    torch.testing.assert_close(found["logits"], logits)


def test_what_does_not_fit_is_refused(tokenizer: str, tmp_path: Path) -> None:
    make(tokenizer).write(tmp_path)
    with pytest.raises(ValueError, match="image_size must be 32"):
        Coca.from_pretrained(tmp_path, image_size=64)
    with pytest.raises(ValueError, match="tokenizer: model 'nano' is an architecture"):
        Coca.from_pretrained("nano")
    with pytest.raises(ValueError, match="image_size must be a multiple of patch_size 18"):
        Coca.from_pretrained("nano", tokenizer=tokenizer, patch=18)
    with pytest.raises(ValueError, match="must not both be 0"):
        CocaConfig.of(caption_weight=0, contrastive_weight=0)
