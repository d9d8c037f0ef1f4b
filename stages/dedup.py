"""Dedup: one row for each image, and no caption that a whole site shares."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from models import hashing
from models.images import ImageError, open_rgb
from models.text import caption_key
from stages.base import GlobalStage, StageConfig, threshold
from stages.schema import web_captions

__all__ = ["DedupConfig", "DedupStage"]

NUM_PERM = 128
COLOURS = 3 * hashing.GRID**2

Positions = npt.NDArray[np.int64]
Column: TypeAlias = "pa.ChunkedArray[Any]"

WRITES: dict[str, pa.DataType] = {
    "image_url": pa.binary(16),
    "image_sha256": pa.binary(16),
    "image_area": pa.int64(),
    "image_phash": pa.int64(),
    "image_contrast": pa.float32(),
    "image_colours": pa.binary(COLOURS),
    "caption_key": pa.string(),
    "caption_minhash": pa.binary(4 * NUM_PERM),
}
SUMMARY: dict[str, pa.DataType] = {
    "image_cluster": pa.string(),
    "image_distance": pa.int32(),
    "image_duplicate": pa.string(),
    "caption_cluster": pa.string(),
    "caption_images": pa.int32(),
}


@dataclass(frozen=True, kw_only=True)
class DedupConfig(StageConfig):
    """When two images are one, and when a caption says nothing of its image.

    Attributes:
        max_hamming: Bits of 64 in which the perceptual hashes of one image may differ. Resized
            and recompressed photographs differ in 0 to 4, different ones in 12 or more.
        max_colour_distance: The most by which the mean colour of any cell of an 8 x 8 grid may
            differ in any channel, of 255: a perceptual hash is blind to colour.
        min_contrast: Standard deviation of brightness, of 255, under which the hash of an image
            is noise, and only its URL and its bytes can make it the same as another.
        max_images_per_caption: A caption on more distinct images than this belongs to the site,
            not to an image (ALIGN, arXiv:2102.05918).
        min_jaccard: Shared among all word trigrams of two captions that count as one caption.
            Captions of fewer than five words must be equal but for case and punctuation.
        bands: Bands of the LSH index of captions.
        rows: MinHash values in a band; bands x rows is at most 128.
    """

    max_hamming: int = threshold(6)
    max_colour_distance: int = threshold(32)
    min_contrast: float = threshold(4.0)
    max_images_per_caption: int = threshold(10)
    min_jaccard: float = threshold(0.9)
    bands: int = threshold(16)
    rows: int = threshold(8)

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_hamming", 0, 16),
            ("max_colour_distance", 0, 255),
            ("min_contrast", 0, 128),
            ("max_images_per_caption", 1, 2**31 - 1),
            ("min_jaccard", 0, 1),
            ("bands", 2, NUM_PERM),
            ("rows", 1, NUM_PERM),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"dedup.{name} must be from {low} to {high}, got {value}")
        if self.bands * self.rows > NUM_PERM:
            raise ValueError(
                f"dedup.bands x dedup.rows must be at most {NUM_PERM}, the length of a signature, "
                f"got {self.bands} x {self.rows}; lower one of them"
            )


class DedupStage(GlobalStage[DedupConfig]):
    """Exact and near-identical images, and captions that stand on many images.

    Rows are one image when they share a URL or the bytes that were downloaded, directly or through
    other rows, or when perceptual hash and colours are near (`hashing.image_centres`). Near images
    form stars around their best-ranked image and never chains, so all of them resemble it. Of each
    image one row stays, its representative: a row whose caption can be used before one whose
    cannot, then the largest original image, the caption on fewest images, the caption of most
    words, the smallest uid.

    A caption is rejected when it, or a nearly identical one, stands on too many distinct images.
    Captions too form stars, around the most frequent one, and two of them need a Jaccard similarity
    of 0.9 over word trigrams: captions of up to some twenty words that differ in one word stay
    apart, and so do the paraphrases of one image and the sentences of a small grammar. A shared
    caption never makes two images one.
    """

    name: ClassVar[str] = "dedup"
    version: ClassVar[int] = 1
    config_type: ClassVar[type[StageConfig]] = DedupConfig
    reads: ClassVar[tuple[str, ...]] = (
        "url",
        "caption",
        "image",
        "sha256",
        "original_width",
        "original_height",
    )
    uses: ClassVar[tuple[str, ...]] = ("text",)
    writes: ClassVar[pa.Schema] = pa.schema(WRITES)
    summary: ClassVar[pa.Schema] = pa.schema(SUMMARY)
    reasons: ClassVar[Mapping[str, str]] = {
        "boilerplate_caption": "The caption stands on more images than max_images_per_caption.",
        "duplicate_url": "Another row of the same URL is kept.",
        "duplicate_image": "Another row of the same image bytes is kept.",
        "near_duplicate_image": "Another row of nearly the same image is kept.",
    }

    def annotate(self, rows: pa.Table) -> pa.Table:
        """Take the fingerprints of rows.

        Returns:
            image_url and image_sha256, 128 bits each; image_area of the image as downloaded, in
            pixels; image_phash, the 64 bits of `hashing.perceptual_hash` as a signed integer,
            image_contrast and image_colours, the uint8 (8, 8, 3) of `hashing.colour_grid`, all
            null for an image that cannot be opened; caption_key and caption_minhash, 128
            little-endian uint32, null without a caption.
        """
        urls = [_digest(str(url)) for url in rows["url"]]
        sha256 = [one and bytes.fromhex(one[:32]) for one in rows["sha256"].to_pylist()]
        sides = [pc.cast(rows[f"original_{side}"], pa.int64()) for side in ("width", "height")]

        lumas = np.zeros((len(rows), hashing.SIDE, hashing.SIDE), np.uint8)
        colours: list[bytes | None] = []
        for square, image in zip(lumas, rows["image"], strict=True):
            try:
                # Below 96 pixels a JPEG's own reduction shows in the hash.
                opened = open_rgb(image.as_py() or b"", min_size=(96, 96))
            except ImageError:
                colours.append(None)
                continue
            square[:] = hashing.luma(opened)
            colours.append(hashing.colour_grid(opened).tobytes())
        is_lost = np.array([one is None for one in colours], bool)
        contrast = lumas.std(axis=(1, 2), dtype=np.float64).astype(np.float32)

        keys = [None if text is None else caption_key(text) for text in _texts(rows)]
        sets = [hashing.shingles(key) for key in keys if key is not None]
        signatures = iter(hashing.minhash(sets, NUM_PERM).astype("<u4"))
        minhashes = [None if key is None else next(signatures).tobytes() for key in keys]
        return pa.table(
            [
                pa.array(urls, pa.binary(16)),
                pa.array(sha256, pa.binary(16)),
                pc.multiply(*sides),
                pa.array(hashing.perceptual_hash(lumas).view(np.int64), mask=is_lost),
                pa.array(contrast, mask=is_lost),
                pa.array(colours, pa.binary(COLOURS)),
                pa.array(keys, pa.string()),
                pa.array(minhashes, pa.binary(4 * NUM_PERM)),
            ],
            schema=self.writes,
        )

    def summarize(self, annotations: Iterator[pa.Table]) -> pa.Table:
        """Find the images, their representatives, and how far each caption spreads.

        Returns:
            uid; image_cluster, the uid of the row that represents the image; image_distance, the
            bits between both hashes, null for the representative itself; image_duplicate, the
            reason that makes a row its duplicate, null for the representative; caption_cluster, the
            uid of a row with the caption at the centre of the star, and caption_images, the number
            of distinct images of the star, both null without a caption.
        """
        schema = pa.schema([("uid", pa.string()), *((f.name, f.type) for f in self.writes)])
        tables = [table.select(schema.names).cast(schema) for table in annotations]
        rows = pa.concat_tables([schema.empty_table(), *tables]).combine_chunks()
        captioned = _numpy(pc.is_valid(rows["caption_key"]))
        order = _ranking(rows, captioned, np.zeros(len(rows), np.int64))
        same = _components(rows["image_url"], rows["image_sha256"])
        image = self._image_centres(rows, order, _first(same, order)[same])
        caption, caption_images = self._captions(rows, order, image)

        # A cluster is represented by a row with a caption worth keeping, if it has one.
        is_usable = captioned & (caption_images <= self.config.max_images_per_caption)
        _, cluster = np.unique(image, return_inverse=True)
        kept = _first(cluster, _ranking(rows, is_usable, caption_images))[cluster]

        is_kept = kept == np.arange(len(rows))
        url, phash = _codes(rows["image_url"]), _phashes(rows)
        reason = np.select(
            [url == url[kept], same == same[kept]],
            ["duplicate_url", "duplicate_image"],
            "near_duplicate_image",
        )
        has_phash = _numpy(pc.is_valid(rows["image_phash"]))
        distance = hashing.hamming(phash, phash[kept]).astype(np.int32)
        uid = rows["uid"].combine_chunks()
        return pa.table(
            [
                uid,
                uid.take(kept),
                pa.array(distance, mask=is_kept | ~has_phash | ~has_phash[kept]),
                pa.array(reason, pa.string(), mask=is_kept),
                pc.if_else(pa.array(captioned), uid.take(caption), None),
                pa.array(caption_images.astype(np.int32), mask=~captioned),
            ],
            names=["uid", *self.summary.names],
        )

    def _image_centres(self, rows: pa.Table, order: Positions, head: Positions) -> Positions:
        """The centre of each row's star of near images; `head` is the best of its exact equals."""
        contrast = _numpy(rows["image_contrast"].fill_null(pa.scalar(-1.0, pa.float32())))
        is_candidate = (contrast >= self.config.min_contrast) & (head == np.arange(len(rows)))
        candidates = order[is_candidate[order]]
        centres = hashing.image_centres(
            _phashes(rows)[candidates],
            _matrix(rows["image_colours"], "u1")[candidates],
            max_hamming=self.config.max_hamming,
            max_colour_distance=self.config.max_colour_distance,
        )
        centre = np.arange(len(rows))
        centre[candidates] = candidates[centres]
        return centre[head]

    def _captions(
        self, rows: pa.Table, order: Positions, image: Positions
    ) -> tuple[Positions, Positions]:
        """The row with the centre of each caption's star, and the images of the star.

        Args:
            rows: n rows.
            order: (n,) the positions of the rows, the best rank first.
            image: (n,) the image that each row shows, as the position of a row.

        Returns:
            (n,) and (n,), both 0 for a row without a caption.
        """
        codes = _codes(rows["caption_key"])
        captioned = np.flatnonzero(codes >= 0)
        row_of = _first(codes, order[codes[order] >= 0])
        keys = rows["caption_key"].take(row_of)
        images = pa.array(_distinct(codes[captioned], image[captioned], len(row_of)))
        ranking = pa.table({"images": images, "key": keys})
        star = hashing.caption_centres(
            [str(key) for key in keys],
            _matrix(rows["caption_minhash"], "<u4")[row_of],
            _sorted(ranking, "images", then="key"),
            bands=self.config.bands,
            rows=self.config.rows,
            min_jaccard=self.config.min_jaccard,
        )
        own = star[codes[captioned]]
        centre, spread = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
        centre[captioned] = row_of[own]
        spread[captioned] = _distinct(own, image[captioned], len(row_of))[own]
        return centre, spread

    def judge(self, annotations: pa.Table) -> pa.StringArray:
        """Reject captions that spread too far, and all but the representative of each image."""
        images = _numpy(annotations["caption_images"].fill_null(pa.scalar(0, pa.int32())))
        spreads = pa.array(images > self.config.max_images_per_caption)
        duplicate = annotations["image_duplicate"].combine_chunks()
        verdicts: pa.StringArray = pc.if_else(spreads, "boilerplate_caption", duplicate)
        return verdicts


def _digest(url: str) -> bytes:
    return hashlib.blake2b(url.encode(), digest_size=16).digest()


def _texts(rows: pa.Table) -> list[str | None]:
    texts: list[str | None] = web_captions(rows).to_pylist()
    return texts


def _ranking(rows: pa.Table, is_usable: npt.NDArray[np.bool_], spread: Positions) -> Positions:
    """The positions of rows from the one to keep first; the same rows for any order of them.

    Args:
        rows: n rows.
        is_usable: (n,) whether the caption of each can be used.
        spread: (n,) how many images share the caption of each.
    """
    keys = pa.table(
        {
            "usable": pa.array(is_usable),
            "area": rows["image_area"],
            "rarity": pa.array(-spread),
            "words": pc.count_substring(rows["caption_key"], " "),
            "uid": rows["uid"],
        }
    )
    return _sorted(keys, "usable", "area", "rarity", "words", then="uid")


def _sorted(table: pa.Table, *descending: str, then: str) -> Positions:
    """The positions of rows in descending order of some columns, then by another; nulls last."""
    keys: Any = [*((name, "descending") for name in descending), (then, "ascending")]
    return _numpy(pc.sort_indices(table, keys)).astype(np.int64)


def _components(*columns: Column) -> Positions:
    """Number the groups of rows that share a value of any column, directly or through others."""
    n = nodes = len(columns[0])
    edges = [np.zeros((2, 0), np.int64)]
    for column in columns:
        codes = _codes(column)
        shared = np.flatnonzero(codes >= 0)
        edges.append(np.stack((shared, nodes + codes[shared])))
        nodes += int(codes.max(initial=-1)) + 1
    a, b = np.concatenate(edges, axis=1)
    graph = coo_matrix((np.ones(len(a), np.int8), (a, b)), shape=(nodes, nodes))
    labels: Positions = connected_components(graph, directed=False)[1].astype(np.int64)
    return np.unique(labels[:n], return_inverse=True)[1]


def _first(labels: Positions, order: Positions) -> Positions:
    """The first position in `order` of each label, labels ascending."""
    _, first = np.unique(labels[order], return_index=True)
    return order[first]


def _distinct(groups: Positions, values: Positions, num_groups: int) -> Positions:
    """How many distinct values each of the groups 0, 1, ... has."""
    width = int(values.max(initial=0)) + 1
    return np.bincount(np.unique(groups * width + values) // width, minlength=num_groups)


def _codes(column: Column) -> Positions:
    """A number for each distinct value, -1 for null."""
    codes = column.combine_chunks().dictionary_encode().indices
    return _numpy(codes.fill_null(pa.scalar(-1, codes.type))).astype(np.int64)


def _phashes(rows: pa.Table) -> npt.NDArray[np.uint64]:
    """The perceptual hashes as unsigned integers, 0 where there is none."""
    return _numpy(rows["image_phash"].fill_null(pa.scalar(0, pa.int64()))).view(np.uint64)


def _matrix(column: Column, dtype: str) -> npt.NDArray[Any]:
    """A column of n binaries of one length as an (n, m) array; a null is any bytes."""
    array: Any = column.combine_chunks()
    width = array.type.byte_width
    values = np.frombuffer(array.buffers()[1] or b"", np.uint8)
    values = values[array.offset * width : (array.offset + len(array)) * width]
    return values.view(dtype).reshape(len(array), width // np.dtype(dtype).itemsize)


def _numpy(column: pa.Array[Any] | Column) -> npt.NDArray[Any]:
    """A column without nulls as an array."""
    return np.asarray(column)
