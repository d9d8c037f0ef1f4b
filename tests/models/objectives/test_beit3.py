"""BEiT-3: masks of blocks, of words and of captions, first losses, pairs learnt by heart."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.blips import drawn
from helpers.contract import HEART, check_contract, learnt_by_heart, small
from helpers.nano import NANO, batch_of, stand_in, step_of

from models.inference.decoding import Settings
from models.inference.generation import Reread, write
from models.inference.trained import BEiT3Captioner, BEiT3Retrieval
from models.objectives.beit3 import Beit3, caption_mask, pixels_of_patches
from models.objectives.beit3_config import Beit3Config
from models.objectives.masking import hidden_blocks

GOALS = ["pretrain", "retrieval", "captioning"]


def config(tokenizer: str, **fields: Any) -> Any:
    return small(Beit3Config, tokenizer, **fields)


def make(tokenizer: str, **fields: Any) -> Any:
    """A nano BEiT-3 whose weights are large enough to matter."""
    torch.manual_seed(0)
    model = config(tokenizer, **fields).build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    return model


@pytest.mark.parametrize("goal", GOALS)
def test_the_contract_of_an_objective_is_kept(tokenizer: str, tmp_path: Path, goal: str) -> None:
    check_contract(config(tokenizer, goal=goal), tmp_path)


def test_each_task_has_its_settings_and_its_architecture() -> None:
    named = {goal: Beit3Config.of(goal=goal).written()["."].architecture for goal in GOALS}
    assert list(named.values()) == ["BEiT3", "BEiT3ForRetrieval", "BEiT3ForCaptioning"]
    assert Beit3Config.of(goal="captioning").mask_pairs == 0.7
    plain = Beit3Config()
    assert (plain.mask_images, plain.mask_texts, plain.mask_pairs) == (0.4, 0.15, 0.5)


def test_the_first_losses_are_those_of_a_guess(tokenizer: str) -> None:
    model = make(tokenizer)
    batch = batch_of(model)
    with torch.no_grad():
        for layer in (model.words.dense, model.pixels, model.image_head):
            layer.weight.zero_()
        model.words.dense.bias.zero_()
        model.words.norm.bias.zero_()
        model.pixels.bias.zero_()
        losses = model(batch, step_of(0))
        words = math.log(len(model.tokenizer))
        assert losses["pair_texts"].item() == pytest.approx(words, rel=1e-5)
        # The targets have the mean 0 and the variance 1 in every patch.
        for name in ("images", "pair_images"):
            assert losses[name].item() == pytest.approx(1.0, rel=2e-3)
        model.start("retrieval")
        assert model(batch, step_of(0))["contrast"].item() == pytest.approx(math.log(4))
        model.start("captioning")
        assert model(batch, step_of(0))["caption"].item() == pytest.approx(words, rel=1e-5)


def test_patches_are_hidden_in_blocks_and_in_the_wanted_number() -> None:
    chances = torch.rand(64, generator=torch.Generator().manual_seed(0))
    hidden = hidden_blocks(chances, 14, 0.4)
    assert hidden.shape == (64, 196) and (hidden.sum(1) == 78).all()
    assert torch.equal(hidden_blocks(chances, 14, 0.4), hidden)
    assert len(torch.unique(hidden, dim=0)) == 64
    grid = hidden.view(64, 14, 14)
    beside = (grid[:, :, 1:] == grid[:, :, :-1]).float().mean()
    assert beside > 0.75  # patches hidden one by one: 0.52
    assert (hidden_blocks(chances, 2, 0.4).sum(1) == 1).all()


def test_a_hidden_patch_does_not_reach_its_guess(tokenizer: str) -> None:
    model = make(tokenizer)
    batch = batch_of(model, ["a red dog"])
    hidden = torch.tensor([[True, False, False, False]])
    changed = batch.pixels.clone()
    changed[:, :, :16, :16] += 1.0  # the first patch
    with torch.no_grad():
        assert torch.equal(
            model.multiway.see(batch.pixels, hidden), model.multiway.see(changed, hidden)
        )
    patches = pixels_of_patches(batch.pixels, 16)
    own = batch.pixels[0, :, 16:, :16].reshape(-1)
    torch.testing.assert_close(patches[0, 2], (own - own.mean()) / own.std(), rtol=1e-3, atol=1e-4)


def test_a_caption_sees_the_image_and_the_words_before(tokenizer: str) -> None:
    may_look = caption_mask(torch.tensor([[True, True, False]]), 2)[0, 0].int().tolist()
    assert may_look[:2] == [[1, 0, 0, 1, 1], [1, 1, 0, 1, 1]]
    assert may_look[3:] == [[0, 0, 0, 1, 1]] * 2
    model = make(tokenizer, goal="captioning")
    batch = batch_of(model, ["a red dog on the house"])
    patches, is_text = model.remember(batch.pixels), batch.texts != model.pad
    changed = batch.texts.clone()
    changed[0, 3] = model.tokenizer.convert_tokens_to_ids("cat")
    with torch.no_grad():
        before = model._caption(batch.texts, patches, is_text, None)
        after = model._caption(changed, patches, is_text, None)
    moved = ((before - after)[0].abs().amax(1) > 1e-6).tolist()
    length = batch.texts.shape[1]
    assert moved == [3 <= place < length for place in range(len(moved))]


def test_a_task_trains_what_it_uses(tokenizer: str) -> None:
    for goal in GOALS:
        model = make(tokenizer, goal=goal).train()
        sum(model(batch_of(model), step_of(0)).values()).backward()
        idle = [name for name, p in model.trained().items() if p.grad is None]
        assert not idle, (goal, idle)


@pytest.mark.parametrize("goal", GOALS[1:])
def test_sixteen_pairs_are_learnt_by_heart(
    tokenizer: str, goal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, dataclasses.replace(NANO, spread=0.1))
    model, batch = learnt_by_heart(config(tokenizer, goal=goal), 300)
    with torch.no_grad():
        if goal == "retrieval":
            cosines = model.embed_images(batch.pixels) @ model.embed_texts(batch.texts).T
            own = torch.arange(16)
            assert torch.equal(cosines.argmax(0), own) and torch.equal(cosines.argmax(1), own)
        else:
            settings = Settings(decoding="beam", max_length=8, min_length=0)
            decoder = Reread(model.next_logits, model.remember(batch.pixels))
            begun = torch.tensor([model.begin])
            ids = write(decoder, begun, [0] * 16, settings, end=model.end, pad=model.pad)[:, 0]
            assert model.tokenizer.batch_decode(ids, skip_special_tokens=True) == list(HEART)


def test_tuning_starts_from_what_pretraining_leaves(tokenizer: str, tmp_path: Path) -> None:
    model = make(tokenizer)
    model.write(tmp_path)
    tuned = config(tokenizer, goal="retrieval", model=str(tmp_path)).build()
    assert torch.equal(tuned.multiway.words.weight, model.multiway.words.weight)
    tuned.eval().write(tmp_path / "tuned")
    reader = BEiT3Retrieval.from_pretrained(str(tmp_path / "tuned"), dtype="float32")
    images, texts = [drawn(0), drawn(1)], ["a red dog", "two cats"]
    with torch.no_grad():
        expected = (
            tuned.embed_images(tuned.preprocess(images))
            @ tuned.embed_texts(tuned.tokenize(texts, 12)).T
        )
    found = [[match.cosine for match in own] for own in reader.score(images, [texts] * 2)]
    assert found == [pytest.approx(row, abs=1e-5) for row in expected.tolist()]
    writer = config(tokenizer, goal="captioning", model=str(tmp_path)).build()
    writer.write(tmp_path / "writer")
    captions = BEiT3Captioner.from_pretrained(str(tmp_path / "writer"), dtype="float32")
    assert len(captions.write_captions(images, Settings(decoding="greedy", min_length=0))) == 2


def test_what_does_not_fit_is_refused(tokenizer: str, tmp_path: Path) -> None:
    make(tokenizer).write(tmp_path)
    with pytest.raises(ValueError, match="image_size must be 32"):
        Beit3.from_pretrained(tmp_path, image_size=64)
    with pytest.raises(ValueError, match="joint_layers must be at most the 2 layers"):
        Beit3.from_pretrained("nano", tokenizer=tokenizer, joint_layers=3)
