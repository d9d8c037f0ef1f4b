"""Steps that are not finite: left out, counted, and never saved."""

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.trainings import assert_same, config_of, metrics
from safetensors.torch import load_file

from models.objectives.base import Step
from models.objectives.batch import Batch
from models.objectives.blip import MED
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.loop import train
from pipeline.training.optim import make_optimizer


def spoil(
    monkeypatch: pytest.MonkeyPatch, steps: Collection[int], *, gradient_only: bool = False
) -> None:
    """Let MED have, at some steps, a loss that is not a number, or a gradient alone."""
    forward = MED.forward

    def spoilt(self: MED, batch: Batch, step: Step) -> dict[str, torch.Tensor]:
        losses = forward(self, batch, step)
        if step.number in steps:
            weight = next(iter(self.trained().values())).flatten()[0]
            # The root of 0 is 0, and its slope is infinite.
            bad = torch.sqrt(weight * 0) if gradient_only else weight * torch.nan
            losses["lm"] = losses["lm"] + bad
        return losses

    monkeypatch.setattr(MED, "forward", spoilt)


def floats_of(path: Path) -> list[torch.Tensor]:
    return [tensor for tensor in load_file(path).values() if tensor.is_floating_point()]


@pytest.mark.parametrize("gradient_only", [False, True])
def test_a_step_that_is_not_finite_is_left_out_and_counted(
    tokenizer: str,
    pairs: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    gradient_only: bool,
) -> None:
    spoil(monkeypatch, {2, 3}, gradient_only=gradient_only)
    config, out = config_of(tokenizer, checkpoint_every=1), tmp_path / "model"
    checkpoint = tmp_path / "model.partial/checkpoint.safetensors"
    train(config, [pairs], out, stop_at=2)
    before = {k: v for k, v in load_file(checkpoint).items() if not k.startswith("memory")}
    train(config, [pairs], out, stop_at=4)
    after = load_file(checkpoint)
    assert_same(before, {name: after[name] for name in before})
    assert all(tensor.isfinite().all() for tensor in after.values())
    result = train(config, [pairs], out)
    assert (result.steps, result.skipped) == (6, 2)
    rows = metrics(out)
    assert [row.get("skipped") for row in rows] == [None, None, 1, 2, None, None]
    assert ["loss" in row and row["grad_norm"] > 0 for row in rows] == [
        row.get("skipped") is None for row in rows
    ]
    assert "step 2 is skipped" in caplog.text
    assert ("lm, grad_norm, loss not finite" not in caplog.text) == gradient_only
    assert "2 steps were skipped" in caplog.text
    json.loads(json.dumps(rows, allow_nan=False))


def test_ten_such_steps_in_a_row_end_the_training(
    tokenizer: str, pairs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, range(3, 100))
    config = config_of(tokenizer, steps=20, checkpoint_every=2)
    with pytest.raises(
        FloatingPointError, match=r"in 10 steps in a row, up to step 12: .*--continue"
    ):
        train(config, [pairs], tmp_path / "model")
    saved = floats_of(tmp_path / "model.partial/checkpoint.safetensors")
    assert all(tensor.isfinite().all() for tensor in saved)


def test_weights_that_are_not_finite_are_not_saved_and_two_checkpoints_are_kept(
    tokenizer: str, tmp_path: Path
) -> None:
    config = config_of(tokenizer, objective="captioner").objective
    model = config.build()
    optimizer = make_optimizer(model, config)
    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors", "identity")
    for step in (1, 2, 3):
        checkpoint.save(model, optimizer, step=step)
    whole = checkpoint.path.read_bytes()
    name, weight = next(iter(model.trained().items()))
    with torch.no_grad():
        weight.view(-1)[0] = torch.inf
    with pytest.raises(FloatingPointError, match=rf"model\.{name} has .* not saved.*--continue"):
        checkpoint.save(model, optimizer, step=4)
    assert checkpoint.path.read_bytes() == whole and checkpoint.read()["step"] == 3
    checkpoint.path.unlink()
    assert checkpoint.read()["step"] == 2
    assert not checkpoint.previous.exists()


def test_a_batch_that_is_not_finite_does_not_get_into_the_queue(tokenizer: str) -> None:
    model = config_of(tokenizer, objective="filter").objective.build().train()
    batch = Batch(
        pixels=torch.full((4, 3, 32, 32), torch.nan),
        tokens=model.tokenize(["a red square"] * 4, 12),
        image_ids=torch.arange(4),
    )
    model(batch, Step())
    assert all(value.isfinite().all() for value in model.memory().values())


def test_gradients_are_clipped_to_a_norm(tokenizer: str, pairs: str, tmp_path: Path) -> None:
    plain = config_of(tokenizer, objective="captioner", steps=3)
    runs = {}
    for longest in (0.0, 1e-3, 1e6):
        config = dataclasses.replace(plain, max_grad_norm=longest)
        train(config, [pairs], tmp_path / str(longest))
        runs[longest] = metrics(tmp_path / str(longest))
    norms = [[row["grad_norm"] for row in runs[longest]] for longest in runs]
    assert norms[0] == norms[2] and norms[0][0] == norms[1][0] > 1e-3
    settings: list[dict[str, Any]] = [plain.measurement(), config.measurement()]
    assert "max_grad_norm" not in settings[0] and settings[1]["max_grad_norm"] == 1e6


def test_a_clipped_gradient_has_the_norm_that_is_asked_for(tokenizer: str) -> None:
    from pipeline.training.optim import clip

    model = config_of(tokenizer, objective="captioner").objective.build()
    for parameter in model.trained().values():
        parameter.grad = torch.ones_like(parameter)
    norm = clip(model, 0.5)
    assert float(norm) == pytest.approx(sum(p.numel() for p in model.trained().values()) ** 0.5)
    assert float(clip(model)) == pytest.approx(0.5, rel=1e-4)
