"""What a training is: its objective and its settings, with the paper's values as defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from models.augmentation import Augment
from models.queue import check_queue

__all__ = ["PARTS", "Objective", "TrainConfig"]

Part = Literal["captioner", "matcher"]

Objective = Literal["pretrain", "captioner", "filter"]

PARTS: Mapping[Objective, tuple[Part, ...]] = {
    "pretrain": ("captioner", "matcher"),
    "captioner": ("captioner",),
    "filter": ("matcher",),
}

PAPER: Mapping[Objective, Mapping[str, Any]] = {
    "pretrain": {
        "image_size": 224,
        "batch_size": 2880,
        "epochs": 20,
        "lr": 3e-4,
        "min_lr": 1e-6,
        "warmup_steps": 3000,
        "schedule": "exponential",
        "alpha_epochs": 2,
        "prompt": "",
        "max_text_tokens": 30,
        "crop_scale": 0.2,
    },
    "captioner": {
        "image_size": 384,
        "batch_size": 256,
        "epochs": 5,
        "lr": 1e-5,
        "min_lr": 0.0,
        "warmup_steps": 0,
        "schedule": "cosine",
        "alpha_epochs": 1,
        "prompt": "a picture of ",
        "max_text_tokens": 40,
        "crop_scale": 0.5,
    },
    "filter": {
        "image_size": 384,
        "batch_size": 256,
        "epochs": 6,
        "lr": 1e-5,
        "min_lr": 0.0,
        "warmup_steps": 0,
        "schedule": "cosine",
        "alpha_epochs": 1,
        "prompt": "",
        "max_text_tokens": 35,
        "crop_scale": 0.5,
    },
}

BY_OBJECTIVE: Any = None
"""The default of a field whose paper value `PAPER` gives for each objective."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What is trained, on what, and for how long.

    Defaults are those of BLIP (arXiv 2201.12086, its released configs, Table 14) for the
    objective.

    Attributes:
        objective: `pretrain` is ITC + ITM + LM and saves `captioner/` and `matcher/`; `captioner`
            is LM with the prompt masked and saves one captioner; `filter` is ITC + ITM with the
            texts of one image as equal targets, and saves one matcher.
        model: What it starts from: a size (tiny, base, large; random weights), a folder of
            `train`, or a plain BLIP model, local or on the hub.
        data: `curated`, the pairs that the run exports; `pool`, its web pairs as downloaded; or
            Parquet files or JSON lines {"image", "caption" or "captions"}.
        tokenizer: A BERT tokenizer, needed where `model` is a size.
        image_size: Side in pixels.
        batch_size: Pairs a step on each rank.
        epochs: Passes over the images; `steps`, where it is not 0, decides instead.
        steps: Optimiser steps.
        lr: Peak learning rate.
        min_lr: Learning rate at the end (cosine) or at least (exponential).
        warmup_steps: Steps of a linear rise from 1e-6.
        schedule: `cosine` over the steps after warm-up, or `exponential`, times `decay_rate` an
            epoch.
        decay_rate: Of the exponential schedule.
        weight_decay: On matrices only: biases, norms and the temperature have none.
        beta2: AdamW's second decay.
        queue_size: Pairs in the contrastive queue; a multiple of the global batch.
        momentum: Decay of the momentum encoders.
        alpha: Weight of the momentum model in the contrastive targets.
        alpha_epochs: Epochs over which alpha rises from 0.
        label_smoothing: Of the LM loss.
        prompt: Put before every caption and left out of the LM loss.
        max_text_tokens: Longer texts are cut.
        augment: See `models.augmentation.View`; `crop` and `none` do not mirror.
        crop_scale: The least share of the area that a crop keeps.
        precision: `bf16` is autocast; `auto` takes it where the device has instructions for it.
        threads: Of torch on a CPU; 0 leaves them as they are.
        loaders: Threads that decode images ahead of the training.
        seed: Of weights, order, captions, views and negatives.
        checkpoint_every: Steps between checkpoints; 0 keeps none.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid", "strict": False}

    objective: Objective = "pretrain"
    model: str = "base"
    data: tuple[str, ...] = ()
    tokenizer: str | None = None
    image_size: int = BY_OBJECTIVE
    batch_size: int = BY_OBJECTIVE
    epochs: int = BY_OBJECTIVE
    steps: int = 0
    lr: float = BY_OBJECTIVE
    min_lr: float = BY_OBJECTIVE
    warmup_steps: int = BY_OBJECTIVE
    schedule: Literal["cosine", "exponential"] = BY_OBJECTIVE
    decay_rate: float = 0.9
    weight_decay: float = 0.05
    beta2: float = 0.999
    queue_size: int = 57600
    momentum: float = 0.995
    alpha: float = 0.4
    alpha_epochs: float = BY_OBJECTIVE
    label_smoothing: float = 0.1
    prompt: str = BY_OBJECTIVE
    max_text_tokens: int = BY_OBJECTIVE
    augment: Augment = "paper"
    crop_scale: float = BY_OBJECTIVE
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: int = 0
    loaders: int = 0
    seed: int = 0
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        for field, value in PAPER[self.objective].items():
            if getattr(self, field) is None:
                object.__setattr__(self, field, value)
        for field in ("image_size", "batch_size", "epochs", "max_text_tokens"):
            if getattr(self, field) < 1:
                raise ValueError(f"train.{field} must be at least 1, got {getattr(self, field)}")
        for field in ("momentum", "alpha", "label_smoothing", "crop_scale"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(
                    f"train.{field} must be between 0 and 1, got {getattr(self, field)}"
                )
        if self.lr <= 0:
            raise ValueError(f"train.lr must be positive, got {self.lr}")
        if "matcher" in PARTS[self.objective]:
            check_queue(self.queue_size, self.batch_size)
