"""What holds of every language model that continues from an image."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.blips import drawn
from helpers.nano import batch_of, step_of
from models.inference.decoding import Settings
from models.inference.vlm import GenericCaptioner
from models.objectives.masking import IGNORED

__all__ = [
    "check_that_a_token_changes_itself_and_those_behind_it",
    "check_that_the_first_loss_is_that_of_a_guess",
    "check_that_the_stage_caption_runs_it",
    "check_that_the_stock_model_gives_the_same_numbers",
]


def check_that_the_first_loss_is_that_of_a_guess(model: Any) -> None:
    """With a head of zeros, all tokens are equally likely."""
    with torch.no_grad():
        model.head.weight.zero_()
    loss = model(batch_of(model), step_of())["lm"].item()
    assert loss == pytest.approx(math.log(len(model.tokenizer)), rel=1e-5)


def check_that_a_token_changes_itself_and_those_behind_it(model: Any, place: int = 7) -> None:
    """Attention is causal: a changed token changes no hidden state before it."""
    batch = batch_of(model, ["a red dog on the house"])
    features, changed = model.look(batch.pixels), batch.texts.clone()
    changed[0, place] = model.tokenizer.convert_tokens_to_ids("cat")
    with torch.no_grad():
        difference = model.read(features, batch.texts) - model.read(features, changed)
    moved = difference[0].abs().amax(1) > 1e-6
    assert moved.tolist() == [i >= place for i in range(len(moved))]


def check_that_the_stock_model_gives_the_same_numbers(model: Any, stock: Any) -> None:
    """Logits and loss of a model are those of the stock one that was loaded from its folder."""
    batch = batch_of(model)
    labels = torch.nn.functional.pad(model.labels(batch.texts), (1, 0), value=IGNORED)
    with torch.no_grad():
        found = stock(input_ids=batch.texts, pixel_values=batch.pixels, labels=labels)
        hidden = model.read(model.look(batch.pixels), batch.texts)
        torch.testing.assert_close(found.logits, model.head(hidden))
        torch.testing.assert_close(found.loss, model(batch, step_of())["lm"])


def check_that_the_stage_caption_runs_it(model: Any, folder: Path, max_length: int = 8) -> None:
    """Captions by the stage's reader are those of greedy decoding, token by token."""
    with torch.no_grad():
        model.head.weight[model.image] = 0.0  # no caption stands for an image
    model.write(folder)
    reader = GenericCaptioner.from_pretrained(str(folder), dtype="float32")
    images = [drawn(seed) for seed in range(3)]
    settings = Settings(decoding="greedy", min_length=0, max_length=max_length)
    memory = model.look(model.preprocess(images))
    prefix = torch.tensor([model.prefix()])
    for row, text in enumerate(reader.write_captions(images, settings)):
        ids = prefix
        while ids.shape[1] < prefix.shape[1] + max_length and ids[0, -1] != model.end:
            logits = model.head(model.read(memory[row : row + 1], ids)[:, -1])
            ids = torch.cat([ids, logits.argmax(-1)[:, None]], 1)
        said = model.tokenizer.decode(ids[0, prefix.shape[1] :], skip_special_tokens=True)
        assert text == " ".join(said.split())
