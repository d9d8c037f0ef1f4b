"""The config of a training."""

from pathlib import Path
from typing import Any

import pytest

from models.weights import revision_of
from pipeline.manifest.manifest import Manifest, ManifestError
from pipeline.manifest.train_config import Source, TrainConfig, start_of
from stages.base import digest


def parsed(**fields: Any) -> TrainConfig:
    """The config of an entry of a manifest."""
    return Manifest.parse({"name": "m", "train": {"a": fields}}).train["a"]


def test_an_entry_holds_the_fields_of_the_training_and_of_its_objective() -> None:
    data = ["curated", {"path": "coco.json", "weight": 2, "images": "train2017"}]
    config = parsed(objective="filter", lr="2e-5", steps=7, data=data)
    assert config.data == ("curated", Source(path="coco.json", weight=2.0, images="train2017"))
    assert (config.objective.name, config.objective.lr, config.steps) == ("filter", 2e-5, 7)
    assert config == TrainConfig.from_settings(config.settings())
    assert parsed().objective.name == "pretrain"
    assert parsed(model="large").objective.lr == 2e-4
    assert parsed(model="large", lr=1e-4).objective.lr == 1e-4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"objective": "filtr"},
            r"train\.a\.objective: no objective 'filtr'; did you mean 'filter'",
        ),
        ({"objective": ["x"]}, r"train\.a\.objective: no objective \['x'\]; known are pretrain, "),
        (
            {"objective": "clip", "queue_size": 8},
            r"train\.a\.queue_size: unknown field of objective clip; pretrain, filter, joint",
        ),
        (
            {"objective": "captioner", "promt": ""},
            r"train\.a\.promt: unknown field of objective captioner; did you mean 'prompt'",
        ),
        (
            {"objective": "clip", "loader": 2},
            r"train\.a\.loader: unknown field of objective clip; did you mean 'loaders'",
        ),
        (
            {"albef": True},
            r"train\.a\.albef: unknown .*; write `objective: albef` and leave it out",
        ),
        ({"objective": "albef", "label_smoothing": 0}, r"train\.a\.label_smoothing: unknown"),
        ({"data": [{"path": "a", "weight": 0}]}, "weight must be positive"),
        ({"data": [{"path": "a", "wait": 2}]}, "wait: unknown field; did you mean 'weight'"),
        ({"batch_size": 512}, "use 57344 or 57856"),
        ({"lr": "fast"}, r"train\.a\.lr: must be a number, got 'fast'"),
        ({"lr": True}, r"train\.a\.lr: must be a number, got True"),
        ({"model": None}, r"train\.a\.model: must be a text, got nothing"),
        ({"steps": "many"}, r"train\.a\.steps: must be a whole number, got 'many'"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"model": "train:b"}, r"train\.a\.model: `train` has no 'b'"),
    ],
)
def test_a_mistake_in_an_entry_names_its_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        parsed(**fields)


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
        {"label_smoothing": 2},
        {"queue_size": -1},
        {"eps": 0.0},
        {"warmup_lr": -1e-6},
        {"workers": 0},
        {"accumulate": 0},
        {"streams": 3, "workers": 2},
        {"batch_size": 6, "accumulate": 4, "queue_size": 6},
        {"batch_size": 6, "streams": 4, "queue_size": 6},
    ],
)
def test_impossible_values_are_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"train.{next(iter(settings))} must be"):
        TrainConfig.of(**settings)


def test_only_large_language_models_are_divided_and_their_parts_are_not_measured() -> None:
    with pytest.raises(ValueError, match=r"train\.shard: objective filter has no large"):
        TrainConfig.of(objective="filter", shard=True)
    for field, value in (("ema", 0.9), ("compile", True)):
        with pytest.raises(ValueError, match=rf"train\.shard does not go with {field}"):
            TrainConfig.of(objective="language", shard=True, **{field: value})
    divided, plain = (TrainConfig.of(objective="language", shard=shard) for shard in (True, False))
    assert divided.measurement() == plain.measurement()


FINGERPRINTS = {
    "pretrain": ("82446b14978aa456", "c25ac2598cf84c9c"),
    "captioner": ("b9478cc716802175", "7bb657c7f5b537af"),
    "filter": ("d95a87a5afab3f28", "2833498ce5d0a89f"),
    "joint": ("a62e3dd3886dd4dd", "befcd2c75970bdde"),
    "albef": ("c6aff8f7c7a4db4a", "9254e81ec0bd0204"),
    "clip": ("9a39d85afe2a917d", "d195829b84f5bb37"),
}
"""Digests of the settings of each objective, for `base` and `large`, as of when all objectives had
one set of fields. They are in the fingerprints of models that were trained then."""


@pytest.mark.parametrize("objective", FINGERPRINTS)
def test_models_trained_when_all_objectives_had_the_same_fields_are_recognised(
    objective: str,
) -> None:
    sizes = ("base", "large")
    configs = [parsed(objective=objective, model=size, data=["curated"]) for size in sizes]
    assert tuple(digest(config.measurement()) for config in configs) == FINGERPRINTS[objective]


def test_the_measurement_of_a_clip_is_what_it_was_field_by_field() -> None:
    recorded = {
        **{"objective": "clip", "albef": False, "model": "base", "data": [], "tokenizer": None},
        **{"image_size": 224, "batch_size": 32768, "epochs": 32, "steps": 0, "lr": 0.0005},
        **{"min_lr": 0.0, "warmup_steps": 2000, "warmup_lr": 0.0, "schedule": "cosine"},
        **{"decay_rate": 0.9, "weight_decay": 0.2, "beta2": 0.98, "eps": 1e-06, "queue_size": 0},
        **{"momentum": 0.995, "alpha": 0.4, "alpha_epochs": 2, "negatives": "local"},
        **{"label_smoothing": 0.1, "mask_patches": 0.0, "prompt": "", "max_text_tokens": 77},
        **{"augment": "crop", "crop_scale": 0.9, "magnitude": 5, "drop_path": None},
        **{"precision": "auto", "gradient_checkpointing": False, "accumulate": 1, "streams": 1},
        **{"shuffle_buffer": 10000, "threads": 0, "seed": 0},
    }
    found = parsed(objective="clip").measurement()
    assert {**found, "data": list(found["data"])} == recorded


def test_a_training_starts_from_weights_in_several_files_too(tmp_path: Path) -> None:
    assert start_of("base") == []
    for folder in (tmp_path / "captioner", tmp_path / "matcher"):
        folder.mkdir()
        (folder / "model-00001-of-00002.safetensors").write_bytes(b"weights")
    before = start_of(str(tmp_path))
    assert before == [revision_of(str(tmp_path / part)) for part in ("captioner", "matcher")]
    (tmp_path / "matcher" / "model-00001-of-00002.safetensors").write_bytes(b"others")
    assert start_of(str(tmp_path))[0] == before[0] and start_of(str(tmp_path)) != before
    (tmp_path / "model.safetensors").write_bytes(b"its own")
    assert start_of(str(tmp_path)) == [revision_of(str(tmp_path))]
