"""What a format is: pairs in, named files out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa

__all__ = ["SPLITS", "TRAIN", "VALIDATION", "Format", "Sample", "Shard", "extension_of", "samples"]

TRAIN = "train"
VALIDATION = "validation"
SPLITS = (TRAIN, VALIDATION)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Which shard of an export.

    Attributes:
        split: train or validation.
        number: From 0 within its split.
        is_human: Whether it is one of the human pairs, which have numbers of their own.
    """

    split: str
    number: int
    is_human: bool = False


@dataclass
class Sample:
    """An image with all its texts, in the order of the pairs.

    Attributes:
        uid: Of the sample.
        image: Encoded.
        facts: width, height, url, source and sha256 of PAIRS.
        captions: n >= 1 texts.
        caption_sources: n of web, synthetic and human.
        itm_scores: n, null where no filter ran.
    """

    uid: str
    image: bytes
    facts: dict[str, Any]
    captions: list[str] = field(default_factory=list)
    caption_sources: list[str] = field(default_factory=list)
    itm_scores: list[float | None] = field(default_factory=list)

    @property
    def extension(self) -> str:
        """The extension of a file with the image."""
        return extension_of(self.image)

    @property
    def file(self) -> str:
        """The name of a file with the image."""
        return f"{self.uid}.{self.extension}"


def extension_of(image: bytes) -> str:
    """The file extension of an image that `download` encoded: jpg, png or webp."""
    if image.startswith(b"\x89PNG"):
        return "png"
    return "webp" if image[8:12] == b"WEBP" else "jpg"


def samples(pairs: pa.Table) -> Iterator[Sample]:
    """The images of a table of PAIRS in which the pairs of one image stand together."""
    held: Sample | None = None
    for batch in pairs.to_batches(max_chunksize=256):
        for row in batch.to_pylist():
            if held is None or row["uid"] != held.uid:
                if held is not None:
                    yield held
                facts = {key: row[key] for key in ("width", "height", "url", "source", "sha256")}
                held = Sample(row["uid"], row["image"]["bytes"], facts)
            held.captions.append(row["caption"])
            held.caption_sources.append(row["caption_source"])
            held.itm_scores.append(row["itm_score"])
    if held is not None:
        yield held


class Format(ABC):
    """How the pairs of an export are laid out in files, a shard at a time.

    The files of a shard are a function of its pairs and of these settings.

    Args:
        shard_size: The most images in a shard.
        is_split: Whether there are splits to tell apart.
        seed: Of what a format draws.

    Attributes:
        name: The word for it in a manifest.
        has_list: Whether each split has one JSON list over all its shards, SPLIT.json.
        about: What lies where and how to load it, in Markdown.
    """

    name: ClassVar[str]
    has_list: ClassVar[bool] = False
    about: ClassVar[str]

    def __init__(self, *, shard_size: int, is_split: bool, seed: int) -> None:
        self.shard_size = shard_size
        self.is_split = is_split
        self.seed = seed

    def stem(self, shard: Shard) -> str:
        """The name of a shard, without extension: 00042, train-00042, train-human-00000."""
        parts = [shard.split] * self.is_split + ["human"] * shard.is_human
        return "-".join([*parts, f"{shard.number:05d}"])

    def data_files(self, split: str) -> str | None:
        """The pattern of a split's files that `datasets` reads; None where it reads none."""
        return None

    @abstractmethod
    def path(self, shard: Shard) -> str:
        """Where a shard lies in the export: its one file, or the folder that holds all of it."""

    @abstractmethod
    def files(self, shard: Shard, pairs: pa.Table) -> Iterator[tuple[str, bytes]]:
        """The paths and contents of a shard's files.

        Args:
            shard: Which.
            pairs: At least one row of PAIRS, those of one image together.
        """

    def entries(self, shard: Shard, pairs: pa.Table) -> Iterator[dict[str, Any]]:
        """What the list of its split says of a shard, where the format has lists."""
        return iter(())
