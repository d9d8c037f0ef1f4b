"""SimVLM: prefixes and what sees them, the first loss, pairs learnt by heart."""

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
from models.inference.trained import SimVLM as Reader
from models.objectives.simvlm import SimVLM
from models.objectives.simvlm_config import SimVlmConfig


def config(tokenizer: str, **fields: Any) -> Any:
    return small(SimVlmConfig, tokenizer, **fields)


def make(tokenizer: str) -> Any:
    """A nano SimVLM whose weights are large enough to matter."""
    torch.manual_seed(0)
    model = config(tokenizer).build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.3)
    return model


def test_the_contract_of_an_objective_is_kept(tokenizer: str, tmp_path: Path) -> None:
    check_contract(config(tokenizer), tmp_path)


def test_the_first_loss_is_that_of_a_guess(tokenizer: str) -> None:
    model = make(tokenizer)
    with torch.no_grad():
        model.decoder_norm.weight.zero_()
    loss = model(batch_of(model), step_of(0))["prefix_lm"].item()
    assert loss == pytest.approx(math.log(len(model.tokenizer)), rel=1e-5)


def test_the_prefix_is_read_both_ways_and_the_rest_forwards(tokenizer: str) -> None:
    model = make(tokenizer)
    seen = model.see(batch_of(model, ["a"]).pixels)
    words = model.tokenize(["a red dog on the house"], 12)[:, 1:]
    is_prefix = torch.arange(words.shape[1])[None] < 3
    is_there = torch.nn.functional.pad(is_prefix, (seen.shape[1], 0), value=True)
    rest = torch.cat([torch.tensor([[model.begin]]), words[:, 3:]], 1)
    places = torch.arange(3, 3 + rest.shape[1])[None]
    other = model.tokenizer.convert_tokens_to_ids("cat")

    def read(words: torch.Tensor, rest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        encoded = model.encode(seen, words, is_prefix)
        return encoded[0], model.decode(encoded, rest, places, is_there)[0]

    def moved(one: torch.Tensor, two: torch.Tensor) -> list[bool]:
        return ((one - two).abs().amax(1) > 1e-6).tolist()

    with torch.no_grad():
        encoded, decoded = read(words, rest)
        first = words.clone()
        first[0, 2] = other  # the last word of the prefix: image and prefix see it, and the rest
        changed = read(first, rest)
        there = is_there[0]
        assert all(moved(encoded[there], changed[0][there])) and all(moved(decoded, changed[1]))
        behind = words.clone()
        behind[0, 4] = other  # behind the prefix: the encoder does not see it
        changed = read(behind, rest)
        assert not any(moved(encoded[there], changed[0][there]))
        assert not any(moved(decoded, changed[1]))
        later = rest.clone()
        later[0, 2] = other
        changed = read(words, later)
        assert moved(decoded, changed[1]) == [place >= 2 for place in range(rest.shape[1])]


def test_every_prefix_but_the_whole_text_is_drawn(tokenizer: str) -> None:
    model = make(tokenizer)
    batch = batch_of(model, ["a red dog"] * 64)
    drawn_masks: list[torch.Tensor] = []
    encode = model.encode

    def note(seen: torch.Tensor, words: torch.Tensor, is_prefix: torch.Tensor) -> torch.Tensor:
        drawn_masks.append(is_prefix.sum(1))
        return encode(seen, words, is_prefix)

    model.encode = note
    model(batch, step_of(0))
    assert set(drawn_masks[0].tolist()) == {0, 1, 2, 3}  # four tokens with the end


def test_the_loss_is_the_mean_over_the_words_behind_the_prefix(tokenizer: str) -> None:
    model = make(tokenizer)
    batch = batch_of(model, ["a red dog", "two big blue birds on the house"])
    generator = torch.Generator().manual_seed(0)
    chances = torch.rand(2, 1, generator=generator)
    words, losses = batch.texts[:, 1:], []
    for row in range(2):
        length = int((words[row] != model.pad).sum())
        prefix = int(chances[row, 0] * length)
        own = words[row : row + 1, :length]
        encoded = model.encode(
            model.see(batch.pixels[row : row + 1]), own[:, :prefix], own[:, :prefix] > -1
        )
        read = torch.cat([torch.tensor([[model.begin]]), own[:, prefix:-1]], 1)
        places = torch.arange(prefix, length)[None]
        everything = torch.ones(encoded.shape[:2], dtype=torch.bool)
        logits = model.decode(encoded, read, places, everything)[0] @ model.words.weight.T
        losses.append(torch.nn.functional.cross_entropy(logits, own[0, prefix:], reduction="none"))
    torch.testing.assert_close(model(batch, step_of(0))["prefix_lm"], torch.cat(losses).mean())


def test_sixteen_pairs_are_learnt_by_heart(tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, dataclasses.replace(NANO, spread=0.1, text_width=32))
    model, batch = learnt_by_heart(config(tokenizer), 300)
    decoder = Reread(model.next_logits, model.remember(batch.pixels))
    settings = Settings(decoding="beam", max_length=8, min_length=0)
    begun = torch.tensor([model.begin])
    with torch.no_grad():
        ids = write(decoder, begun, [0] * 16, settings, end=model.end, pad=model.pad)[:, 0]
    assert model.tokenizer.batch_decode(ids, skip_special_tokens=True) == list(HEART)


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


def test_what_does_not_fit_is_refused(tokenizer: str, tmp_path: Path) -> None:
    make(tokenizer).write(tmp_path)
    with pytest.raises(ValueError, match="image_size must be 32"):
        SimVLM.from_pretrained(tmp_path, image_size=64)
    with pytest.raises(ValueError, match="image_size must be a multiple of patch_size 16"):
        SimVLM.from_pretrained("nano", tokenizer=tokenizer, image_size=40)
    with pytest.raises(ValueError, match="conv_blocks must be three numbers"):
        SimVlmConfig.of(conv_blocks=(1, 0, 1))
