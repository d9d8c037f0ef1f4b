"""What a training is: its objective and its settings, with the paper's values as defaults."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from models.image.augmentation import GREATEST, Augment
from models.objectives.queue import check_queue
from models.weights import folder_of, revision_of

__all__ = ["CURATED", "POOL", "Objective", "Source", "TrainConfig", "as_sources", "start_of"]

CURATED = "curated"
"""The word in a training's `data` for the pairs that this run exports."""

POOL = "pool"
"""The word in a training's `data` for the web pairs as downloaded, nothing judged."""


Part = Literal["captioner", "matcher"]

Objective = Literal["pretrain", "captioner", "filter", "joint", "clip"]

PARTS: Mapping[Objective, tuple[Part, ...]] = {
    "pretrain": ("captioner", "matcher"),
    "captioner": ("captioner",),
    "filter": ("matcher",),
    "joint": ("captioner", "matcher"),
    "clip": (),
}

FINE: Mapping[str, Any] = {
    "image_size": 384,
    "batch_size": 256,
    "epochs": 6,
    "lr": 1e-5,
    "min_lr": 0.0,
    "warmup_steps": 0,
    "warmup_lr": 1e-6,
    "schedule": "cosine",
    "weight_decay": 0.05,
    "beta2": 0.999,
    "eps": 1e-8,
    "queue_size": 57600,
    "alpha_epochs": 1,
    "prompt": "",
    "max_text_tokens": 35,
    "crop_scale": 0.5,
    "negatives": "global",
    "augment": "paper",
    "magnitude": 5,
}

PRETRAIN: Mapping[str, Any] = {
    **FINE,
    "image_size": 224,
    "batch_size": 2880,
    "epochs": 20,
    "lr": 3e-4,
    "min_lr": 1e-6,
    "warmup_steps": 3000,
    "schedule": "exponential",
    "alpha_epochs": 2,
    "max_text_tokens": 30,
    "crop_scale": 0.2,
    "negatives": "local",
}

PAPER: Mapping[str, Mapping[str, Any]] = {
    "pretrain": PRETRAIN,
    "captioner": {**FINE, "epochs": 5, "prompt": "a picture of ", "max_text_tokens": 40},
    "filter": FINE,
    "joint": {**FINE, "epochs": 5, "max_text_tokens": 40},
    "albef": {
        **PRETRAIN,
        "image_size": 256,
        "batch_size": 512,
        "epochs": 30,
        "lr": 1e-4,
        "min_lr": 1e-5,
        "warmup_steps": 2000,
        "warmup_lr": 1e-5,
        "schedule": "cosine",
        "weight_decay": 0.02,
        "queue_size": 65536,
        "alpha_epochs": 1,
        "max_text_tokens": 25,
        "magnitude": 7,
    },
    "clip": {
        **PRETRAIN,
        "batch_size": 32768,
        "epochs": 32,
        "lr": 5e-4,
        "min_lr": 0.0,
        "warmup_steps": 2000,
        "warmup_lr": 0.0,
        "schedule": "cosine",
        "weight_decay": 0.2,
        "beta2": 0.98,
        "eps": 1e-6,
        "queue_size": 0,
        "max_text_tokens": 77,
        "crop_scale": 0.9,
        "augment": "crop",
    },
}
"""BLIP's released configs and Table 14, ALBEF's released config, CLIP's ViT-B."""

LARGE: Mapping[str, Mapping[str, Any]] = {
    "pretrain": {"batch_size": 2400, "lr": 2e-4},
    "captioner": {"lr": 2e-6},
    "filter": {"lr": 5e-6},
    "joint": {"lr": 2e-6},
}
"""What BLIP has otherwise with its ViT-L: section 4.1, Table 14 and the released configs."""

POSITIVE = (
    "image_size",
    "batch_size",
    "epochs",
    "max_text_tokens",
    "accumulate",
    "workers",
    "streams",
    "shuffle_buffer",
)

NOT_NEGATIVE = (
    "steps",
    "min_lr",
    "warmup_steps",
    "warmup_lr",
    "weight_decay",
    "queue_size",
    "alpha_epochs",
    "streams",
    "threads",
    "loaders",
    "checkpoint_every",
    "sample_every",
)

EFFORT = (
    "checkpoint_every",
    "loaders",
    "sample_every",
    "tensorboard",
    "workers",
)
"""Fields of a training that do not change its model."""

BY_OBJECTIVE: Any = None
"""The default of a field whose paper value `PAPER` gives for each objective."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Some of what a training learns from.

    Attributes:
        path: A Parquet file, a folder of them such as an export, or anything else that
            `download.source` reads and has its images at hand: JSON lines, a JSON list, COCO's JSON
            of captions, a tar, a folder of images; globs allowed.
        weight: How often an epoch passes over it. A third takes a third of it an epoch, the next
            third in the next, as BLIP takes a fifth of LAION an epoch.
        images: The folder of the images that JSON names, where it is not the JSON's own.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}

    path: str
    weight: float = 1.0
    images: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ValueError(f"train.data.weight must be positive, got {self.weight}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What is trained, on what, and for how long.

    Defaults are those of the objective's paper: BLIP (arXiv 2201.12086, its released configs, Table
    14), ALBEF (arXiv 2107.07651) and CLIP (arXiv 2103.00020).

    Attributes:
        objective: `pretrain` is ITC + ITM + LM and saves `captioner/` and `matcher/`; `captioner`
            is LM with the prompt masked and saves one captioner; `filter` is ITC + ITM with the
            texts of one image as equal targets, and saves one matcher; `joint` fine-tunes both as
            one model that shares what pre-training shares (Table 4) and saves both; `clip` is
            symmetric InfoNCE and saves one `CLIPModel`.
        albef: With `pretrain`: masked language modelling with momentum distillation in place of
            LM, and images in the upper half of the text layers alone (6 + 6 of `base`); saves one
            matcher.
        model: What it starts from: a size (tiny, base, large; random weights), a folder of
            `train`, or a plain model of the objective's kind, local or on the hub.
        data: `curated`, the pairs that the run exports; `pool`, its web pairs as downloaded; or
            Parquet files, folders of them, JSON lines {"image", "caption" or "captions"}, a JSON
            list of the same or COCO's JSON. {path, weight, images} in place of a text passes over
            it `weight` times an epoch, and says where the images lie that a JSON file names.
        tokenizer: A BERT tokenizer, or CLIP's with `clip`; needed where `model` is a size.
        image_size: Side in pixels.
        batch_size: Pairs a step, those of all workers together; 2400 where `pretrain` has `model:
            large`.
        epochs: Passes over the images; `steps`, where it is not 0, decides instead.
        steps: Optimiser steps.
        lr: Peak learning rate. BLIP's for its ViT-L is 2e-4 in pre-training, 5e-6 for a filter and
            2e-6 for a captioner or both; that is the default where `model` is `large`.
        min_lr: Learning rate at the end (cosine) or at least (exponential).
        warmup_steps: Steps of a linear rise from `warmup_lr` to `lr`.
        warmup_lr: Learning rate of the first step of the rise.
        schedule: `cosine` over the steps after warm-up, or `exponential`, times `decay_rate` an
            epoch. The cosine falls with every step, where BLIP's code and ALBEF's fall with every
            epoch.
        decay_rate: Of the exponential schedule; BLIP's config says 0.9, its paper 0.85.
        weight_decay: On matrices only: biases, norms and the temperature have none.
        beta2: AdamW's second decay.
        eps: What AdamW adds to the root of the second moment.
        queue_size: Pairs in the contrastive queue; a multiple of `batch_size`.
        momentum: Decay of the momentum encoders.
        alpha: Weight of the momentum model in the contrastive targets.
        alpha_epochs: Epochs over which alpha rises from 0.
        negatives: Whether the wrong partners of matching are of all pairs of the batch (`global`)
            or of the same stream (`local`). They are drawn by similarity; BLIP's pre-training adds
            1e-4 to each chance, its fine-tuning and ALBEF nothing.
        label_smoothing: Of the LM loss.
        mask_patches: The share of the patches that is hidden from the image encoder (FLIP, arXiv
            2212.00794: 0.5), below 1.
        prompt: Put before every caption and left out of the LM loss.
        max_text_tokens: Longer texts are cut.
        augment: See `models.image.augmentation.View`; `crop` and `none` do not mirror.
        crop_scale: The least share of the area that a crop keeps.
        magnitude: RandAugment's M, from 0 to 10, of the augmentation `paper`.
        drop_path: The chance that the last layer of BLIP's image encoder is left out for an image,
            falling evenly to 0 at the first (stochastic depth, arXiv 1603.09382); unset is that of
            BLIP's code, 0.1 for a ViT-L and 0 for others.
        precision: `bf16` is autocast; `auto` takes it where the device has instructions for it.
        gradient_checkpointing: Compute the layers again in the backward pass, and keep less.
        accumulate: Parts of a batch that are computed one after the other. Contrast and matching
            see the pairs of a part; the parts count the same.
        workers: Processes that train together, each with its share of a batch.
        streams: Disjoint streams that the data are dealt to, a multiple of `workers`; 0 is one a
            worker. Trainings that differ in `workers` alone are the same.
        shuffle_buffer: Images of a stream in memory, shuffled among themselves.
        threads: Of torch on a CPU; 0 leaves them as they are.
        loaders: Threads that decode images ahead of the training.
        seed: Of weights, order, captions, views and negatives.
        checkpoint_every: Steps between checkpoints; 0 keeps none.
        sample_every: Steps between samples of captions; 0 writes none.
        tensorboard: Write what metrics.jsonl holds as TensorBoard's events, too; needs the extra
            `tensorboard`.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid", "strict": False}

    objective: Objective = "pretrain"
    albef: bool = False
    model: str = "base"
    data: tuple[str | Source, ...] = ()
    tokenizer: str | None = None
    image_size: int = BY_OBJECTIVE
    batch_size: int = BY_OBJECTIVE
    epochs: int = BY_OBJECTIVE
    steps: int = 0
    lr: float = BY_OBJECTIVE
    min_lr: float = BY_OBJECTIVE
    warmup_steps: int = BY_OBJECTIVE
    warmup_lr: float = BY_OBJECTIVE
    schedule: Literal["cosine", "exponential"] = BY_OBJECTIVE
    decay_rate: float = 0.9
    weight_decay: float = BY_OBJECTIVE
    beta2: float = BY_OBJECTIVE
    eps: float = BY_OBJECTIVE
    queue_size: int = BY_OBJECTIVE
    momentum: float = 0.995
    alpha: float = 0.4
    alpha_epochs: float = BY_OBJECTIVE
    negatives: Literal["global", "local"] = BY_OBJECTIVE
    label_smoothing: float = 0.1
    mask_patches: float = 0.0
    prompt: str = BY_OBJECTIVE
    max_text_tokens: int = BY_OBJECTIVE
    augment: Augment = BY_OBJECTIVE
    crop_scale: float = BY_OBJECTIVE
    magnitude: int = BY_OBJECTIVE
    drop_path: float | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    gradient_checkpointing: bool = False
    accumulate: int = 1
    workers: int = 1
    streams: int = 0
    shuffle_buffer: int = 10_000
    threads: int = 0
    loaders: int = 0
    seed: int = 0
    checkpoint_every: int = 1000
    sample_every: int = 1000
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.albef and self.objective != "pretrain":
            raise ValueError(
                f"train.albef goes with objective pretrain, not {self.objective}: leave it out"
            )
        defaults = PAPER["albef" if self.albef else self.objective]
        if self.model == "large" and not self.albef:
            defaults = {**defaults, **LARGE.get(self.objective, {})}
        for field, value in defaults.items():
            if getattr(self, field) is None:
                object.__setattr__(self, field, value)
        for field in NOT_NEGATIVE:
            if getattr(self, field) < 0:
                raise ValueError(f"train.{field} must be at least 0, got {getattr(self, field)}")
        if not self.streams:
            object.__setattr__(self, "streams", self.workers)
        for field in POSITIVE:
            if getattr(self, field) < 1:
                raise ValueError(f"train.{field} must be at least 1, got {getattr(self, field)}")
        for field in ("momentum", "alpha", "label_smoothing", "crop_scale", "decay_rate", "beta2"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(
                    f"train.{field} must be between 0 and 1, got {getattr(self, field)}"
                )
        if not 0 <= self.mask_patches < 1:
            raise ValueError(
                f"train.mask_patches must be from 0 to below 1, got {self.mask_patches}"
            )
        if self.drop_path is not None and not 0 <= self.drop_path < 1:
            raise ValueError(f"train.drop_path must be from 0 to below 1, got {self.drop_path}")
        if not 0 <= self.magnitude <= GREATEST:
            raise ValueError(f"train.magnitude must be from 0 to {GREATEST}, got {self.magnitude}")
        for field in ("lr", "eps"):
            if getattr(self, field) <= 0:
                raise ValueError(f"train.{field} must be positive, got {getattr(self, field)}")
        if self.streams % self.workers:
            raise ValueError(
                f"train.streams must be a multiple of the {self.workers} workers, "
                f"got {self.streams}"
            )
        dealt = self.streams * self.accumulate
        if self.batch_size % dealt:
            raise ValueError(
                f"train.batch_size must be a multiple of {dealt}, {self.streams} streams times "
                f"accumulate {self.accumulate}, got {self.batch_size}"
            )
        if "matcher" in self.parts:
            check_queue(self.queue_size, self.batch_size)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of BLIP that are trained; none with `clip`."""
        return ("matcher",) if self.albef else PARTS[self.objective]

    @property
    def floor(self) -> float:
        """What BLIP's pre-training adds to the chance of each wrong partner of matching."""
        return 1e-4 if self.objective == "pretrain" and not self.albef else 0.0

    def measurement(self) -> dict[str, Any]:
        """The fields that change the model, as plain values."""
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if name not in EFFORT}


def start_of(model: str) -> list[str]:
    """The revisions of the weights in a model folder and its parts; none of a size or a hub's."""
    top = Path(folder_of(model))
    folders = (top, top / "captioner", top / "matcher")
    return [revision_of(str(folder)) for folder in folders if any(folder.glob("*.safetensors"))]


def as_sources(data: Sequence[str | Source]) -> tuple[Source, ...]:
    """Plain paths as sources of weight 1; one that is named twice is met twice."""
    weights: dict[Source, float] = {}
    for entry in data:
        source = Source(path=os.fspath(entry)) if not isinstance(entry, Source) else entry
        plain = Source(path=source.path, images=source.images)
        weights[plain] = weights.get(plain, 0.0) + source.weight
    return tuple(
        Source(path=plain.path, weight=weight, images=plain.images)
        for plain, weight in weights.items()
    )
