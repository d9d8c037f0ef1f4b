"""Filters that are trained on near misses, from the texts to the loss."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.scenes import write_scenes
from helpers.trainings import assert_same, metrics, weights

from models.inference.matcher import Matcher
from models.objectives.blip_config import FilterConfig
from models.text.near_misses import KINDS
from pipeline.demo.tokenizer import write_tokenizer
from pipeline.manifest.train_config import TrainConfig, as_sources
from pipeline.training.data import Pairs, Position
from pipeline.training.loader import make_batches
from pipeline.training.loop import train


@pytest.fixture(scope="module")
def human(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twenty-four scenes of the drawn world with five captions each."""
    folder = tmp_path_factory.mktemp("human")
    lines = [
        json.dumps({"image": image, "caption": caption})
        for image, captions in write_scenes(folder, 24, seed=0)
        for caption in captions
    ]
    (folder / "human.jsonl").write_text("\n".join(lines))
    return str(folder / "human.jsonl")


@pytest.fixture(scope="module")
def world_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return str(folder)


@pytest.fixture
def config(world_tokenizer: str, language: str) -> TrainConfig:
    objective = FilterConfig(
        model="nano",
        tokenizer=world_tokenizer,
        image_size=32,
        batch_size=8,
        queue_size=16,
        lr=1e-3,
        max_text_tokens=20,
        augment="none",
        near_misses=2,
        tagger=language,
    )
    return TrainConfig(objective=objective, steps=4, threads=1)


def test_near_misses_add_a_loss_and_the_model_says_how_much_it_reads(
    config: TrainConfig, human: str, tmp_path: Path
) -> None:
    result = train(config, [human], tmp_path / "model")
    assert set(result.losses) == {"itc", "itm", "near", "loss"}
    matcher = Matcher.from_pretrained(str(tmp_path / "model"))
    assert matcher.max_text == 20


def test_a_training_on_near_misses_resumes_bit_for_bit(
    config: TrainConfig, human: str, tmp_path: Path
) -> None:
    train(config, [human], tmp_path / "whole" / "model")
    train(config, [human], tmp_path / "halved" / "model", stop_at=2)
    train(config, [human], tmp_path / "halved" / "model")
    assert_same(*(weights(tmp_path / name / "model") for name in ("whole", "halved")))
    names = ("itc", "itm", "near")
    found = [
        [row[n] for n in names]
        for name in ("whole", "halved")
        for row in metrics(tmp_path / name / "model")
    ]
    assert found[:4] == found[4:]


def test_batches_hold_near_misses_of_their_own_texts(config: TrainConfig, human: str) -> None:
    from models.text.near_misses import NearMisses, Vocabulary

    pairs = Pairs(as_sources([human]), seed=0)
    make = NearMisses(Vocabulary(pairs.captions(), config.objective.near_miss_settings().tagger))
    objective = config.objective.build()
    loaded = next(make_batches(config, [pairs], objective, [Position()], make))
    near = loaded.batches[0].near_misses
    assert near is not None and near.shape[:2] == (8, 2)
    for caption, tokens in zip(loaded.captions, near, strict=True):
        for row in tokens:
            text = objective.tokenizer.decode(row, skip_special_tokens=True)
            assert text != caption
            words, changed = caption.split(), text.split()
            assert len(words) == len(changed)
            assert sum(a != b for a, b in zip(words, changed, strict=True)) <= 4


def test_a_text_without_near_misses_is_left_out_of_the_loss(
    config: TrainConfig, human: str
) -> None:
    torch.manual_seed(0)
    objective = config.objective.build()
    pairs = Pairs(as_sources([human]), seed=0)
    loaded = next(make_batches(config, [pairs], objective, [Position()]))
    (batch,) = loaded.on(torch.device("cpu"), objective)
    assert batch.near_misses is None
    from helpers.nano import step_of

    from models.objectives.batch import Batch

    def loss(near: torch.Tensor | None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        med = config.objective.build()
        given = Batch(
            pixels=batch.pixels, tokens=batch.tokens, image_ids=batch.image_ids, near_misses=near
        )
        return med(given, step_of(0))

    pad = objective.tokenizer.pad_token_id
    wrong = batch.texts.roll(1, 0)[:, None]
    padded = torch.cat([wrong, torch.full_like(wrong, pad)], 1)
    plain, one, two, none = (
        loss(near) for near in (None, wrong, padded, torch.full_like(wrong, pad))
    )
    assert set(plain) == {"itc", "itm"}
    for found in (one, two, none):
        assert torch.equal(found["itm"], plain["itm"]) and torch.equal(found["itc"], plain["itc"])
    assert float(two["near"]) == pytest.approx(float(one["near"]), abs=1e-6)
    assert 0 < float(none["near"]) < float(one["near"])


def test_a_filter_learns_to_tell_a_colour_from_its_near_misses(
    config: TrainConfig, tokenizer: str, pairs: str, tmp_path: Path
) -> None:
    """Squares of four colours, whose captions differ in nothing but the colour."""
    settings = {**config.objective.__dict__, "tokenizer": tokenizer, "near_misses": 1, "lr": 3e-3}
    longer = TrainConfig(objective=FilterConfig(**settings), steps=200, threads=1)
    train(longer, [pairs], tmp_path / "model")
    near = [row["near"] for row in metrics(tmp_path / "model")]
    assert sum(near[-20:]) / 20 < 0.5 * sum(near[:20]) / 20


def test_without_near_misses_the_training_is_the_one_it_was(world_tokenizer: str) -> None:
    """A filter that was trained before there were near misses is still taken for done."""
    before = FilterConfig(model="nano", tokenizer=world_tokenizer).measurement()
    assert "near_misses" not in before and "tagger" not in before
    now = FilterConfig(model="nano", tokenizer=world_tokenizer, near_misses=1).measurement()
    assert now == {**before, "near_misses": 1, "tagger": "en_core_web_sm"}


def test_a_tagger_that_is_missing_is_named_with_its_remedy(
    config: TrainConfig, human: str, tmp_path: Path
) -> None:
    objective = {**config.objective.__dict__, "tagger": "no_such_pipeline"}
    wrong = TrainConfig(objective=FilterConfig(**objective), steps=1)
    with pytest.raises(ValueError, match=r"train\.tagger.*spacy download no_such_pipeline"):
        train(wrong, [human], tmp_path / "model")


def test_fewer_than_no_near_misses_are_refused() -> None:
    with pytest.raises(ValueError, match=r"train\.near_misses must be at least 0"):
        FilterConfig(near_misses=-1)


def test_weights_of_kinds_are_part_of_the_training_and_checked(config: TrainConfig) -> None:
    plain = config.objective
    weighted = replace(plain, near_miss_kinds={"relation": 3.0})
    assert "near_miss_kinds" not in plain.measurement()
    assert weighted.measurement()["near_miss_kinds"] == {"relation": 3.0}
    for wrong in ({"relation": -1.0}, {"relation": float("nan")}, dict.fromkeys(KINDS, 0.0)):
        with pytest.raises(ValueError, match="near_miss_kinds must be numbers of at least 0"):
            replace(plain, near_miss_kinds=wrong)
