"""What tells images and captions apart: narrow columns in memory, wide ones on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from models.image import perceptual_hash
from models.image.decode import ImageError, open_rgb
from models.text.minhash import band_keys
from stages import dedup_digests
from stages.dedup_digests import Digests

__all__ = [
    "COLOURS",
    "LUMA",
    "NUM_PERM",
    "PRINTS",
    "WRITES",
    "Fingerprints",
    "ImagePrints",
    "Spilled",
    "opened",
]

NUM_PERM = 128
COLOURS = 3 * perceptual_hash.GRID**2
LUMA = perceptual_hash.SIDE**2

PRINTS: dict[str, pa.DataType] = {
    "image_phash": pa.int64(),
    "image_contrast": pa.float32(),
    "image_colours": pa.binary(COLOURS),
    "image_luma": pa.binary(LUMA),
}
"""How an image looks; clean writes these columns too, out of the one decode that it needs."""

_WRITES: dict[str, pa.DataType] = {
    "image_url": pa.binary(16),
    "image_sha256": pa.binary(16),
    "image_area": pa.int64(),
    **PRINTS,
    "caption_text": pa.string(),
    "caption_key": pa.binary(16),
    "caption_words": pa.int32(),
    "caption_minhash": pa.binary(4 * NUM_PERM),
}
WRITES = pa.schema(_WRITES)
"""What dedup measures of a row.

The first 128 bits of the digest of its URL, and of the SHA-256 of its image; the pixels of the
image as downloaded; the 64 bits of its perceptual hash as a signed integer, its contrast, the
uint8 (8, 8, 3) of its colours and the uint8 (32, 32) of its brightness, all null where it cannot be
opened; the caption, 128 bits of the
digest of its key, the words of its key, and 128 little-endian uint32 of its MinHash, all null
where there is none.
"""

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class ImagePrints:
    """The fingerprints of n images.

    Attributes:
        phash: (n,), uint64 of `hashing.perceptual_hash`.
        contrast: (n,), the standard deviation of brightness, of 255; -1 for an image that cannot
            be opened, of which the rest is 0.
        colours: (n, 192), `hashing.colour_grid`.
        luma: (n, 1024), `hashing.luma`.
    """

    phash: npt.NDArray[np.uint64]
    contrast: npt.NDArray[np.float32]
    colours: npt.NDArray[np.uint8]
    luma: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, images: Iterable[bytes | None]) -> ImagePrints:
        """Take them from encoded images."""
        return cls.taken(map(opened, images))

    @classmethod
    def taken(cls, images: Iterable[Image.Image | None]) -> ImagePrints:
        """Take them from images as `opened` gives them."""
        lumas, grids, seen = [], [], []
        number = 0
        for number, image in enumerate(images, 1):
            if image is not None:
                seen.append(number - 1)
                lumas.append(perceptual_hash.luma(image))
                grids.append(perceptual_hash.colour_grid(image))
        phash = np.zeros(number, np.uint64)
        contrast = np.full(number, -1, np.float32)
        colours = np.zeros((number, COLOURS), np.uint8)
        luma = np.zeros((number, LUMA), np.uint8)
        if seen:
            grey = np.array(lumas, np.uint8)
            phash[seen] = perceptual_hash.perceptual_hash(grey)
            contrast[seen] = [one.std(dtype=np.float64) for one in grey]
            colours[seen] = np.array(grids, np.uint8).reshape(-1, COLOURS)
            luma[seen] = grey.reshape(-1, LUMA)
        return cls(phash=phash, contrast=contrast, colours=colours, luma=luma)

    def columns(self) -> dict[str, pa.Array[Any]]:
        """The columns of `PRINTS`, null for an image that cannot be opened."""
        is_lost = self.contrast < 0

        def binaries(rows: npt.NDArray[np.uint8]) -> pa.Array[Any]:
            values = [
                None if lost else row.tobytes() for lost, row in zip(is_lost, rows, strict=True)
            ]
            return pa.array(values, pa.binary(rows.shape[1]))

        return {
            "image_phash": pa.array(self.phash.view(np.int64), mask=is_lost),
            "image_contrast": pa.array(self.contrast, mask=is_lost),
            "image_colours": binaries(self.colours),
            "image_luma": binaries(self.luma),
        }


def opened(image: bytes | None) -> Image.Image | None:
    """An image to look at, a JPEG at a reduced scale; None where it cannot be opened."""
    if not image:
        return None
    try:
        # Below six pixels for each that is kept, a JPEG's own reduction shows in the thumbnail.
        return open_rgb(image, min_size=(6 * perceptual_hash.SIDE, 6 * perceptual_hash.SIDE))
    except ImageError:
        return None


class Spilled:
    """An array that grows along its first axis in a temporary file.

    Args:
        dtype: Of the elements.
        width: Elements in a row; none for an array of one axis.
    """

    def __init__(self, dtype: Any, width: int | None = None) -> None:
        self._dtype: np.dtype[Any] = np.dtype(dtype)
        self._shape = () if width is None else (width,)
        self._file = tempfile.TemporaryFile(prefix="capfilt-dedup-")  # noqa: SIM115
        self._length = 0

    def append(self, rows: Array) -> None:
        """Add rows at the end."""
        self._file.write(np.ascontiguousarray(rows, self._dtype).tobytes())
        self._length += len(rows)

    def read(self) -> Array:
        """All rows, in memory."""
        self._file.flush()
        self._file.seek(0)
        return np.fromfile(self._file, self._dtype).reshape(self._length, *self._shape)

    def mapped(self) -> Array:
        """All rows, read from disk where they are looked at."""
        self._file.flush()
        shape = (self._length, *self._shape)
        if not self._length:  # an empty file cannot be mapped
            return np.zeros(shape, self._dtype)
        return np.asarray(np.memmap(self._file, self._dtype, "r", shape=shape))


@dataclass(frozen=True, kw_only=True)
class Fingerprints:
    """The fingerprints of the n live rows of a pool, some 100 bytes of memory each.

    Attributes:
        uid: (n, 2), the digest that it is.
        url: (n, 2), digests.
        sha256: (n, 2), digests of the images as downloaded.
        caption: (n, 2), digests of the keys of the captions.
        area: (n,), pixels of the image as downloaded; -1 where it is unknown.
        words: (n,), of the caption; 0 without one.
        phash: (n,), 0 for an image that cannot be opened.
        contrast: (n,), -1 for an image that cannot be opened.
        colours: (n, 192), on disk.
        luma: (n, 1024), on disk.
        bands: (n,) for each band of the MinHash; of no meaning without a caption.
    """

    uid: Digests
    url: Digests
    sha256: Digests
    caption: Digests
    area: npt.NDArray[np.int64]
    words: npt.NDArray[np.int32]
    phash: npt.NDArray[np.uint64]
    contrast: npt.NDArray[np.float32]
    colours: npt.NDArray[np.uint8]
    luma: npt.NDArray[np.uint8]
    bands: tuple[Spilled, ...]
    _characters: npt.NDArray[np.uint8]
    _ends: npt.NDArray[np.int64]

    @classmethod
    def gather(cls, shards: Iterator[pa.Table], *, bands: int, rows: int) -> Fingerprints:
        """Read the annotations of shards, one after the other.

        Args:
            shards: uid and `WRITES` of the live rows of each.
            bands: Bands to cut the MinHashes into.
            rows: Hash values in a band.
        """
        schema = pa.schema([pa.field("uid", pa.string()), *WRITES])
        narrow: dict[str, list[Array]] = {}
        colours, luma = Spilled(np.uint8, COLOURS), Spilled(np.uint8, LUMA)
        characters = Spilled(np.uint8)
        keys = [Spilled(np.uint64) for _ in range(bands)]

        def add(shard: pa.Table) -> None:
            found: Any = shard.select(schema.names).cast(schema).combine_chunks()
            columns = {
                name: found[name].chunk(0) if len(found) else pa.array([], schema.field(name).type)
                for name in schema.names
            }
            for name, values in {
                "uid": dedup_digests.from_hex(columns["uid"]),
                "url": dedup_digests.from_binary(columns["image_url"]),
                "sha256": dedup_digests.from_binary(columns["image_sha256"]),
                "caption": dedup_digests.from_binary(columns["caption_key"]),
                "area": np.asarray(pc.fill_null(columns["image_area"], -1)),
                "words": np.asarray(pc.fill_null(columns["caption_words"], 0)),
                "phash": np.asarray(pc.fill_null(columns["image_phash"], 0)).view(np.uint64),
                "contrast": np.asarray(pc.fill_null(columns["image_contrast"], -1.0)),
                "length": np.diff(_offsets(columns["caption_text"])),
            }.items():
                narrow.setdefault(name, []).append(values)
            colours.append(_matrix(columns["image_colours"], "u1"))
            luma.append(_matrix(columns["image_luma"], "u1"))
            text, ends = columns["caption_text"], _offsets(columns["caption_text"])
            characters.append(np.frombuffer(text.buffers()[2] or b"", np.uint8)[ends[0] : ends[-1]])
            signatures = _matrix(columns["caption_minhash"], "<u4")
            for band, values in zip(keys, band_keys(signatures, bands, rows), strict=True):
                band.append(values)

        add(schema.empty_table())
        for shard in shards:
            add(shard)
        lengths = narrow.pop("length")
        return cls(
            **{name: np.concatenate(narrow.pop(name)) for name in tuple(narrow)},
            colours=colours.mapped(),
            luma=luma.mapped(),
            bands=tuple(keys),
            _characters=characters.mapped(),
            _ends=np.cumsum(np.concatenate(lengths), dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.uid)

    def text(self, row: int) -> str:
        """The caption of a row; empty without one."""
        start = self._ends[row - 1] if row else 0
        return self._characters[start : self._ends[row]].tobytes().decode()


def _offsets(text: Any) -> npt.NDArray[np.int32]:
    """Where the characters of n strings begin and end in their buffer, (n + 1,)."""
    offsets = np.frombuffer(text.buffers()[1] or bytes(4), np.int32)
    return offsets[text.offset : text.offset + len(text) + 1]


def _matrix(column: Any, dtype: str) -> Array:
    """Binaries of one length as an (n, m) array; of a null any bytes."""
    width = column.type.byte_width
    values = np.frombuffer(column.buffers()[1] or b"", np.uint8)
    values = values[column.offset * width : (column.offset + len(column)) * width]
    return values.view(dtype).reshape(len(column), width // np.dtype(dtype).itemsize)
