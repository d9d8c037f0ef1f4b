"""Fingerprints of the rows of a pool: narrow columns in memory, wide ones in temporary files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.text.minhash import band_keys
from stages.dedup import digests
from stages.dedup.digests import Digests
from stages.image_prints import COLOURS, LUMA, PRINTS
from stages.spilled import Spilled

__all__ = ["NUM_PERM", "WRITES", "Fingerprints"]

NUM_PERM = 128
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
"""The columns that dedup measures.

- image_url: 128-bit hash of the URL.
- image_sha256: first 128 bits of the image's SHA-256.
- image_area: width x height of the downloaded image, in pixels.
- image_phash, image_contrast, image_colours, image_luma: 64-bit perceptual hash as a signed
  integer, contrast, uint8 (8, 8, 3) of colours and uint8 (32, 32) of brightness; null if the image
  cannot be decoded.
- caption_text, caption_key, caption_words, caption_minhash: the caption, 128-bit hash and number of
  words of its key, and its MinHash of 128 little-endian uint32; null without a caption.
"""

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Fingerprints:
    """The fingerprints of the n live rows of a pool, about 100 bytes of memory per row.

    Attributes:
        uid: (n, 2), uids as digests.
        url: (n, 2), digests of the URLs.
        sha256: (n, 2), digests of the downloaded images.
        caption: (n, 2), digests of the keys of the captions.
        area: (n,), pixels of the downloaded image; -1 if unknown.
        words: (n,), words of the caption; 0 without one.
        phash: (n,), 0 for an image that cannot be decoded.
        contrast: (n,), -1 for an image that cannot be decoded.
        colours: (n, 192), on disk.
        luma: (n, 1024), on disk.
        bands: (n,) for each band of the MinHash; undefined without a caption.
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
        """Collect the annotations of shards.

        Args:
            shards: uid and `WRITES` of the live rows of each shard.
            bands: Number of bands of the MinHashes.
            rows: Hash values per band.
        """
        schema = pa.schema([pa.field("uid", pa.string()), *WRITES])
        narrow: dict[str, list[Array]] = {}
        colours, luma = Spilled(np.uint8, COLOURS), Spilled(np.uint8, LUMA)
        characters = Spilled(np.uint8)
        keys = [Spilled(np.uint64) for _ in range(bands)]

        def add(shard: pa.Table) -> None:
            table: Any = shard.select(schema.names).cast(schema).combine_chunks()
            columns = {
                name: table[name].chunk(0) if len(table) else pa.array([], schema.field(name).type)
                for name in schema.names
            }
            for name, values in {
                "uid": digests.from_hex(columns["uid"]),
                "url": digests.from_binary(columns["image_url"]),
                "sha256": digests.from_binary(columns["image_sha256"]),
                "caption": digests.from_binary(columns["caption_key"]),
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
        """Return the caption of a row; empty without one."""
        start = self._ends[row - 1] if row else 0
        return self._characters[start : self._ends[row]].tobytes().decode()


def _offsets(text: Any) -> npt.NDArray[np.int32]:
    """Return the offsets of n strings in their buffer, (n + 1,)."""
    offsets = np.frombuffer(text.buffers()[1] or bytes(4), np.int32)
    return offsets[text.offset : text.offset + len(text) + 1]


def _matrix(column: Any, dtype: str) -> Array:
    """Convert binaries of fixed length to an (n, m) array; nulls give arbitrary values."""
    width = column.type.byte_width
    values = np.frombuffer(column.buffers()[1] or b"", np.uint8)
    values = values[column.offset * width : (column.offset + len(column)) * width]
    return values.view(dtype).reshape(len(column), width // np.dtype(dtype).itemsize)
