"""Evaluation sets, whose images must not be trained on."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from stages.digests import Digests
from stages.fingerprints import ImagePrints
from stages.sources import IMAGE_SUFFIXES

__all__ = ["EvaluationImages", "content"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluationImages:
    """The m images of some evaluation sets.

    Attributes:
        sets: (m,) the set of each.
        names: (m,) its name in the set.
        sha256: (m, 2) digests of the encoded images.
        prints: Their fingerprints.
    """

    sets: tuple[str, ...]
    names: tuple[str, ...]
    sha256: Digests
    prints: ImagePrints

    @classmethod
    def read(cls, paths: Sequence[str]) -> EvaluationImages:
        """Open every image of every set.

        Args:
            paths: Folders of images, and Parquet files (or folders of them) with an `image`
                column.

        Raises:
            ValueError: A set holds no image.
        """
        sets: list[str] = []
        names: list[str] = []
        sha256: list[bytes] = []

        def encoded() -> Iterator[bytes]:
            for path in paths:
                before = len(sets)
                for name, data in _images(path):
                    sets.append(path)
                    names.append(name)
                    sha256.append(hashlib.sha256(data).digest()[:16])
                    yield data
                if len(sets) == before:
                    raise ValueError(
                        f"dedup.against: {path} holds no images; give a folder of images or "
                        f"Parquet with an `image` column"
                    )

        prints = ImagePrints.of(encoded())
        if lost := int((prints.contrast < 0).sum()):
            logger.warning(
                "dedup.against: %d of %d images cannot be opened and match by their bytes alone",
                *(lost, len(names)),
            )
        digests = np.frombuffer(b"".join(sha256), ">u8").astype(np.uint64).reshape(-1, 2)
        return cls(sets=tuple(sets), names=tuple(names), sha256=digests, prints=prints)


def content(path: str) -> str:
    """A digest of everything that an evaluation set holds.

    Raises:
        FileNotFoundError: There is no such file or folder.
    """
    whole = hashlib.sha256()
    for name, file in _files(path):
        stat = file.stat()
        whole.update(f"{name}\0{_sha256(file, stat.st_size, stat.st_mtime_ns)}\n".encode())
    return whole.hexdigest()[:16]


@functools.lru_cache(maxsize=2**18)
def _sha256(file: Path, size: int, modified_ns: int) -> str:
    """The digest of a file, read again only when its size or time changes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _files(path: str) -> list[tuple[str, Path]]:
    """The files of a folder with their names in it, or the one file."""
    place = Path(path).expanduser()
    if not place.exists():
        raise FileNotFoundError(
            f"dedup.against: {path} does not exist; give a folder of images or a Parquet file"
        )
    if not place.is_dir():
        return [(place.name, place)]
    files = sorted(file for file in place.rglob("*") if file.is_file())
    return [(file.relative_to(place).as_posix(), file) for file in files]


def _images(path: str) -> Iterator[tuple[str, bytes]]:
    """The name and the encoded bytes of every image of a folder or of Parquet."""
    for name, file in _files(path):
        if file.suffix.lower() in IMAGE_SUFFIXES:
            yield name, file.read_bytes()
        elif file.suffix.lower() in (".parquet", ".pq"):
            yield from _rows(name, file)


def _rows(source: str, file: Path) -> Iterator[tuple[str, bytes]]:
    """The images of a Parquet file, named by their path or their row."""
    with pq.ParquetFile(file) as table:
        if "image" not in table.schema_arrow.names:
            raise ValueError(f"dedup.against: {file} has no column `image`; rename it")
        start = 0
        for batch in table.iter_batches(batch_size=256, columns=["image"]):
            for number, image in enumerate(batch["image"].to_pylist(), start):
                data, name = _unpacked(image)
                if data is not None:
                    yield f"{source}:{name or number}", data
            start += len(batch)


def _unpacked(image: Any) -> tuple[bytes | None, str | None]:
    """Encoded bytes and name of an image as Hugging Face's struct or as plain bytes."""
    return (image["bytes"], image.get("path")) if isinstance(image, dict) else (image, None)
