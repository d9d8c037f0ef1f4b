"""BLIP-2's second stage and MiniGPT-4's first: a frozen language model behind a Q-Former."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.contract import check_contract, learnt_by_heart, share_known, small
from helpers.image_prefixes import (
    check_that_a_token_changes_itself_and_those_behind_it,
    check_that_the_first_loss_is_that_of_a_guess,
    check_that_the_stage_caption_runs_it,
    check_that_the_stock_model_gives_the_same_numbers,
)
from helpers.nano import batch_of, step_of
from helpers.starts import clip_of, language_of, qformer_of
from transformers import Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval

from models.objectives.generate import Generate
from models.objectives.generate_config import GenerateConfig
from models.objectives.masking import IGNORED
from models.objectives.project_config import ProjectConfig


def config(tokenizer: str, **fields: Any) -> Any:
    return small(GenerateConfig, tokenizer, **fields)


def make(tokenizer: str, **fields: Any) -> Any:
    """A nano model whose projection is large enough to matter."""
    torch.manual_seed(0)
    model = config(tokenizer, **fields).build().eval()
    with torch.no_grad():
        model.model.language_projection.weight.normal_(0, 0.5)
    return model


def test_the_contract_of_an_objective_is_kept(tokenizer: str, tmp_path: Path) -> None:
    check_contract(config(tokenizer), tmp_path)


def test_a_sequence_is_the_image_the_beginning_the_caption_and_its_end(tokenizer: str) -> None:
    model = make(tokenizer, prompt="a picture of")
    tokens = model.tokenize(["a red dog", "a cat"], 24)
    words = model.tokenizer.convert_ids_to_tokens(tokens[0])
    assert words == ["<image>"] * 4 + ["[CLS]", "a", "picture", "of", "a", "red", "dog", "[SEP]"]
    labels = model.labels(tokens)
    asked = [model.tokenizer.convert_ids_to_tokens(row[row != IGNORED]) for row in labels]
    assert asked == [["a", "red", "dog", "[SEP]"], ["a", "cat", "[SEP]"]]
    assert model.tokenize(["a " * 30], 5).shape[1] == 8 + 5
    assert model.prepare(" a \n dog ") == "a dog"


def test_the_first_loss_is_that_of_a_guess(tokenizer: str) -> None:
    check_that_the_first_loss_is_that_of_a_guess(make(tokenizer))


def test_a_changed_token_moves_itself_and_those_behind_it(tokenizer: str) -> None:
    check_that_a_token_changes_itself_and_those_behind_it(make(tokenizer))


def test_language_model_and_image_encoder_are_frozen(tokenizer: str) -> None:
    model = make(tokenizer).train()
    assert not model.model.language_model.training and not model.model.vision_model.training
    assert model.model.qformer.training
    trained = {name.split(".")[1] for name in model.trained()}
    assert trained == {"vision_model", "query_tokens", "qformer", "language_projection"}
    assert {name for name in model.trained() if "vision" in name} == {
        f"model.vision_model.post_layernorm.{name}" for name in ("weight", "bias")
    }
    model(batch_of(model), step_of())["lm"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.trained().values())


def test_the_image_side_is_that_of_the_first_stage_without_its_text_branch(
    tokenizer: str,
) -> None:
    model = make(tokenizer)
    first = Blip2ForImageTextRetrieval.from_pretrained(qformer_of(tokenizer)).eval()
    pixels = batch_of(model).pixels
    with torch.no_grad():
        seen = first.qformer(
            query_embeds=first.query_tokens.expand(4, -1, -1),
            encoder_hidden_states=first.vision_model(pixels).last_hidden_state,
        ).last_hidden_state
        expected = model.model.language_projection(seen)
        torch.testing.assert_close(model.look(pixels), expected)
    assert not hasattr(model.model.qformer.encoder.layer[0], "intermediate")


def test_stock_transformers_gives_the_same_numbers(tokenizer: str, tmp_path: Path) -> None:
    model = make(tokenizer)
    model.write(tmp_path)
    stock = Blip2ForConditionalGeneration.from_pretrained(tmp_path).eval()
    check_that_the_stock_model_gives_the_same_numbers(model, stock)


def test_sixteen_pairs_are_learnt_by_heart(
    tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = learnt_by_heart(config(tokenizer), 600, lr=1e-2)
    hidden = model.read(model.look(batch.pixels), batch.texts[:, :-1])
    labels = model.labels(batch.texts)
    assert share_known(model.head(hidden), labels) > 0.9


def test_the_stage_caption_runs_what_is_trained(tokenizer: str, tmp_path: Path) -> None:
    check_that_the_stage_caption_runs_it(make(tokenizer, prompt="a red"), tmp_path)


def test_minigpt4_trains_the_projection_alone(tokenizer: str, tmp_path: Path) -> None:
    fields = {"recipe": "minigpt4", "model": qformer_of(tokenizer)}
    settings: Any = small(ProjectConfig, tokenizer, **fields)
    model = settings.build()
    assert set(model.trained()) == {
        f"model.language_projection.{name}" for name in ("weight", "bias")
    }
    assert settings.written()["."].architecture == "Blip2ForConditionalGeneration"
    plain: Any = ProjectConfig.of(recipe="minigpt4")
    assert (plain.lr, plain.min_lr, plain.weight_decay) == (1e-4, 8e-5, 0.05)
    check_contract(settings, tmp_path)


def test_what_does_not_fit_is_refused(tokenizer: str, tmp_path: Path) -> None:
    first, words = qformer_of(tokenizer), language_of(tokenizer)
    with pytest.raises(ValueError, match="language: name the language model"):
        Generate.from_pretrained(first)
    with pytest.raises(ValueError, match="is no Blip2ForImageTextRetrieval but 'CLIPModel'"):
        Generate.from_pretrained(clip_of(tokenizer), language=words)
    with pytest.raises(ValueError, match="image_size must be 32, that of the frozen"):
        Generate.from_pretrained(first, language=words, image_size=64)
    with pytest.raises(ValueError, match=r"has no config\.json"):
        Generate.from_pretrained(tmp_path, language=words)
