"""The config of a training: its objective, its data, and its use of the machine."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from models.objectives.config import ObjectiveConfig, check_least
from models.objectives.registry import DEFAULT, OBJECTIVES
from models.weights import parts_of, revision_of

__all__ = [
    "CURATED",
    "DOCUMENTS",
    "POOL",
    "Source",
    "TrainConfig",
    "Validate",
    "as_sources",
    "start_of",
    "word_of",
]

CURATED = "curated"
"""The word in a training's `data` for the pairs that this run exports."""

POOL = "pool"
"""The word in a training's `data` for all downloaded web pairs, before any stage judges them."""

DOCUMENTS = "documents"
"""The folder of an export with its interleaved documents: `curated/documents` in `data`."""

WITHOUT_EFFECT = (
    "checkpoint_every",
    "loaders",
    "max_failures",
    "sample_every",
    "shard",
    "tensorboard",
    "workers",
)
"""Fields of a training that do not change its model."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A part of the data of a training.

    Attributes:
        path: A Parquet file, a folder of Parquet files such as an export, a folder of exported
            documents, or any other source with local images that `download.source` reads: JSON
            lines, a JSON list, COCO's JSON of captions, a tar, a folder of images. Globs are
            allowed.
        weight: How many times an epoch passes over it. With a weight of 1/3, each epoch takes the
            next third, as BLIP takes a fifth of LAION an epoch.
        images: The folder of the images that a JSON file names, if it is not the file's own folder.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}

    path: str
    weight: float = 1.0
    images: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ValueError(f"train.data.weight must be positive, got {self.weight}")


@dataclass(frozen=True, kw_only=True)
class Validate:
    """How a training measures its model.

    Attributes:
        data: Held-out images, as in `evaluate.data`.
        every: Steps between validations; the last step is also validated.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid", "strict": False}

    data: str
    every: int = 1000

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"train.validate.every must be at least 1, got {self.every}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The objective of a training, its data, and its use of the machine.

    In a manifest, these fields and those of the objective are in one mapping.

    Attributes:
        objective: What the training learns: the losses, the model and the paper's settings.
        data: `curated`, the pairs that the run exports; `pool`, its web pairs as downloaded; or
            Parquet files, folders of Parquet files, JSON lines {"image", "caption" or "captions"},
            a JSON list of the same, or COCO's JSON. A mapping {path, weight, images} in place of a
            text also sets how many times an epoch passes over it, and the folder of its images.
            `curated/documents`, or another folder of exported documents, are interleaved documents,
            for `flamingo`; epochs are counted in pairs if there are pairs.
        steps: Steps of the optimiser; 0 trains for `epochs` passes over the images.
        precision: `bf16` uses autocast; `auto` uses it if the device has bfloat16 instructions.
        max_grad_norm: The highest norm of the gradients of all parameters together. Gradients with
            a higher norm are scaled down to it; 0 does not scale them.
        ema: The share of the running means of the trained weights that each step keeps, such as
            0.9999. The training writes and measures these means; 0 keeps none.
        compile: Compile the model with `torch.compile`. The first steps take minutes, and rounding
            differs.
        accumulate: Parts of a batch that are computed one after the other, to save memory.
            Contrastive and matching losses see only the pairs of a part; parts weigh the same.
        workers: Processes that train together, each with its share of a batch.
        shard: Divide weights, gradients and the optimiser's state among the workers (FSDP2), for
            language models that are too large for one GPU; with objectives `language`, `generate`,
            `project`, `instruct` and `flamingo`. Layers are gathered one by one while they compute.
        max_failures: How many times the training continues by itself from its last checkpoint after
            a worker died, such as with its node.
        streams: Disjoint streams into which the data are divided, a multiple of `workers`; 0 makes
            one for each worker. Trainings that differ only in `workers` give the same model.
        shuffle_buffer: Images of a stream, or documents, that are held in memory and shuffled.
        threads: Torch's threads on a CPU; 0 does not change their number.
        loaders: Processes that decode images ahead of the training; 0 decodes in between. The
            order and the images are the same. Twice `shuffle_buffer` images are then in memory.
        seed: The seed of weights, order, captions, views and negatives.
        checkpoint_every: Steps between checkpoints; 0 writes none.
        sample_every: Steps between captions that the model writes for the log; 0 writes none.
        validate: Measures the model during the training, {data, every}. metrics.jsonl then has the
            metrics of `capfilt evaluate`, except near misses.
        keep: The model that the training writes at its end: the `last`, or the `best` by a metric
            of the validations for which higher is better, such as `best retrieval.itc.IR@1`.
        patience: With `keep: best METRIC`, the training ends after this many validations in a row
            without a better one; 0 trains to the end.
        tensorboard: Also write the content of metrics.jsonl as TensorBoard events; needs the extra
            `tensorboard`.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid", "strict": False}

    objective: ObjectiveConfig
    data: tuple[str | Source, ...] = ()
    steps: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    max_grad_norm: float = 0.0
    ema: float = 0.0
    compile: bool = False
    accumulate: int = 1
    workers: int = 1
    shard: bool = False
    max_failures: int = 3
    streams: int = 0
    shuffle_buffer: int = 10_000
    threads: int = 0
    loaders: int = 0
    seed: int = 0
    checkpoint_every: int = 1000
    sample_every: int = 1000
    validate: Validate | None = None
    keep: str = "last"
    patience: int = 0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        least_0 = ("steps", "streams", "threads", "loaders", "checkpoint_every", "sample_every")
        check_least(self, 0, "max_grad_norm", *least_0)
        check_least(self, 0, "patience", "max_failures")
        if not 0 <= self.ema < 1:
            raise ValueError(f"train.ema must be from 0 to below 1, got {self.ema}")
        check_least(self, 1, "accumulate", "workers", "shuffle_buffer")
        if self.keep != "last" and not self.best_metric:
            raise ValueError(
                f"train.keep must be `last` or `best METRIC`, such as `best retrieval.itc.IR@1`, "
                f"got {self.keep!r}"
            )
        if self.best_metric and self.validate is None:
            raise ValueError(f"train.keep: `{self.keep}` needs `validate`")
        if self.patience and not self.best_metric:
            raise ValueError("train.patience needs `keep: best METRIC`")
        if self.shard and not self.objective.is_divisible:
            raise ValueError(
                f"train.shard: objective {self.objective.name} has no large language model to "
                "divide; leave it out"
            )
        whole = ("validate", "ema", "compile")
        if self.shard and (needed := [name for name in whole if getattr(self, name)]):
            raise ValueError(
                f"train.shard does not go with {' or '.join(needed)}, which need the whole model "
                "on each worker; leave one of them out"
            )
        if not self.streams:
            object.__setattr__(self, "streams", self.workers)
        if self.streams % self.workers:
            raise ValueError(
                f"train.streams must be a multiple of the {self.workers} workers, "
                f"got {self.streams}"
            )
        together = self.objective.pairs_together
        shares = self.streams * self.accumulate * together
        if self.objective.batch_size % shares:
            by = f" times {together} pairs of a sequence" if together > 1 else ""
            raise ValueError(
                f"train.batch_size must be a multiple of {shares}, {self.streams} streams times "
                f"accumulate {self.accumulate}{by}, got {self.objective.batch_size}"
            )

    @property
    def best_metric(self) -> str:
        """The metric by which the best model is kept; empty if the last model is kept."""
        best, _, metric = self.keep.partition(" ")
        return metric.strip() if best == "best" else ""

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Build a config from the result of `settings`, also after a round trip through JSON.

        Raises:
            KeyError: The objective is unknown.
            ValueError: A field is unknown, or a value is not allowed.
        """
        from pydantic import TypeAdapter

        kind = OBJECTIVES[settings["objective"]]
        fields = {name: v for name, v in settings.items() if name != "objective"}
        own, rest = cls.split(fields)
        objective = TypeAdapter(kind).validate_python(rest)
        own = {**own, "objective": objective, "data": own.get("data") or ()}
        return TypeAdapter(cls).validate_python(own)

    @classmethod
    def of(cls, **fields: Any) -> Self:
        """Build a config from the fields of an entry of `train`; values must have the right types.

        Raises:
            KeyError: The objective is unknown.
            TypeError: A field is unknown.
            ValueError: A value is not allowed.
        """
        kind = OBJECTIVES[fields.pop("objective", DEFAULT)]
        own, rest = cls.split(fields)
        return cls(objective=kind.of(**rest), **own)

    @classmethod
    def split(cls, fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Split fields into those of every training and those of the objective."""
        names = {field.name for field in dataclasses.fields(cls)} - {"objective"}
        own = {name: value for name, value in fields.items() if name in names}
        return own, {name: value for name, value in fields.items() if name not in own}

    def settings(self) -> dict[str, Any]:
        """All fields, including the objective's, as an entry of `train` has them."""
        own = dataclasses.asdict(self)
        objective = own.pop("objective")
        return {"objective": self.objective.name, **objective, **own}

    def measurement(self) -> dict[str, Any]:
        """The fields that affect the model, as plain values for fingerprints."""
        own = dataclasses.asdict(self)
        del own["objective"]
        own = {name: value for name, value in own.items() if name not in WITHOUT_EFFECT}
        for name in ("max_grad_norm", "ema", "compile"):
            if not own[name]:
                del own[name]  # as before there was such a field
        if not self.best_metric:
            del own["validate"], own["keep"], own["patience"]
        return {**self.objective.measurement(), **own}

    def start(self) -> list[str]:
        """The revisions of the weights that the training starts from; see `start_of`."""
        return [one for model in self.objective.models().values() for one in start_of(model)]


def start_of(model: str) -> list[str]:
    """The revisions of the weights in a model folder and its parts; empty for any other model."""
    return [revision_of(folder) for folder in parts_of(model)]


def word_of(path: str) -> tuple[str, tuple[str, ...]]:
    """The word that an entry of `data` begins with, and the folder behind it, if any.

    `curated/documents` is `curated` and (`documents`,); other entries are whole.
    """
    word, _, folder = path.rpartition("/")
    return (word, (DOCUMENTS,)) if word and folder == DOCUMENTS else (path, ())


def as_sources(data: Sequence[str | Source]) -> tuple[Source, ...]:
    """Data as sources; a plain path has weight 1, and weights of a repeated source are added."""
    weights: dict[Source, float] = {}
    for entry in data:
        source = Source(path=os.fspath(entry)) if not isinstance(entry, Source) else entry
        plain = Source(path=source.path, images=source.images)
        weights[plain] = weights.get(plain, 0.0) + source.weight
    return tuple(
        Source(path=plain.path, weight=weight, images=plain.images)
        for plain, weight in weights.items()
    )
