"""Flamingo: sequences of pairs, which image a word looks at, and the language model untouched."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.blips import drawn
from helpers.contract import check_contract, learnt_by_heart, share_known, small
from helpers.dual_encoders import save_siglip
from helpers.flamingos import make
from helpers.nano import batch_of, step_of
from helpers.starts import clip_of, language_of, qformer_of
from transformers import AutoModelForCausalLM

from models.inference.decoding import Settings
from models.inference.generation import Reread, write
from models.inference.trained import Flamingo as Reader
from models.objectives.flamingo import EOC, Flamingo
from models.objectives.flamingo_config import FlamingoConfig
from models.objectives.language_tokenizer import IMAGE
from models.objectives.masking import IGNORED
from pipeline.manifest.train_config import TrainConfig

TWO = ["a red dog", "two blue birds"]


def config(tokenizer: str, **fields: Any) -> Any:
    return small(FlamingoConfig, tokenizer, **fields)


def moved(one: torch.Tensor, two: torch.Tensor) -> list[bool]:
    return ((one - two).abs().amax(-1) > 1e-6).tolist()


def test_the_contract_of_an_objective_is_kept(tokenizer: str, tmp_path: Path) -> None:
    check_contract(config(tokenizer), tmp_path)


def test_it_begins_as_the_frozen_language_model(tokenizer: str) -> None:
    model = make(tokenizer, is_open=False)
    stock: Any = AutoModelForCausalLM.from_pretrained(language_of(tokenizer)).eval()
    batch = batch_of(model)
    tokens, _ = model.pack(batch.texts)
    words = stock.get_input_embeddings()(tokens.clamp(max=stock.config.vocab_size - 1))
    for token, mark in ((model.image, 0), (model.end, 1)):
        words[tokens == token] = model.marks[mark]
    with torch.no_grad():
        found = model.read(model.look(batch.pixels), tokens)
        expected = stock.base_model(inputs_embeds=words).last_hidden_state
    assert torch.equal(found, expected)
    model(batch, step_of())
    assert model.logged() == {"gates": 0.0}


def test_the_first_loss_is_that_of_a_guess(tokenizer: str) -> None:
    model = make(tokenizer)
    with torch.no_grad():
        model.head.weight.zero_()
        model.mark_scores.zero_()
    loss = model(batch_of(model), step_of())["lm"].item()
    assert loss == pytest.approx(math.log(len(model.tokenizer)), rel=1e-5)


def test_pairs_are_packed_without_padding_and_their_words_are_asked_for(tokenizer: str) -> None:
    model = make(tokenizer)
    texts = ["a dog", "two blue dog on the house", "the small cat", "a"]
    tokens, labels = model.pack(model.tokenize(texts, 12))
    expected = [
        f"[CLS] {IMAGE} {one} {EOC} {IMAGE} {two} {EOC}" for one, two in (texts[:2], texts[2:])
    ]
    for row, text in enumerate(expected):
        said = model.tokenizer.convert_ids_to_tokens(tokens[row].tolist())
        whole = text.split()
        assert said[: len(whole)] == whole
        assert (labels[row, len(whole) :] == IGNORED).all()
        asked = [label != IGNORED for label in labels[row].tolist()][: len(whole)]
        assert asked == [word not in ("[CLS]", IMAGE) for word in whole]
    assert tokens.shape[1] == max(len(text.split()) for text in expected)


def test_a_word_looks_at_the_image_right_before_it_alone(tokenizer: str) -> None:
    model = make(tokenizer, every=2)  # one block, so that no layer carries an image further
    batch = batch_of(model, TWO)
    tokens, _ = model.pack(batch.texts)
    latents = model.look(batch.pixels)
    places = (tokens[0] == model.image).nonzero().flatten().tolist()
    blocks: Any = list(model.blocks)
    hidden: list[torch.Tensor] = []
    blocks[-1].register_forward_hook(lambda *call: hidden.append(call[-1]))
    with torch.no_grad():
        model.read(latents, tokens)
        for image in range(2):
            other = latents.clone()
            other[image] += 1.0
            model.read(other, tokens)
    own, first, second = (one[0] for one in hidden)
    length = tokens.shape[1]
    assert moved(own, first) == [places[0] <= i < places[1] for i in range(length)]
    assert moved(own, second) == [places[1] <= i for i in range(length)]


def test_before_the_first_image_nothing_is_seen(tokenizer: str) -> None:
    model = make(tokenizer)
    batch = batch_of(model, TWO)
    tokens, _ = model.pack(batch.texts)
    tokens = torch.cat([tokens[:, :1], torch.full_like(tokens[:, :2], 6), tokens[:, 1:]], 1)
    latents = model.look(batch.pixels)
    with torch.no_grad():
        one, two = model.read(latents, tokens), model.read(latents + 1.0, tokens)
    assert one.isfinite().all()
    assert moved(one[0], two[0]) == [i >= 3 for i in range(tokens.shape[1])]


def test_a_changed_word_moves_itself_and_those_behind_it(tokenizer: str) -> None:
    model = make(tokenizer)
    batch = batch_of(model, TWO)
    tokens, _ = model.pack(batch.texts)
    latents, changed = model.look(batch.pixels), tokens.clone()
    changed[0, 4] = model.tokenizer.convert_tokens_to_ids("cat")
    with torch.no_grad():
        one, two = model.read(latents, tokens), model.read(latents, changed)
    assert moved(one[0], two[0]) == [i >= 4 for i in range(tokens.shape[1])]


def test_what_joins_the_models_is_trained_and_nothing_else(tokenizer: str) -> None:
    model = make(tokenizer).train()
    kinds = {name.split(".")[0] for name in model.trained()}
    assert kinds == {"blocks", "marks", "mark_scores", "resampler"}
    assert not model.model.training and not model.vision.training
    model(batch_of(model), step_of())["lm"].backward()
    assert all(p.grad.abs().sum() > 0 for p in model.trained().values())


def test_marks_within_a_caption_are_no_marks(tokenizer: str) -> None:
    model = make(tokenizer)
    hostile, plain = (
        model.tokenize([text], 12) for text in (f"a red {IMAGE} {EOC} dog", "a red dog")
    )
    assert hostile.tolist() == plain.tolist()


def test_sixteen_pairs_are_learnt_by_heart(tokenizer: str) -> None:
    model, batch = learnt_by_heart(config(tokenizer), 200)
    model(batch, step_of())
    tokens, labels = model.pack(batch.texts)
    labels = labels[:, 1:]
    hidden = model.read(model.look(batch.pixels), tokens[:, :-1])
    assert share_known(model.logits(hidden), labels) > 0.9
    assert model.logged()["gates"] > 0.01


def test_the_stage_caption_runs_what_is_trained(tokenizer: str, tmp_path: Path) -> None:
    model = make(tokenizer)
    model.write(tmp_path)
    reader = Reader.from_pretrained(str(tmp_path), dtype="float32")
    images = [drawn(seed) for seed in range(3)]
    settings = Settings(decoding="greedy", max_length=6, min_length=0)
    decoder = Reread(model.next_logits, model.remember(model.preprocess(images)))
    begun = torch.tensor([model.begin])
    with torch.no_grad():
        ids = write(decoder, begun, [0] * 3, settings, end=model.end, pad=model.pad)[:, 0]
    expected = model.tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert reader.write_captions(images, settings) == expected


def test_a_siglip_is_looked_through_with_all_its_patches(tokenizer: str, tmp_path: Path) -> None:
    siglip = save_siglip(tmp_path / "siglip")
    model = make(tokenizer, model=siglip)
    seen = model.vision(pixel_values=batch_of(model).pixels).last_hidden_state
    assert seen.shape[1] == 4 and model.look(batch_of(model).pixels).shape[1] == 4
    (tmp_path / "model").mkdir()
    model.write(tmp_path / "model")
    reader = Reader.from_pretrained(str(tmp_path / "model"), dtype="float32")
    assert len(reader.write_captions([drawn(0)], Settings(decoding="greedy", min_length=0))) == 1


def test_what_does_not_fit_is_refused(tokenizer: str) -> None:
    clip, words = clip_of(tokenizer), language_of(tokenizer)
    with pytest.raises(ValueError, match="language: name the language model"):
        Flamingo.from_pretrained(clip)
    with pytest.raises(ValueError, match="is 'Blip2ForImageTextRetrieval' and none of CLIPModel"):
        Flamingo.from_pretrained(qformer_of(tokenizer), language=words)
    with pytest.raises(ValueError, match="image_size must be 32, that of the frozen"):
        Flamingo.from_pretrained(clip, language=words, image_size=64)
    with pytest.raises(ValueError, match="every is 3, but the language model has fewer layers"):
        Flamingo.from_pretrained(clip, language=words, every=3)
    with pytest.raises(ValueError, match="multiple of 6, 1 streams times accumulate 2 times 3"):
        TrainConfig.of(objective="flamingo", batch_size=8, images=3, accumulate=2)
