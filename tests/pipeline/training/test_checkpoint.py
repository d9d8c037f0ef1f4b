"""Checkpoints: what they hold, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from helpers.trainings import config_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from models.errors import DamagedError
from pipeline.training.checkpoint import FORMAT, Checkpoint
from pipeline.training.loop import train
from pipeline.training.optim import make_optimizer


def test_a_checkpoint_that_is_not_as_it_was_written_is_refused(
    tokenizer: str, pairs: str, tmp_path: Path
) -> None:
    config = config_of(tokenizer)
    train(config, [pairs], tmp_path / "model", stop_at=1)
    checkpoint = tmp_path / "model.partial" / "checkpoint.safetensors"
    whole = checkpoint.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    changes = []
    for at in (0, 7, 9, whole.index(b"step"), header, (header + len(whole)) // 2, len(whole) - 1):
        changed = bytearray(whole)
        changed[at] ^= 2
        changes.append(bytes(changed))
    for content in (*changes, whole[:-1], whole[: header + 9], whole[:5], b""):
        checkpoint.write_bytes(content)
        with pytest.raises(DamagedError, match=r"checkpoint.safetensors: damaged: .* Remove it"):
            train(config, [pairs], tmp_path / "model", stop_at=2)
    checkpoint.write_bytes(whole)
    assert train(config, [pairs], tmp_path / "model", stop_at=2).resumed_from == 1


def test_a_checkpoint_holds_what_is_trained_and_the_memory_and_no_frozen_weight(
    tokenizer: str, tmp_path: Path
) -> None:
    config = config_of(tokenizer, objective="albef").objective
    model = config.build()
    optimizer = make_optimizer(model, config)
    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors", "identity")
    checkpoint.save(model, optimizer, step=0)
    saved = load_file(checkpoint.path)
    memory = {f"memory.{name}" for name in model.memory()}
    assert saved.keys() == {f"model.{name}" for name in model.trained()} | memory
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert "matcher.text_encoder.encoder.layer.0.crossattention.self.query.weight" in frozen
    assert {"memory.images", "memory.text_proj.weight", "memory.mlm.bias"} <= memory


def test_a_checkpoint_of_another_model_or_version_is_not_taken_up(
    tokenizer: str, tmp_path: Path
) -> None:
    config = config_of(tokenizer, objective="captioner").objective
    model = config.build()
    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors", "identity")
    checkpoint.save(model, make_optimizer(model, config), step=3)
    assert checkpoint.read()["step"] == 3
    assert checkpoint.is_own(checkpoint.read())
    assert not Checkpoint(checkpoint.path, "other").is_own(checkpoint.read())
    other = config_of(tokenizer, objective="filter").objective
    matcher = other.build()
    with pytest.raises(DamagedError, match=r"only one of it and the model has memory\.ids"):
        checkpoint.restore(matcher, make_optimizer(matcher, other), checkpoint.read())
    with safe_open(checkpoint.path, "pt") as file:
        state = json.loads(file.metadata()["state"])
    assert state.pop("format") == FORMAT
    for changed in (state, {**state, "format": FORMAT + 1}):
        metadata = {"state": json.dumps(changed)}
        save_file({"model.x": torch.zeros(1)}, checkpoint.path, metadata=metadata)
        assert not checkpoint.is_own(checkpoint.read())
