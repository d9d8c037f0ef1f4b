"""ALBEF: which text layers look at images, masked words, and what is saved."""

import math
from pathlib import Path

import pytest
import torch
from helpers.blips import drawn
from helpers.contract import check_contract, small
from helpers.nano import CAPTIONS, batch_of, differing, make, step_of
from transformers import BlipForImageTextRetrieval

from models.attention import cross_attention_kv, encode_images, encode_texts
from models.inference.matcher import Matcher
from models.objectives.albef import Albef
from models.objectives.albef_config import AlbefConfig
from models.objectives.blip import MED


def test_the_contract_of_an_objective_is_kept(tokenizer: str, tmp_path: Path) -> None:
    config = small(AlbefConfig, tokenizer, queue_size=16)
    check_contract(config, tmp_path, unsaved={"mlm"})


def albef(tokenizer: str) -> Albef:
    """A nano ALBEF whose norms are unlike each other, as after a training."""
    med = make(tokenizer, "matcher").eval()
    with torch.no_grad():
        for name, parameter in med.matcher.named_parameters():
            if "LayerNorm" in name:
                parameter += torch.randn(parameter.shape, generator=torch.Generator()) * 0.2
    return Albef(matcher=med.matcher, tokenizer=med.tokenizer).eval()


def test_albef_guesses_masked_tokens_and_saves_one_matcher(tokenizer: str, tmp_path: Path) -> None:
    med = albef(tokenizer).train()
    med.start_momentum(queue_size=0)
    captions = [" ".join(["red dog bird"] * 7)] * 4
    losses = med(batch_of(med, captions), step_of(0))
    assert losses.keys() == {"itc", "itm", "mlm"}
    losses["mlm"].backward()
    cross = med.matcher.text_encoder.encoder.layer[1].crossattention.self.query.weight
    assert cross.grad.abs().sum() > 0 and med.mlm.dense.weight.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in med.momentum.parameters())
    med.save(tmp_path / "albef")
    BlipForImageTextRetrieval.from_pretrained(tmp_path / "albef")


def test_the_lower_half_of_albef_is_a_text_encoder_and_the_upper_half_looks(
    tokenizer: str, tmp_path: Path
) -> None:
    med = albef(tokenizer)
    assert med.first_fused == 1 and med.enc == med.tokenizer.cls_token_id
    batch = batch_of(med)
    mask = batch.tokens != med.pad
    images = encode_images(med.vision, batch.pixels)
    # Alone it reads as a BERT of its lower layers: norms are where they always were.
    text = make(tokenizer, "matcher").eval().matcher.text_encoder
    text.load_state_dict(unfolded(med))
    del text.encoder.layer[1:]
    stock = text(batch.tokens, attention_mask=mask.long()).last_hidden_state
    text_encoder = med.matcher.text_encoder
    torch.testing.assert_close(
        encode_texts(text_encoder, batch.tokens, mask)[mask], stock[mask], rtol=1e-4, atol=1e-5
    )
    cosines = med.embed_images(images) @ med.embed_texts(batch.tokens).T
    # Beside an image the upper layers go on from there.
    text = make(tokenizer, "matcher").eval().matcher.text_encoder
    text.load_state_dict(unfolded(med))
    upper = text.encoder.layer[1]
    wide = mask[:, None, None, :].float().log()
    stock = upper(stock, attention_mask=wide, encoder_hidden_states=images)
    stock = stock[0] if isinstance(stock, tuple) else stock
    found = encode_texts(text_encoder, batch.tokens, mask, cross_attention_kv(text_encoder, images))
    torch.testing.assert_close(found[mask], stock[mask], rtol=1e-4, atol=1e-5)
    # Stock transformers matches as it does, and so does the filter.
    med.save(tmp_path / "albef")
    logits = med.match(batch.tokens, cross_attention_kv(text_encoder, images))
    model = BlipForImageTextRetrieval.from_pretrained(tmp_path / "albef").eval()
    stock = model(batch.tokens, batch.pixels, attention_mask=mask.long()).itm_score
    torch.testing.assert_close(logits, stock, rtol=1e-4, atol=1e-5)
    matcher = Matcher.from_pretrained(str(tmp_path / "albef"), dtype="float32")
    pictures = [drawn(seed) for seed in range(4)]
    images = encode_images(med.vision, matcher.preprocess(pictures))
    logits = med.match(batch.tokens, cross_attention_kv(text_encoder, images)).softmax(1)[:, 1]
    cosines = (med.embed_images(images) * med.embed_texts(batch.tokens)).sum(1)
    for i, [match] in enumerate(matcher.score(pictures, [[caption] for caption in CAPTIONS])):
        assert match.itm == pytest.approx(logits[i].item(), abs=1e-5)
        assert match.itc == pytest.approx(cosines[i].item(), abs=1e-5)


def unfolded(med: Albef) -> dict[str, torch.Tensor]:
    """The text encoder with the norm of the lower layers where BERT has it."""
    state = dict(med.matcher.text_encoder.state_dict())
    for name in ("weight", "bias"):
        layer = "encoder.layer.0"
        state[f"{layer}.attention.output.LayerNorm.{name}"] = state[
            f"{layer}.crossattention.output.LayerNorm.{name}"
        ]
    return state


def test_an_image_does_not_reach_the_lower_half_of_albef_in_training(
    tokenizer: str, tmp_path: Path
) -> None:
    med = albef(tokenizer).train()
    med.start_momentum(queue_size=8)
    frozen = {name: p.clone() for name, p in med.matcher.named_parameters() if not p.requires_grad}
    assert any("crossattention" in name for name in frozen)
    optimizer = torch.optim.SGD([p for p in med.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        sum(med(batch_of(med), step_of()).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    own = dict(med.matcher.named_parameters())
    assert not differing(frozen, own)
    # What is saved goes on as it was, as a filter too.
    med.save(tmp_path / "albef")
    again = MED.from_pretrained(tmp_path / "albef", parts=("matcher",)).train()
    assert again.first_fused == 1 and not differing(own, dict(again.matcher.named_parameters()))
    assert {n for n, p in again.matcher.named_parameters() if not p.requires_grad} == set(frozen)
    anew = Albef.from_pretrained(tmp_path / "albef", parts=("matcher",))
    assert not differing(own, dict(anew.matcher.named_parameters()))
    again.start_momentum(queue_size=0)
    assert again(batch_of(again), step_of()).keys() == {"itc", "itm"}


def test_albef_starts_no_captioner_and_needs_two_text_layers(
    tokenizer: str, tmp_path: Path
) -> None:
    albef(tokenizer).save(tmp_path / "albef")
    for parts in (("captioner",), ("captioner", "matcher")):
        with pytest.raises(ValueError, match="is ALBEF's, whose first text layers look at no"):
            MED.from_pretrained(tmp_path / "albef", parts=parts)
        with pytest.raises(ValueError, match="a matcher and no captioner"):
            make(tokenizer, *parts, kind=Albef)
    single = make(tokenizer, "matcher")
    del single.matcher.text_encoder.encoder.layer[1:]
    with pytest.raises(ValueError, match="halves the text layers, and the model has one"):
        Albef(matcher=single.matcher, tokenizer=single.tokenizer)


def test_the_masked_loss_is_worked_out_over_what_both_models_guess(tokenizer: str) -> None:
    med = make(tokenizer, "matcher", kind=Albef).eval()
    med.start_momentum(queue_size=0)
    batch = batch_of(med, ["a red dog on the house"] * 4)
    found = []
    for med.alpha in (0.0, 1.0, 0.4):
        found.append(med(batch, step_of(1))["mlm"].item())
    # The momentum model is the model itself: its belief is the entropy of the guess.
    assert found[2] == pytest.approx(0.6 * found[0] + 0.4 * found[1], rel=1e-4)
    assert found[1] <= math.log(len(med.tokenizer)) + 1e-3


def test_momentum_follows_the_masked_head_too(tokenizer: str) -> None:
    med = make(tokenizer, "matcher", kind=Albef).train()
    med.start_momentum(queue_size=0, decay=0.9)
    with torch.no_grad():
        med.mlm.bias += 1.0
    med(batch_of(med), step_of())
    torch.testing.assert_close(med.momentum.mlm.bias, torch.full_like(med.mlm.bias, 0.1))
