"""The optimiser: learning rates, weight decay, frozen parameters."""

import dataclasses
from pathlib import Path

import pytest
import torch
from helpers.nano import differing
from helpers.trainings import config_of
from safetensors.torch import load_file

from models.objectives.albef_config import AlbefConfig
from models.objectives.blip import MED
from models.objectives.blip_config import FilterConfig, PretrainConfig
from pipeline.training.loop import train
from pipeline.training.optim import Average, learning_rate, make_optimizer
from pipeline.training.validation import model_in_progress


def test_the_learning_rate_warms_up_and_falls_along_a_cosine() -> None:
    config = FilterConfig(lr=1.0, min_lr=0.2, warmup_steps=10)
    rates = [learning_rate(config, step, 110, 10) for step in range(111)]
    assert rates[0] == pytest.approx(1e-6)
    assert rates[5] == pytest.approx(0.5, abs=1e-5)
    assert rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.6)
    assert rates[110] == pytest.approx(0.2)


def test_the_rise_of_albef_is_as_released_and_never_passes_the_rate() -> None:
    config = AlbefConfig()
    rates = [learning_rate(config, step, 30_000, 1000) for step in (0, 1000, 2000, 30_000)]
    assert rates == pytest.approx([1e-5, 5.5e-5, 1e-4, 1e-5])
    low = AlbefConfig(lr=1e-6, min_lr=0.0)
    assert learning_rate(low, 0, 30_000, 1000) == 1e-6


def test_the_learning_rate_of_pretraining_falls_by_the_epoch() -> None:
    config = PretrainConfig(lr=1.0, min_lr=0.5, warmup_steps=0, decay_rate=0.9)
    rates = [learning_rate(config, step, 0, 10) for step in (0, 9, 10, 20, 1000)]
    assert rates == pytest.approx([1.0, 1.0, 0.9, 0.81, 0.5])


def test_the_learning_rate_falls_evenly_or_stays() -> None:
    settings = {"lr": 1.0, "min_lr": 0.2, "warmup_steps": 10, "warmup_lr": 0.0}
    linear = FilterConfig(schedule="linear", **settings)
    rates = [learning_rate(linear, step, 110, 10) for step in (5, 10, 60, 110)]
    assert rates == pytest.approx([0.5, 1.0, 0.6, 0.2])
    constant = FilterConfig(schedule="constant", **settings)
    assert [learning_rate(constant, step, 110, 10) for step in (5, 10, 110)] == [0.5, 1.0, 1.0]


def test_weight_decay_is_on_matrices_only(tokenizer: str) -> None:
    model = MED.from_pretrained("nano", tokenizer=tokenizer)
    model.start_momentum(queue_size=0)
    optimizer = make_optimizer(model, PretrainConfig(weight_decay=0.05, eps=1e-6))
    assert optimizer.defaults["eps"] == 1e-6
    decayed, free = (group["params"] for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    assert all(p.ndim > 1 for p in decayed) and all(p.ndim <= 1 for p in free)
    assert any(p is model.temperature for p in free)
    # Shared weights once, momentum encoders not at all.
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert len(decayed) + len(free) == len(trained) == len({id(p) for p in [*decayed, *free]})


def test_running_means_follow_the_weights_and_stand_in_for_them(tokenizer: str) -> None:
    model = config_of(tokenizer, objective="captioner").objective.build()
    average = Average(model, 0.75)
    before = {name: p.detach().clone() for name, p in model.trained().items()}
    with torch.no_grad():
        for p in model.trained().values():
            p.add_(1.0)
    average.update()
    with average.in_place():
        for name, p in model.trained().items():
            torch.testing.assert_close(p, before[name] + 0.25)
    for name, p in model.trained().items():
        assert torch.equal(p, before[name] + 1.0)


def test_running_means_are_what_is_written(tokenizer: str, pairs: str, tmp_path: Path) -> None:
    config = config_of(tokenizer, objective="captioner", ema=0.5)
    train(config, [pairs], tmp_path / "model", stop_at=3)
    saved = load_file(tmp_path / "model.partial/checkpoint.safetensors")
    name = "captioner.vision_model.post_layernorm.weight"
    with model_in_progress(str(tmp_path / "model")) as (folder, _):
        written = load_file(f"{folder}/model.safetensors")[name.removeprefix("captioner.")]
    assert torch.equal(written, saved[f"mean.{name}"])
    assert not torch.equal(written, saved[f"model.{name}"])
    finished = {}
    for ema in (0.0, 0.5):
        train(dataclasses.replace(config, ema=ema), [pairs], tmp_path / str(ema))
        finished[ema] = load_file(tmp_path / str(ema) / "model.safetensors")
    assert differing(finished[0.0], finished[0.5])
    plain = config_of(tokenizer, objective="captioner").measurement()
    assert "ema" not in plain and config.measurement()["ema"] == 0.5


def test_frozen_parameters_are_not_optimised(tokenizer: str) -> None:
    model = config_of(tokenizer, objective="albef").objective.build()
    frozen = {id(p) for p in model.parameters() if not p.requires_grad}
    optimizer = make_optimizer(model, AlbefConfig())
    optimised = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert frozen and optimised == {id(p) for p in model.parameters()} - frozen
    lower = model.matcher.text_encoder.encoder.layer[0].crossattention.self.query.weight
    assert id(lower) in frozen
