"""The second stage of LLaVA and of MiniGPT-4: answers alone are learnt, and chats are answered."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.blips import drawn
from helpers.contract import check_contract, learnt_by_heart, share_known, small
from helpers.image_prefixes import (
    check_that_a_token_changes_itself_and_those_behind_it,
    check_that_the_first_loss_is_that_of_a_guess,
)
from helpers.nano import batch_of, step_of
from helpers.starts import clip_of, llava_of, minigpt4_of
from transformers import LlavaForConditionalGeneration

from models.inference.decoding import Settings
from models.inference.vlm import CHAT_PROMPT, GenericCaptioner
from models.objectives.batch import Batch
from models.objectives.instruct_config import InstructConfig
from models.objectives.masking import IGNORED
from models.random import hash_of
from models.text.conversation import Turn, as_text
from models.text.instructions import BRIEF


def config(tokenizer: str, **fields: Any) -> Any:
    own = {"model": minigpt4_of(tokenizer)} if fields.get("recipe") == "minigpt4" else {}
    return small(InstructConfig, tokenizer, **own, **fields)


def make(tokenizer: str, **fields: Any) -> Any:
    torch.manual_seed(0)
    return config(tokenizer, **fields).build().eval()


@pytest.mark.parametrize("recipe", ["llava", "minigpt4"])
def test_the_contract_of_an_objective_is_kept(tokenizer: str, tmp_path: Path, recipe: str) -> None:
    check_contract(config(tokenizer, recipe=recipe), tmp_path)


def test_the_defaults_are_those_of_the_papers() -> None:
    assert (InstructConfig().lr, InstructConfig().batch_size) == (2e-5, 32)
    other = InstructConfig.of(recipe="minigpt4")
    assert (other.lr, other.min_lr, other.batch_size, other.max_text_tokens) == (
        3e-5,
        1e-5,
        12,
        160,
    )
    assert other.written()["."].architecture == "Blip2ForConditionalGeneration"


def test_a_turn_is_the_image_an_instruction_and_the_answer_which_alone_is_asked_for(
    tokenizer: str,
) -> None:
    model = make(tokenizer, system="")
    tokens = model.tokenize(["a red dog", "a cat"], 12)
    instruction = BRIEF[hash_of("a red dog") % len(BRIEF)]
    words = model.tokenizer(f"\n{instruction} ASSISTANT:", add_special_tokens=False)["input_ids"]
    plain = torch.where(tokens < 0, ~tokens, tokens)[0].tolist()
    user = model.tokenizer("USER: ", add_special_tokens=False)["input_ids"]
    begin = model.tokenizer("")["input_ids"]
    answer = model.tokenizer("a red dog", add_special_tokens=False)["input_ids"]
    assert plain[: len(plain)] == [
        *begin,
        *user,
        *[model.image] * 4,
        *words,
        *answer,
        model.end,
    ] + [model.pad] * (len(plain) - len(begin + user + words + answer) - 5)
    labels = model.labels(tokens)
    asked = [model.tokenizer.convert_ids_to_tokens(row[row != IGNORED]) for row in labels]
    assert asked == [["a", "red", "dog", "[SEP]"], ["a", "cat", "[SEP]"]]
    said = model.tokenize(["a <image> dog"], 12)
    assert (said == model.image).sum() == 0  # an answer cannot stand for an image


def test_the_first_loss_is_that_of_a_guess(tokenizer: str) -> None:
    check_that_the_first_loss_is_that_of_a_guess(make(tokenizer))


@pytest.mark.parametrize("recipe", ["llava", "minigpt4"])
def test_a_changed_token_moves_itself_and_those_behind_it(tokenizer: str, recipe: str) -> None:
    check_that_a_token_changes_itself_and_those_behind_it(make(tokenizer, recipe=recipe))


def test_llava_trains_projection_and_language_model_and_minigpt4_the_projection(
    tokenizer: str,
) -> None:
    model = make(tokenizer).train()
    assert model.language.training and not model.model.model.vision_tower.training
    model(batch_of(model), step_of())["lm"].backward()
    trained = model.trained()
    assert not any("vision_tower" in name or "linear_2" in name for name in trained)
    assert any("language_model" in name for name in trained) and any(
        "linear_1" in n for n in trained
    )
    assert all(p.grad is not None for p in trained.values())
    other = make(tokenizer, recipe="minigpt4")
    assert {name.split(".")[1] for name in other.trained()} == {"language_projection"}


def test_stock_transformers_gives_the_same_loss(tokenizer: str, tmp_path: Path) -> None:
    model = make(tokenizer)
    model.write(tmp_path)
    stock: Any = LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    batch = batch_of(model)
    tokens = torch.where(batch.texts < 0, ~batch.texts, batch.texts)
    labels = torch.nn.functional.pad(model.labels(batch.texts), (1, 0), value=IGNORED)
    with torch.no_grad():
        found = stock(tokens, batch.pixels, labels=labels).loss
    torch.testing.assert_close(found, model(batch, step_of())["lm"])


def test_sixteen_pairs_are_learnt_by_heart(tokenizer: str) -> None:
    model, batch = learnt_by_heart(config(tokenizer, system=""), 200, lr=1e-2)
    labels = model.labels(batch.texts)
    hidden = model.read(model.look(batch.pixels), batch.texts[:, :-1])
    assert share_known(model.head(hidden), labels) > 0.9


@pytest.mark.parametrize("recipe", ["llava", "minigpt4"])
def test_the_stage_caption_asks_what_training_asked(
    tokenizer: str, tmp_path: Path, recipe: str
) -> None:
    fields = {} if recipe == "minigpt4" else {"system": "Say 'what' you see."}
    model = make(tokenizer, recipe=recipe, **fields)
    with torch.no_grad():
        model.head.weight[model.image] = 0.0  # no caption stands for an image
    model.write(tmp_path)
    reader = GenericCaptioner.from_pretrained(str(tmp_path), dtype="float32")
    assert reader.is_chat == (recipe == "llava")
    images = [drawn(seed) for seed in range(2)]
    settings = Settings(decoding="greedy", max_tokens=6, max_length=6, min_length=0)
    memory = model.look(model.preprocess(images))
    question = torch.tensor([model.question(CHAT_PROMPT)])
    for row, text in enumerate(reader.write_captions(images, settings)):
        ids = question
        while ids.shape[1] < question.shape[1] + 6 and ids[0, -1] != model.end:
            logits = model.head(model.read(memory[row : row + 1], ids)[:, -1])
            ids = torch.cat([ids, logits.argmax(-1)[:, None]], 1)
        said = model.tokenizer.decode(ids[0, question.shape[1] :], skip_special_tokens=True)
        assert text == " ".join(said.split())


def test_what_does_not_fit_is_refused(tokenizer: str) -> None:
    with pytest.raises(ValueError, match="recipe must be llava for"):
        config(tokenizer, recipe="llava-1.5", image_size=32, model=llava_of(tokenizer)).build()
    with pytest.raises(ValueError, match="language: name the language model"):
        config(tokenizer, model=clip_of(tokenizer)).build()


def test_every_answer_of_a_conversation_is_asked_for_and_no_question(tokenizer: str) -> None:
    model = make(tokenizer, system="")
    turns = [Turn("<image>\na big house", "a red dog"), Turn("the tree", "a cat")]
    text = model.prepare(as_text(turns))
    tokens = model.tokenize([text], 64)
    asked = tokens[0, tokens[0] >= 0]
    words = model.tokenizer.convert_ids_to_tokens(asked)
    assert words == ["a", "red", "dog", "[SEP]", "a", "cat", "[SEP]"]
    plain = torch.where(tokens < 0, ~tokens, tokens)[0]
    assert (plain == model.image).sum() == model.image_tokens  # the image stands once
    said = model.tokenizer.convert_ids_to_tokens(plain[plain != model.image])
    for question in ("a big house", "the tree"):
        places = range(len(said))
        assert any(said[i : i + len(question.split())] == question.split() for i in places)
    cut = model.tokenize([text], 5)
    assert model.tokenizer.convert_ids_to_tokens(cut[0, cut[0] >= 0]) == words[:4]
    model.train()(
        Batch(pixels=batch_of(model, ["a"]).pixels, tokens=tokens, image_ids=torch.arange(1)),
        step_of(),
    )["lm"].backward()
