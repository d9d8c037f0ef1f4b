"""The interface of a format: a table of pairs in, files with names out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pyarrow as pa

from models.random import hash_of

__all__ = [
    "SPLITS",
    "TRAIN",
    "VALIDATION",
    "Choice",
    "Format",
    "Sample",
    "Shard",
    "extension_of",
    "samples",
]

Choice = Literal["first", "longest", "best", "random", "all"]
"""Which caption of an image stands where a format has room for one."""

TRAIN = "train"
VALIDATION = "validation"
SPLITS = (TRAIN, VALIDATION)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Identifies one shard of an export.

    Attributes:
        split: train or validation.
        number: Number within its split, from 0.
        is_human: Whether it holds human pairs, whose shards are numbered separately.
    """

    split: str
    number: int
    is_human: bool = False


@dataclass
class Sample:
    """An image with all its captions, in the order of the pairs.

    Attributes:
        uid: uid of the sample.
        image: The encoded image.
        facts: width, height, url, source and sha256 of PAIRS, and draws of DRAWN_PAIRS.
        captions: n >= 1 captions.
        captions_full: n captions before the filter dropped sentences of them, None if it dropped
            none.
        caption_sources: n times web, synthetic, fused or human.
        caption_names: n names of prompts, None where there is none.
        itm_scores: n scores, None without a filter.
    """

    uid: str
    image: bytes
    facts: dict[str, Any]
    captions: list[str] = field(default_factory=list)
    captions_full: list[str | None] = field(default_factory=list)
    caption_sources: list[str] = field(default_factory=list)
    caption_names: list[str | None] = field(default_factory=list)
    itm_scores: list[float | None] = field(default_factory=list)

    @property
    def texts(self) -> dict[str, Any]:
        """The uid and the columns of captions, by name."""
        return {
            "uid": self.uid,
            "captions": self.captions,
            "captions_full": self.captions_full,
            "caption_sources": self.caption_sources,
            "caption_names": self.caption_names,
            "itm_scores": self.itm_scores,
        }

    @property
    def extension(self) -> str:
        """File extension for the image."""
        return extension_of(self.image)

    @property
    def file(self) -> str:
        """File name for the image."""
        return f"{self.uid}.{self.extension}"


def extension_of(image: bytes) -> str:
    """Return the file extension of an image that `download` encoded: jpg, png or webp."""
    if image.startswith(b"\x89PNG"):
        return "png"
    return "webp" if image[8:12] == b"WEBP" else "jpg"


def samples(pairs: pa.Table) -> Iterator[Sample]:
    """Yield the images of a table of pairs, in which those of one image are adjacent."""
    names = ("width", "height", "url", "source", "sha256", "draws")
    facts_of = [name for name in names if name in pairs.column_names]
    sample: Sample | None = None
    for batch in pairs.to_batches(max_chunksize=256):
        for row in batch.to_pylist():
            if sample is None or row["uid"] != sample.uid:
                if sample is not None:
                    yield sample
                facts = {name: row[name] for name in facts_of}
                sample = Sample(row["uid"], row["image"]["bytes"], facts)
            sample.captions.append(row["caption"])
            sample.captions_full.append(row["caption_full"])
            sample.caption_sources.append(row["caption_source"])
            sample.caption_names.append(row["caption_name"])
            sample.itm_scores.append(row["itm_score"])
    if sample is not None:
        yield sample


class Format(ABC):
    """Lays out the pairs of an export in files, one shard at a time.

    The files of a shard depend on its pairs and these settings only.

    Args:
        shard_size: Maximum images per shard.
        is_split: Whether the export has a validation split.
        seed: Seed of random choices.
        captions: Which caption of an image stands where the format has room for one.

    Attributes:
        name: Its name in a manifest.
        has_index: Whether there are files over all shards, which `index` makes of `entries`.
        has_choice: Whether it has room for one caption of an image, so that `captions` counts.
        draws: Where it says how often an image was drawn; None if it does not.
        about: Markdown for the data set card: the layout of the files, and how to load them.
    """

    name: ClassVar[str]
    has_index: ClassVar[bool] = False
    has_choice: ClassVar[bool] = False
    draws: ClassVar[str | None] = None
    about: ClassVar[str]

    def __init__(
        self, *, shard_size: int, is_split: bool, seed: int, captions: Choice = "first"
    ) -> None:
        self.shard_size = shard_size
        self.is_split = is_split
        self.seed = seed
        self.captions = captions

    def caption(self, sample: Sample) -> str:
        """Return the caption of an image by `captions`; of equal ones the first.

        `best` is the one with the highest ITM score, `random` depends on the seed and the uid
        alone, and `all` is all of them, a line each.
        """
        captions = sample.captions
        if self.captions == "longest":
            return max(captions, key=len)
        if self.captions == "best":
            scores = [-1.0 if score is None else score for score in sample.itm_scores]
            return captions[scores.index(max(scores))]
        if self.captions == "random":
            return captions[hash_of(f"{self.seed} caption {sample.uid}") % len(captions)]
        if self.captions == "all":
            return "\n".join(" ".join(caption.split()) for caption in captions)
        return captions[0]

    def stem(self, shard: Shard) -> str:
        """Return the name of a shard without extension: 00042, train-00042, train-human-00000."""
        parts = [shard.split] * self.is_split + ["human"] * shard.is_human
        return "-".join([*parts, f"{shard.number:05d}"])

    def data_files(self, split: str) -> str | None:
        """Return the glob of a split's files for `datasets`; None if it cannot read them."""
        return None

    @abstractmethod
    def path(self, shard: Shard) -> str:
        """Return the path of a shard in the export: its file, or the folder of its files."""

    @abstractmethod
    def files(self, shard: Shard, pairs: pa.Table) -> Iterator[tuple[str, bytes]]:
        """Yield the paths and contents of a shard's files.

        Args:
            shard: The shard.
            pairs: At least one row of PAIRS; the pairs of one image are adjacent.
        """

    def entries(self, shard: Shard, pairs: pa.Table) -> Iterator[dict[str, Any]]:
        """Yield what `index` has to know of a shard, as values of JSON."""
        return iter(())

    def index(self, entries: Mapping[str, Sequence[bytes]]) -> Iterator[tuple[str, str, bytes]]:
        """Yield split, path and content of each file over all shards.

        Args:
            entries: The JSON of each of the `entries` of each split that has any, in order.
        """
        for split, lines in entries.items():
            yield split, f"{split}.json", b"[\n" + b",\n".join(lines) + b"\n]\n"
