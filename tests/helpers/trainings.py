"""Trainings of a few steps on coloured squares, and what they leave."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from helpers import nano
from models.objectives.registry import DEFAULT, OBJECTIVES
from pipeline.manifest.train_config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
COLORS = {"red": (220, 30, 30), "green": (30, 160, 50), "blue": (40, 60, 230), "grey": (128,) * 3}
TIMES = ("images_per_second", "wait_seconds", "compute_seconds", "tflops", "mfu")
NANO = dataclasses.replace(nano.NANO, vision_layers=1, text_width=32, dropout=0.1)


def fitting(fields: dict[str, Any], objective: str = DEFAULT) -> dict[str, Any]:
    """Those of some fields that a training of an objective has."""
    kinds = (TrainConfig, OBJECTIVES[objective])
    names = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    return {name: value for name, value in fields.items() if name in names}


def config_of(tokenizer: str | None, **settings: Any) -> TrainConfig:
    plain: dict[str, Any] = {
        "model": "nano",
        "tokenizer": tokenizer,
        "image_size": 32,
        "batch_size": 4,
        "steps": 6,
        "lr": 1e-3,
        "warmup_steps": 2,
        "queue_size": 8,
        "augment": "crop",
        "precision": "fp32",
        "threads": 1,
        "checkpoint_every": 0,
        "sample_every": 0,
    }
    plain = fitting(plain, settings.get("objective", DEFAULT))
    return TrainConfig.of(**{**plain, **settings})


def metrics(out: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.parent.name}/{name}": tensor
        for file in sorted(out.rglob("model.safetensors"))
        for name, tensor in load_file(file).items()
    }


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name
