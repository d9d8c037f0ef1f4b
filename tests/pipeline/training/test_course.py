"""Changed settings: a checkpoint that is set aside, or taken up with `go_on`."""

import logging
from pathlib import Path
from typing import Any

import pytest
from helpers.trainings import assert_same, config_of, metrics
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from pipeline.manifest.train_config import as_sources
from pipeline.training.data import Pairs, Position
from pipeline.training.loop import train

CHANGES: list[dict[str, Any]] = [
    {"lr": 5e-4},
    {"steps": 8},
    {"steps": 0, "epochs": 1},
    {"precision": "bf16"},
    {"threads": 0},
    {"batch_size": 8},
    {"batch_size": 2, "steps": 0, "epochs": 2},
    {"streams": 2},
    {"accumulate": 2},
    {"shuffle_buffer": 5},
    {"seed": 1},
    {"gradient_checkpointing": True},
    {"max_grad_norm": 1.0},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_checkpoint_of_other_settings_is_taken_up_if_it_is_asked_for(
    tokenizer: str, pairs: str, tmp_path: Path, change: dict[str, Any]
) -> None:
    out, settings = tmp_path / "model", {"steps": 6, "checkpoint_every": 1}
    # A queue of three batches, so that a batch of another size reaches over its end.
    settings["queue_size"] = 24
    train(config_of(tokenizer, **settings), [pairs], out, stop_at=3)
    before = load_file(tmp_path / "model.partial/checkpoint.safetensors")
    config = config_of(tokenizer, **{**settings, **change})
    result = train(config, [pairs], out, stop_at=3, go_on=True)
    assert (result.resumed_from, result.images) == (3, 12)
    assert_same(before, load_file(tmp_path / "model.partial/checkpoint.safetensors"))
    # From then on it is a training of the new settings, which goes on without being asked.
    result = train(config, [pairs], out)
    assert result.resumed_from == 3 and result.steps > 3
    assert result.images == 12 + (result.steps - 3) * config.objective.batch_size
    rows = metrics(out)
    assert [row["step"] for row in rows] == list(range(1, result.steps + 1))
    assert ["changed" in row for row in rows] == [row["step"] == 4 for row in rows]
    noted = rows[3]["changed"]
    assert noted.keys() == change.keys()
    card = (out / "README.md").read_text()
    assert "## Changed settings" in card
    assert all(f"{name} {was} -> {now}" in card for name, (was, now) in noted.items())
    again = train(config, [pairs], out)
    assert again.resumed_from == again.steps  # it is finished


def test_another_batch_size_is_at_the_same_place_of_the_epochs(
    tokenizer: str, pairs: str, tmp_path: Path
) -> None:
    settings = {"objective": "captioner", "steps": 0, "epochs": 4, "warmup_steps": 0}
    train(config_of(tokenizer, **settings), [pairs], tmp_path / "model", stop_at=10)
    config = config_of(tokenizer, **settings, batch_size=2)
    result = train(config, [pairs], tmp_path / "model", go_on=True)
    # Two epochs of five batches, and two of ten.
    assert (result.steps, result.images) == (30, 80)
    rows = metrics(tmp_path / "model")
    assert [row["epoch"] for row in rows[9::10]] == [1, 2, 3]
    assert rows[10]["lr"] == pytest.approx(5e-4)


def test_a_checkpoint_of_other_settings_is_set_aside_and_taken_back(
    tokenizer: str, pairs: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = config_of(tokenizer), config_of(tokenizer, lr=2e-3)
    out = tmp_path / "model"
    train(first, [pairs], out, stop_at=3)
    saved = (tmp_path / "model.partial/checkpoint.safetensors").read_bytes()
    with caplog.at_level(logging.WARNING):
        assert train(second, [pairs], out, stop_at=4).resumed_from == 0
    (aside,) = tmp_path.glob("model.*.partial")
    assert (aside / "checkpoint.safetensors").read_bytes() == saved
    assert str(aside) in caplog.text and "capfilt train MANIFEST --continue" in caplog.text
    assert train(first, [pairs], out, stop_at=5).resumed_from == 3
    assert train(second, [pairs], out).resumed_from == 4
    assert [row["step"] for row in metrics(out)] == [1, 2, 3, 4, 5, 6]


def test_tensors_of_other_shapes_are_refused_and_stay(
    tokenizer: str, pairs: str, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    train(config_of(tokenizer), [pairs], out, stop_at=3)
    for change, why in (
        (
            {"queue_size": 16},
            r"does not fit the model: memory\.ids is \[8\] in the checkpoint and \[16\]",
        ),
        ({"objective": "filter"}, "of a training with other objective"),
    ):
        with pytest.raises(ValueError, match=why):
            train(config_of(tokenizer, **change), [pairs], out, go_on=True)
    assert train(config_of(tokenizer), [pairs], out).resumed_from == 3


def test_other_data_are_another_training(tokenizer: str, pairs: str, tmp_path: Path) -> None:
    train(config_of(tokenizer), [pairs], tmp_path / "model", stop_at=1)
    with pytest.raises(ValueError, match="other data, and cannot go on here"):
        train(config_of(tokenizer), [pairs, pairs], tmp_path / "model", go_on=True)


@given(
    st.integers(1, 4), st.integers(1, 30), st.integers(0, 3), st.integers(0, 9), st.integers(0, 9)
)
def test_a_position_is_found_again_by_what_is_behind_it(
    pairs: str, streams: int, shuffle_buffer: int, epoch: int, block: int, offset: int
) -> None:
    whole = Pairs(as_sources([pairs]), num_streams=min(streams, 3), shuffle_buffer=shuffle_buffer)
    stream = whole.like(stream=streams % whole.num_streams)
    sizes = [sum(int(is_met.sum()) for _, is_met in block) for block in stream.blocks(epoch)]
    block %= len(sizes)
    at = Position(epoch=epoch, block=block, offset=offset % sizes[block])
    assert stream.position_after(stream.epochs_before(at)) == at
