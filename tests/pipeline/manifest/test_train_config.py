"""The config of a training."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from models.weights import revision_of
from pipeline.manifest.train_config import Source, TrainConfig, start_of


def test_defaults_are_the_papers_for_each_objective() -> None:
    pretrain, captioner, matcher = (
        TrainConfig(objective=objective) for objective in ("pretrain", "captioner", "filter")
    )
    assert (pretrain.lr, pretrain.epochs, pretrain.schedule) == (3e-4, 20, "exponential")
    assert (captioner.lr, captioner.epochs, captioner.schedule) == (1e-5, 5, "cosine")
    assert (matcher.lr, matcher.epochs, matcher.image_size) == (1e-5, 6, 384)
    lengths = [config.max_text_tokens for config in (pretrain, captioner, matcher)]
    assert lengths == [30, 40, 35]
    assert (pretrain.prompt, captioner.prompt) == ("", "a picture of ")
    assert (pretrain.queue_size, pretrain.momentum, pretrain.alpha) == (57600, 0.995, 0.4)
    assert [c.negatives for c in (pretrain, captioner, matcher)] == ["local", "global", "global"]
    albef, clip = TrainConfig(albef=True), TrainConfig(objective="clip")
    floors = [c.floor for c in (pretrain, matcher, TrainConfig(objective="joint"), albef)]
    assert floors == [1e-4, 0.0, 0.0, 0.0]
    assert (albef.queue_size, albef.lr, albef.weight_decay) == (65536, 1e-4, 0.02)
    assert (albef.warmup_steps, albef.warmup_lr, albef.magnitude) == (2000, 1e-5, 7)
    assert (pretrain.warmup_steps, pretrain.warmup_lr, pretrain.magnitude) == (3000, 1e-6, 5)
    assert (clip.batch_size, clip.weight_decay) == (32768, 0.2)
    assert (clip.beta2, clip.eps, clip.warmup_lr) == (0.98, 1e-6, 0.0)
    assert {config.eps for config in (pretrain, captioner, matcher, albef)} == {1e-8}


def test_the_defaults_of_large_are_those_of_a_vit_l() -> None:
    large = {
        objective: TrainConfig(objective=objective, model="large")
        for objective in ("pretrain", "captioner", "filter")
    }
    assert (large["pretrain"].lr, large["pretrain"].batch_size) == (2e-4, 2400)
    assert (large["captioner"].lr, large["filter"].lr) == (2e-6, 5e-6)
    assert TrainConfig(model="large", lr=1e-4).lr == 1e-4
    for settings in ({"albef": True}, {"objective": "clip"}):
        assert TrainConfig(model="large", **settings).lr == TrainConfig(**settings).lr


def test_albef_goes_with_pretraining_alone() -> None:
    with pytest.raises(ValueError, match="albef goes with objective pretrain, not filter"):
        TrainConfig(albef=True, objective="filter")


def test_data_have_weights_in_a_manifest() -> None:
    adapter = TypeAdapter(TrainConfig)
    data = ["curated", {"path": "coco.json", "weight": 2, "images": "train2017"}]
    config = adapter.validate_python({"data": data})
    assert config.data == ("curated", Source(path="coco.json", weight=2.0, images="train2017"))
    with pytest.raises(ValueError, match="weight must be positive"):
        adapter.validate_python({"data": [{"path": "a", "weight": 0}]})
    with pytest.raises(ValueError, match="wait"):
        adapter.validate_python({"data": [{"path": "a", "wait": 2}]})


def test_a_config_is_made_from_a_manifest() -> None:
    adapter = TypeAdapter(TrainConfig)
    config = adapter.validate_python({"objective": "filter", "lr": "2e-5", "data": ["a.jsonl"]})
    assert (config.lr, config.batch_size, config.data) == (2e-5, 256, ("a.jsonl",))
    with pytest.raises(ValueError, match="use 57344 or 57856"):
        adapter.validate_python({"batch_size": 512})
    with pytest.raises(ValueError, match="learning_rate"):
        adapter.validate_python({"learning_rate": 1e-5})


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": 1.5},
        {"lr": 0.0},
        {"batch_size": 0},
        {"crop_scale": -0.1},
        {"image_size": 0},
        {"mask_patches": 1.0},
        {"drop_path": 1.0},
        {"magnitude": 11},
        {"eps": 0.0},
        {"warmup_lr": -1e-6},
        {"workers": 0},
        {"accumulate": 0},
        {"streams": 3, "workers": 2},
        {"batch_size": 6, "accumulate": 4},
        {"batch_size": 6, "streams": 4},
    ],
)
def test_impossible_values_are_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"train.{next(iter(settings))} must be"):
        TrainConfig(**settings)


def test_a_training_starts_from_weights_in_several_files_too(tmp_path: Path) -> None:
    assert start_of("base") == []
    for folder in (tmp_path / "captioner", tmp_path / "matcher"):
        folder.mkdir()
        (folder / "model-00001-of-00002.safetensors").write_bytes(b"weights")
    before = start_of(str(tmp_path))
    assert before == [revision_of(str(tmp_path / part)) for part in ("captioner", "matcher")]
    (tmp_path / "matcher" / "model-00001-of-00002.safetensors").write_bytes(b"others")
    assert start_of(str(tmp_path))[0] == before[0] and start_of(str(tmp_path)) != before
