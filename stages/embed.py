"""Embed: embeds each image and web caption, and measures the embeddings."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.embedding.head import Head
from models.embedding.vectors import Float16s, Float32s, cosines_with
from models.weights import folder_of
from stages import sources
from stages.base import Cutoff, ModelConfig, Stage, floats, threshold
from stages.schema import web_captions
from stages.sources.image_sets import content
from stages.spilled import Spilled

if TYPE_CHECKING:
    from models.inference.protocols import EmbedsImages

__all__ = ["EMBEDDING", "EmbedConfig", "EmbedStage", "Gathered", "HeadConfig", "vectors"]

logger = logging.getLogger(__name__)

EMBEDDING: Any = pa.list_(pa.float16())
"""A unit vector; all of a run are of one length."""

AT_ONCE = 256
"""Number of images of a set that are embedded at once."""

TAKEN = frozenset({"width", "height"})
"""Columns of other stages that select ranks by; no head may take such a name."""


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """A head on the embedding, and the range of its number for rows that are kept.

    Attributes:
        head: A safetensors file of a linear layer or an MLP (docs/embeddings.md).
        min: Minimum of the head's number for a row to be kept; unset is no minimum.
        max: Maximum of the head's number for a row to be kept; unset is no maximum.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}

    head: str
    min: float | None = None
    max: float | None = None


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(ModelConfig):
    """The model that embeds the images, and the sets that their embeddings are compared with.

    Attributes:
        model: A dual encoder (CLIP, MetaCLIP 2, SigLIP, SigLIP 2, or the ITC part of a BLIP for
            ITM), which embeds web captions too, or a vision tower (DINOv2, DINOv3, ViT, or the
            image side of CLIP or SigLIP): a folder of `save_pretrained` or a name on the hub. If it
            is the model of `filter.clip`, the filter does not encode the images again.
        texts: Whether a dual encoder embeds the web captions.
        against: Evaluation sets: folders of images, tars, or Parquet files with an `image` column.
            An image whose embedding is too near one of theirs is rejected. This also finds other
            views of the same scene, which `dedup.against` does not find.
        max_evaluation_cosine: Maximum cosine of an image with its nearest one of `against`. A
            threshold belongs to its model: look at the nearest pairs in the report first.
        target: Sets of images like those of the intended use, for `select.method: target`.
        measure: Heads on the embedding, by the name of the column that each adds, such as
            aesthetic: a file, or a mapping with `head`, `min` and `max`. No head is shipped.
    """

    stage = "embed"

    model: str = "openai/clip-vit-large-patch14"
    texts: bool = True
    against: tuple[str, ...] = ()
    max_evaluation_cosine: float = threshold(0.9)
    target: tuple[str, ...] = ()
    measure: dict[str, str | HeadConfig] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -1 <= self.max_evaluation_cosine <= 1:
            raise ValueError(
                "embed.max_evaluation_cosine must be a cosine from -1 to 1, got "
                f"{self.max_evaluation_cosine}"
            )
        for name, head in self.heads.items():
            if not name.isidentifier() or name in TAKEN or name in EmbedStage.writes.names:
                raise ValueError(
                    f"embed.measure: {name!r} cannot be the name of a column; choose a word of "
                    "letters, digits and _ such as aesthetic"
                )
            if head.min is not None and head.max is not None and head.min > head.max:
                raise ValueError(f"embed.measure.{name}: min {head.min} is above max {head.max}")

    @property
    def heads(self) -> dict[str, HeadConfig]:
        """The heads by the names of their columns."""
        given = self.measure or {}
        return {
            n: HeadConfig(head=one) if isinstance(one, str) else one for n, one in given.items()
        }

    def measurement(self) -> dict[str, Any]:
        """Digests of the weights, the sets and the heads, and the other fields.

        Raises:
            FileNotFoundError: The model or a head is not there.
            ValueError: A set does not exist.
        """
        fields = super().measurement()
        return {
            **fields,
            "against": [content(path, "embed.against") for path in self.against],
            "target": [content(path, "embed.target") for path in self.target],
            "measure": {name: _digest(name, head.head) for name, head in self.heads.items()},
        }


class EmbedStage(Stage[EmbedConfig]):
    """Embeds each image once, and its web caption, for the stages after it.

    The embeddings are read by `filter` (instead of encoding the images again), by
    `dedup.semantic`, by the methods of `select` that compare embeddings, by `capfilt search` and by
    exports with `embeddings`. Embeddings are unit vectors, rounded to
    float16, which changes a cosine by less than 0.001.
    """

    name = "embed"
    version = 1
    config_type = EmbedConfig
    reads = ("image", "caption")
    uses = ("text",)
    writes = pa.schema(
        [
            pa.field("image_embedding", EMBEDDING),
            pa.field("text_embedding", EMBEDDING),
            pa.field("embedded", pa.bool_()),
            pa.field("evaluation_nearest", pa.string()),
            pa.field("evaluation_cosine", pa.float32()),
            pa.field("target_cosine", pa.float32()),
            pa.field("target_norm", pa.float32()),
        ]
    )
    """- image_embedding: null where the image cannot be decoded, which `embedded` says.
    - text_embedding: of the web caption; null without one, and by a vision tower.
    - evaluation_nearest, evaluation_cosine: the nearest image of `against`, and its cosine.
    - target_cosine, target_norm: the highest cosine with an image of `target`, and the L2 norm of
      all cosines with them.

    Each head of `measure` adds a float32 column of its name.
    """
    bulky = ("image_embedding", "text_embedding")
    reasons: ClassVar[Mapping[str, str]] = {
        "undecodable": "The image cannot be decoded, so it has no embedding.",
        "in_evaluation_set": "The embedding is too near that of an image of an evaluation set.",
        "measure_out_of_range": "A head of `measure` gives less than its min or more than its max.",
    }
    help = "embed images and captions, for semantic copies, selection and search"
    examples = ("capfilt embed manifest.yaml --set embed.model=facebook/dinov2-base",)
    paper = "CLIP (arXiv:2103.00020), SigLIP 2 (arXiv:2502.14786), DINOv2 (arXiv:2304.07193)"
    loader = (
        "CLIPModel, MetaClip2Model, SiglipModel, Siglip2Model, BlipForImageTextRetrieval, "
        "Dinov2Model, DINOv3ViTModel, ViTModel"
    )
    thresholds: ClassVar[Mapping[str, tuple[str, str]]] = {
        "in_evaluation_set": ("max_evaluation_cosine", "evaluation_cosine"),
    }
    histograms = ("evaluation_cosine", "target_cosine", "target_norm")

    _model: EmbedsImages | None = None

    def __init__(self, config: EmbedConfig) -> None:
        super().__init__(config)
        heads = [pa.field(name, pa.float32()) for name in config.heads]
        self.writes = pa.schema([*type(self).writes, *heads])

    def own_columns(self) -> pa.Schema:
        """Return the columns that are not null by the settings."""
        missing: tuple[str, ...] = () if self.config.texts else ("text_embedding",)
        missing += () if self.config.against else ("evaluation_nearest", "evaluation_cosine")
        missing += () if self.config.target else ("target_cosine", "target_norm")
        return pa.schema([column for column in self.writes if column.name not in missing])

    def load(self) -> None:
        """Load the model and the heads, and embed the sets."""
        from models.inference.vision_tower import load_image_embedder

        placement = self.config.placement()
        self._model = load_image_embedder(folder_of(self.config.model), **placement)
        self._heads = {name: Head.load(head.head) for name, head in self.config.heads.items()}
        self._against = self._embed_sets("against", self.config.against)
        self._target = self._embed_sets("target", self.config.target)

    def annotate(self, rows: pa.Table) -> pa.Table:
        """Embed rows; see `writes`."""
        if self._model is None:
            self.load()
        images = self._embed(image or b"" for image in rows["image"].to_pylist())
        whole = images.astype(np.float32)
        has: Any = ~np.isnan(whole).any(axis=1)
        columns: dict[str, Any] = {
            "image_embedding": _lists(images),
            "text_embedding": self._embed_texts(web_captions(rows).to_pylist()),
            "embedded": pa.array(has),
        }
        if has.any():
            columns |= {
                name: _spread(values, has) for name, values in self._measure(whole[has]).items()
            }
        missing: dict[str, Any] = {f.name: pa.nulls(len(rows), f.type) for f in self.writes}
        return pa.table({**missing, **columns}, schema=self.writes)

    def _embed(self, images: Iterator[bytes]) -> Float16s:
        """(n, d) the embedding of each image, NaN where it cannot be decoded."""
        assert self._model is not None
        found = self._model.embed_each(list(images), self.config.batch_size)
        size = next((len(one) for one in found if one is not None), 1)
        rounded = np.full((len(found), size), np.nan, np.float16)
        for number, one in enumerate(found):
            if one is not None:
                rounded[number] = one.numpy()
        return rounded

    def _embed_texts(self, texts: list[str | None]) -> Any:
        from models.inference.protocols import Ranks

        has = np.array([bool(text and text.strip()) for text in texts], bool)
        if not self.config.texts or not isinstance(self._model, Ranks) or not has.any():
            return pa.nulls(len(texts), EMBEDDING)
        distinct = list(dict.fromkeys(text for text in texts if text and text.strip()))
        found = self._model.embed_texts(distinct).cpu().numpy().astype(np.float16)
        places = {text: place for place, text in enumerate(distinct)}
        rounded = np.full((len(texts), found.shape[1]), np.nan, np.float16)
        rounded[has] = found[[places[text] for text in texts if text and text.strip()]]
        return _lists(rounded)

    def _embed_sets(self, field: str, paths: Sequence[str]) -> _Images:
        """Embed every image of some sets.

        Raises:
            ValueError: A set has no image that can be decoded.
        """
        names: list[str] = []
        parts: list[Float32s] = []
        for path in paths:
            before = len(names)
            with sources.named(f"embed.{field}"):
                for some in _batches(sources.images(path)):
                    found = self._embed(data for _, data in some).astype(np.float32)
                    has: Any = ~np.isnan(found).any(axis=1)
                    names += [name for (name, _), there in zip(some, has, strict=True) if there]
                    parts += [found[has]] if has.any() else []
                    if not has.all():
                        message = "embed.%s: %d images of %s cannot be decoded and are left out"
                        logger.warning(message, field, int((~has).sum()), path)
            if len(names) == before:
                raise ValueError(
                    f"embed.{field}: {path} holds no image that can be decoded; give a folder of "
                    "images or a Parquet file with an `image` column"
                )
        none = np.zeros((0, 1), np.float32)
        return _Images(tuple(names), np.concatenate(parts) if parts else none)

    def _measure(self, embeddings: Float32s) -> dict[str, Any]:
        """The measured columns of (n, d) embeddings, by name."""
        found: dict[str, Any] = {}
        if self._against.names:
            cosine, nearest, _ = cosines_with(embeddings, self._against.embeddings)
            found["evaluation_nearest"] = pa.array(self._against.names).take(
                pa.array(nearest, pa.int64())
            )
            found["evaluation_cosine"] = pa.array(cosine)
        if self._target.names:
            cosine, _, norm = cosines_with(embeddings, self._target.embeddings)
            found |= {"target_cosine": pa.array(cosine), "target_norm": pa.array(norm)}
        for name, head in self._heads.items():
            if head.size != embeddings.shape[1]:
                raise ValueError(
                    f"embed.measure.{name}: the head takes embeddings of {head.size} numbers, and "
                    f"the model gives {embeddings.shape[1]}; a head fits the model that it was "
                    "trained on"
                )
            found[name] = pa.array(head(embeddings))
        return found

    def judge(self, annotations: pa.Table) -> pa.StringArray:
        """Reject images that have no embedding, are in an evaluation set or out of a range."""
        reasons = np.full(len(annotations), None, object)
        for name, head in self.config.heads.items():
            values = floats(annotations[name])
            low = -np.inf if head.min is None else np.float32(head.min)
            high = np.inf if head.max is None else np.float32(head.max)
            reasons[(values < low) | (values > high)] = "measure_out_of_range"
        cosines = floats(annotations["evaluation_cosine"])
        limit = np.float32(self.config.max_evaluation_cosine)
        reasons[cosines > limit] = "in_evaluation_set"
        reasons[~annotations["embedded"].to_numpy()] = "undecodable"
        return pa.array(reasons, pa.string())

    def cutoffs(self, annotations: pa.Table) -> Iterator[Cutoff]:
        """See `Stage.cutoffs`; each head has up to two limits."""
        yield from super().cutoffs(annotations)
        for name, head in self.config.heads.items():
            for bound, limit in (("min", head.min), ("max", head.max)):
                if limit is not None:
                    values = floats(annotations[name])
                    yield Cutoff("measure_out_of_range", f"measure.{name}.{bound}", limit, values)


def _spread(values: Any, has: npt.NDArray[np.bool_]) -> Any:
    """Values of the rows that have one as a column of all rows."""
    positions: Any = np.cumsum(has) - 1
    return values.take(pa.array(positions, mask=~has))


class _Images(NamedTuple):
    """The images of some sets: their names, and (m, d) their embeddings."""

    names: tuple[str, ...]
    embeddings: Float32s


class Gathered:
    """Columns of embeddings of a whole pool, stored in temporary files.

        gathered = Gathered("image_embedding")
        for table in gathered.through(annotations): ...
        gathered.of("image_embedding")   # (n, d)

    Args:
        columns: The names of the columns.
    """

    def __init__(self, *columns: str) -> None:
        self._spilled: dict[str, Spilled] = {}
        self._has: dict[str, list[npt.NDArray[np.bool_]]] = {name: [] for name in columns}

    def through(self, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """Yield tables without the columns, which are kept."""
        for table in tables:
            for name, parts in self._has.items():
                found, has = vectors(table[name])
                parts.append(has)
                if has.any():
                    spilled = self._spilled.setdefault(name, Spilled(np.float16, found.shape[1]))
                    spilled.append(found)
            yield table.drop_columns(list(self._has))

    def has(self, *columns: str) -> npt.NDArray[np.bool_]:
        """(n,) which rows have all of some columns."""
        none = [np.zeros(0, bool)]
        found = [np.concatenate(none + self._has[name]) for name in columns]
        both: npt.NDArray[np.bool_] = np.logical_and.reduce(found)
        return both

    def of(self, name: str, rows: npt.NDArray[np.int64]) -> Float16s:
        """(m, d) the embeddings of some rows, all of which have one."""
        if name not in self._spilled or not len(rows):
            return np.zeros((len(rows), 1), np.float16)
        places = np.cumsum(self.has(name)) - 1
        found: Float16s = self._spilled[name].mapped()[places[rows]]
        return found


def vectors(column: Any) -> tuple[Float16s, npt.NDArray[np.bool_]]:
    """A column of embeddings as an array.

    Args:
        column: n embeddings of one length, some null.

    Returns:
        (m, d) those that are there, in order; and (n,) which rows have one.
    """
    lists: Any = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    has = np.asarray(lists.is_valid())
    number = int(has.sum())
    flat: Float16s = lists.drop_null().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(number, -1) if number else np.zeros((0, 1), np.float16), has


def _lists(embeddings: Float16s) -> Any:
    """(n, d) embeddings as a column, null where they are NaN."""
    is_missing: Any = np.isnan(embeddings).any(axis=1)
    lengths = np.where(is_missing, 0, embeddings.shape[1])
    offsets: Any = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    flat: Any = embeddings[~is_missing].reshape(-1)
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(flat, pa.float16()), mask=pa.array(is_missing)
    )


def _batches(images: Iterator[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    some: list[tuple[str, bytes]] = []
    for image in images:
        some.append(image)
        if len(some) == AT_ONCE:
            yield some
            some = []
    if some:
        yield some


def _digest(name: str, path: str) -> str:
    """A digest of the file of a head."""
    try:
        stat = os.stat(path)
    except OSError as error:
        raise FileNotFoundError(
            f"embed.measure.{name}: {path}: {error.strerror}; name a safetensors file"
        ) from None
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _sha256(path: str, size: int, modified_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
