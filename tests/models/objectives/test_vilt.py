"""ViLT: one transformer of words and patches, whole words hidden, wrong images, alignment."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.blips import drawn
from helpers.contract import check_contract, learnt_by_heart, small
from helpers.nano import NANO, batch_of, stand_in, step_of
from transformers import ViltForImageAndTextRetrieval, ViltForMaskedLM, ViTConfig, ViTModel

from models.inference.trained import Vilt as Reader
from models.objectives.masking import whole_words
from models.objectives.optimal_transport import transport_cost, transport_plan
from models.objectives.vilt import Vilt
from models.objectives.vilt_config import ViltConfig


def config(tokenizer: str, **fields: Any) -> Any:
    return small(ViltConfig, tokenizer, **fields)


def make(tokenizer: str, **fields: Any) -> Any:
    """A nano ViLT whose weights are large enough to matter."""
    torch.manual_seed(0)
    model = config(tokenizer, **fields).build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    return model


def test_the_contract_of_an_objective_is_kept(tokenizer: str, tmp_path: Path) -> None:
    # Of the matching head the difference of its two outputs is saved: the loss is the same.
    check_contract(config(tokenizer), tmp_path, unsaved={"itm"})


def test_the_first_losses_are_those_of_a_guess(tokenizer: str) -> None:
    model = make(tokenizer)
    with torch.no_grad():
        model.itm.weight.zero_()
        model.model.mlm_score.transform.dense.weight.zero_()
        model.model.mlm_score.transform.dense.bias.zero_()
        model.model.mlm_score.transform.LayerNorm.bias.zero_()
    losses = model(batch_of(model), step_of(0))
    assert losses["itm"].item() == pytest.approx(math.log(2))
    assert losses["mlm"].item() == pytest.approx(math.log(len(model.tokenizer)), rel=1e-5)
    assert model(batch_of(model), step_of(0)).keys() == {"mlm", "itm", "alignment"}
    model.alignment = 0.0
    assert model(batch_of(model), step_of(0)).keys() == {"mlm", "itm"}


def test_words_and_patches_see_each_other_and_no_padding(tokenizer: str) -> None:
    model = make(tokenizer)
    tokens = model.tokenize(["a red dog", "two big blue birds on the big house"], 12)
    patches = model.remember(batch_of(model, ["a"] * 2).pixels)
    changed, moved_patch = tokens.clone(), patches.clone()
    changed[0, 2] = model.tokenizer.convert_tokens_to_ids("blue")
    moved_patch[0, 3] += torch.randn(32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model.read(tokens, patches)
        for one in (model.read(changed, patches), model.read(tokens, moved_patch)):
            assert ((one[0] - whole[0]).abs().amax(1) > 1e-6).all()
            assert torch.equal(one[1], whole[1])
        alone = model.read(model.tokenize(["a red dog"], 12), patches[:1])
        torch.testing.assert_close(alone[0, :5], whole[0, :5])


def test_whole_words_are_hidden() -> None:
    chances = torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(0))
    continues = torch.tensor([[0, 0, 1, 1, 0], [0, 1, 0, 1, 0]]).bool()
    asked = whole_words(chances, continues)
    first = torch.tensor([[0, 1, 1, 1, 4], [0, 0, 2, 2, 4]])
    assert torch.equal(asked[:, :, 0], chances[:, :, 0].gather(1, first))
    assert torch.equal(asked[:, :, 1:], chances[:, :, 1:])


def test_half_of_the_pairs_get_another_image(tokenizer: str) -> None:
    model = make(tokenizer)
    captions = ["a red dog"] * 6
    batch = batch_of(model, captions)
    shown: list[torch.Tensor] = []
    read = model.read

    def note(tokens: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        shown.append(patches)
        return read(tokens, patches)

    model.read = note
    model(batch, step_of(0))
    true, mixed = shown
    is_true = [torch.equal(one, other) for one, other in zip(true, mixed, strict=True)]
    assert sum(is_true) == 3
    batch.image_ids[:] = 7  # the same image six times: no other one to show
    shown.clear()
    model(batch, step_of(0))
    assert torch.equal(shown[0], shown[1])


def test_the_plan_moves_words_to_patches_at_the_least_cost() -> None:
    generator = torch.Generator().manual_seed(0)
    cost = torch.rand(2, 4, 4, generator=generator)
    cost[0] = 1 - torch.eye(4)
    is_word = torch.tensor([[True] * 4, [True, True, False, False]])
    plan = transport_plan(cost, is_word)
    torch.testing.assert_close(plan[0], torch.eye(4) / 4, atol=1e-3, rtol=0)
    torch.testing.assert_close(plan.sum(1), torch.full((2, 4), 0.25), atol=2e-2, rtol=0)
    rows = torch.tensor([[0.25] * 4, [0.5, 0.5, 0, 0]])
    torch.testing.assert_close(plan.sum(2), rows, atol=1e-5, rtol=0)
    words = torch.eye(4)[None]
    assert transport_cost(words, words, is_word[:1]).item() == pytest.approx(0, abs=1e-3)
    none = torch.zeros(1, 4, dtype=torch.bool)
    assert transport_cost(words, words, none).item() == 0


@pytest.mark.parametrize("folder", ["mlm", "retrieval"])
def test_stock_transformers_gives_the_same_numbers(
    tokenizer: str, tmp_path: Path, folder: str
) -> None:
    model = make(tokenizer)
    model.write(tmp_path)
    kinds: Any = {"mlm": ViltForMaskedLM, "retrieval": ViltForImageAndTextRetrieval}
    stock = kinds[folder].from_pretrained(tmp_path / folder).eval()
    batch = batch_of(model)
    mask = (batch.texts != model.pad).long()
    with torch.no_grad():
        found = stock(batch.texts, mask, pixel_values=batch.pixels).logits
        hidden = model.read(batch.texts, model.remember(batch.pixels))
        logits = model.match(batch.texts, model.remember(batch.pixels))
        expected = {
            "mlm": model.model.mlm_score(hidden[:, : batch.texts.shape[1]]),
            "retrieval": logits[:, 1:] - logits[:, :1],
        }[folder]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_sixteen_pairs_are_learnt_by_heart(tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, dataclasses.replace(NANO, spread=0.1))
    model, batch = learnt_by_heart(config(tokenizer), 400, lr=2e-3)
    with torch.no_grad():
        patches = model.remember(batch.pixels)
        rows = torch.arange(16).repeat_interleave(16)
        logits = model.match(batch.texts.repeat(16, 1), patches[rows]).view(16, 16, 2)
    best = (logits[..., 1] - logits[..., 0]).argmax(1)
    assert (best == torch.arange(16)).float().mean() > 0.95


def test_of_many_patches_some_are_read_in_training(tokenizer: str) -> None:
    model = make(tokenizer)
    batch = batch_of(model)
    whole = model(batch, step_of(0))["mlm"].item()
    model.max_patches = 2
    assert model(batch, step_of(0))["mlm"].item() == whole
    model.train()
    assert model._kept(batch, 4, step_of(0)).shape == (4, 2)
    assert model(batch, step_of(0))["mlm"].item() != whole


def test_it_starts_from_a_vit(tokenizer: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    numbers = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2}
    numbers |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    vit = ViTModel(ViTConfig(**numbers), add_pooling_layer=False)
    vit.save_pretrained(tmp_path)
    model = config(tokenizer, vit=str(tmp_path)).build()
    layers = model.model.vilt.encoder.layer
    for ours, theirs in zip(layers, vit.layers, strict=True):
        assert torch.equal(ours.attention.attention.key.weight, theirs.attention.k_proj.weight)
        assert torch.equal(ours.output.dense.bias, theirs.mlp.fc2.bias)
    assert torch.equal(model.model.vilt.layernorm.weight, vit.layernorm.weight)
    # Beside no text it sees what the ViT sees.
    pixels, patches = batch_of(model).pixels, model.remember(batch_of(model).pixels)
    with torch.no_grad():
        patches = patches - model.model.vilt.embeddings.token_type_embeddings.weight[1]
        none = torch.full((4, 1), model.pad)
        read = model.read(none, patches)[:, 1:]
        torch.testing.assert_close(read, vit.eval()(pixels).last_hidden_state, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"vit: .* has other shapes than the model"):
        config(tokenizer, vit=str(tmp_path), image_size=64).build()


def test_the_filter_runs_what_is_trained(tokenizer: str, tmp_path: Path) -> None:
    model = make(tokenizer)
    model.write(tmp_path)
    reader = Reader.from_pretrained(str(tmp_path / "retrieval"), dtype="float32")
    images, texts = [drawn(seed) for seed in range(2)], ["a red dog", "two cats"]
    patches = model.remember(model.preprocess(images))
    tokens = model.tokenize(texts, 12)
    for image, own in enumerate(reader.score(images, [texts] * 2)):
        expected = model.match(tokens, patches[[image, image]]).softmax(1)[:, 1]
        assert [match.itm for match in own] == pytest.approx(expected.tolist(), abs=1e-5)
        assert all(math.isnan(match.itc) for match in own)


def test_what_does_not_fit_is_refused(tokenizer: str, tmp_path: Path) -> None:
    make(tokenizer).write(tmp_path)
    with pytest.raises(ValueError, match="image_size must be 32"):
        Vilt.from_pretrained(tmp_path, image_size=64)
    with pytest.raises(ValueError, match="image_size must be a multiple of patch_size 32"):
        Vilt.from_pretrained("nano", tokenizer=tokenizer, image_size=48)
