"""LLaVA's first stage: one projection, or an MLP, before a frozen language model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.blips import drawn
from helpers.contract import check_contract, learnt_by_heart, share_known, small
from helpers.dual_encoders import save_siglip
from helpers.image_prefixes import (
    check_that_a_token_changes_itself_and_those_behind_it,
    check_that_the_first_loss_is_that_of_a_guess,
    check_that_the_stage_caption_runs_it,
    check_that_the_stock_model_gives_the_same_numbers,
)
from helpers.nano import batch_of, step_of
from helpers.starts import clip_of, language_of, qformer_of
from transformers import CLIPModel, LlavaForConditionalGeneration

from models.inference.decoding import Settings
from models.inference.vlm import GenericCaptioner
from models.objectives.masking import IGNORED
from models.objectives.project import Project
from models.objectives.project_config import ProjectConfig


def config(tokenizer: str, **fields: Any) -> Any:
    return small(ProjectConfig, tokenizer, **fields)


def make(tokenizer: str, **fields: Any) -> Any:
    """A nano model whose projection is large enough to matter."""
    torch.manual_seed(0)
    model = config(tokenizer, **fields).build().eval()
    with torch.no_grad():
        for parameter in model.trained().values():
            parameter.normal_(0, 0.3)
    return model


@pytest.mark.parametrize("recipe", ["llava", "llava-1.5"])
def test_the_contract_of_an_objective_is_kept(tokenizer: str, tmp_path: Path, recipe: str) -> None:
    check_contract(config(tokenizer, recipe=recipe), tmp_path)


def test_the_defaults_are_those_of_the_papers() -> None:
    first, second = ProjectConfig(), ProjectConfig.of(recipe="llava-1.5")
    assert (first.lr, first.batch_size, first.image_size) == (2e-3, 128, 224)
    assert (second.lr, second.batch_size, second.image_size) == (1e-3, 256, 336)
    assert first.weight_decay == second.weight_decay == 0


def test_a_sequence_is_the_beginning_the_image_the_caption_and_its_end(tokenizer: str) -> None:
    model = make(tokenizer)
    tokens = model.tokenize(["a red dog"], 24)
    words = model.tokenizer.convert_ids_to_tokens(tokens[0])
    assert words == ["[CLS]"] + ["<image>"] * 4 + ["a", "red", "dog", "[SEP]"]
    labels = model.labels(tokens)[0]
    assert (labels != IGNORED).tolist() == [False] * 4 + [True] * 4


@pytest.mark.parametrize(("recipe", "layers"), [("llava", {"1"}), ("llava-1.5", {"1", "2"})])
def test_the_projection_alone_is_trained(tokenizer: str, recipe: str, layers: set[str]) -> None:
    model = make(tokenizer, recipe=recipe).train()
    assert {name.split("_")[3][0] for name in model.trained()} == layers
    assert all("multi_modal_projector.linear" in name for name in model.trained())
    assert not model.language.training and not model.model.model.vision_tower.training
    model(batch_of(model), step_of())["lm"].backward()
    assert all(p.grad.abs().sum() > 0 for p in model.trained().values())


def test_it_sees_the_patches_of_the_second_last_layer_through_one_layer(tokenizer: str) -> None:
    model = make(tokenizer)
    pixels = batch_of(model).pixels
    clip: Any = CLIPModel.from_pretrained(clip_of(tokenizer)).eval()
    layer = model.model.model.multi_modal_projector.linear_1
    with torch.no_grad():
        states = clip.vision_model(pixels, output_hidden_states=True).hidden_states
        torch.testing.assert_close(model.look(pixels), layer(states[-2][:, 1:]))


def test_the_first_loss_is_that_of_a_guess(tokenizer: str) -> None:
    check_that_the_first_loss_is_that_of_a_guess(make(tokenizer))


def test_a_changed_token_moves_itself_and_those_behind_it(tokenizer: str) -> None:
    check_that_a_token_changes_itself_and_those_behind_it(make(tokenizer))


@pytest.mark.parametrize("recipe", ["llava", "llava-1.5"])
def test_stock_transformers_gives_the_same_numbers(
    tokenizer: str, tmp_path: Path, recipe: str
) -> None:
    model = make(tokenizer, recipe=recipe)
    model.write(tmp_path)
    stock = LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    check_that_the_stock_model_gives_the_same_numbers(model, stock)


def test_sixteen_pairs_are_learnt_by_heart(tokenizer: str) -> None:
    model, batch = learnt_by_heart(config(tokenizer, recipe="llava-1.5"), 800, lr=5e-3)
    labels = model.labels(batch.texts)
    hidden = model.read(model.look(batch.pixels), batch.texts[:, :-1])
    assert share_known(model.head(hidden), labels) > 0.9


def test_the_stage_caption_runs_what_is_trained(tokenizer: str, tmp_path: Path) -> None:
    check_that_the_stage_caption_runs_it(make(tokenizer), tmp_path, max_length=6)


def test_a_siglip_is_looked_through_with_all_its_patches(tokenizer: str, tmp_path: Path) -> None:
    siglip = save_siglip(tmp_path / "siglip")
    model = make(tokenizer, model=siglip)
    assert model.image_tokens == 4 and model.look(batch_of(model).pixels).shape[1] == 4
    (tmp_path / "model").mkdir()
    model.write(tmp_path / "model")
    reader = GenericCaptioner.from_pretrained(str(tmp_path / "model"), dtype="float32")
    assert len(reader.write_captions([drawn(0)], Settings(decoding="greedy", min_length=0))) == 1


def test_what_does_not_fit_is_refused(tokenizer: str, tmp_path: Path) -> None:
    clip, words = clip_of(tokenizer), language_of(tokenizer)
    with pytest.raises(ValueError, match="language: name the language model"):
        Project.from_pretrained(clip)
    with pytest.raises(ValueError, match="is 'Blip2ForImageTextRetrieval' and none of CLIPModel"):
        Project.from_pretrained(qformer_of(tokenizer), language=words)
    with pytest.raises(ValueError, match="image_size must be 32, that of the frozen"):
        Project.from_pretrained(clip, language=words, image_size=64)
    make(tokenizer).write(tmp_path)
    with pytest.raises(ValueError, match="recipe must be llava for"):
        Project.from_pretrained(tmp_path, is_linear=False)
