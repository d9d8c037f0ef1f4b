"""The stage dedup: finds duplicate images and captions, and keeps one row of each image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.image.hamming import near_pairs
from models.image.perceptual_hash import hamming
from models.random import splitmix
from models.text.captions import caption_key
from models.text.minhash import minhash, shingles
from stages.base import ClusteredStage, Cutoff, StageConfig
from stages.dedup.captions import caption_stars, further_captions
from stages.dedup.config import DedupConfig
from stages.dedup.digests import codes, from_hex, links, to_hex
from stages.dedup.eval_sets import SUMMARY as EVALUATION
from stages.dedup.eval_sets import evaluation_columns
from stages.dedup.fingerprints import NUM_PERM, WRITES, Fingerprints
from stages.dedup.groups import Bools, Int64s, components, distinct, first
from stages.dedup.images import copies, image_centres, placeholders
from stages.dedup.semantic import STANDING, find, in_rank
from stages.dedup.semantic import SUMMARY as SEMANTIC
from stages.embed import Gathered
from stages.image_prints import PRINTS, ImagePrints
from stages.schema import web_captions

__all__ = ["DedupStage"]

UInt64s = npt.NDArray[np.uint64]

DUPLICATES = ["duplicate_url", "duplicate_image", "near_duplicate_image"]

_SUMMARY: dict[str, pa.DataType] = {
    "image_cluster": pa.string(),
    "image_distance": pa.int32(),
    "image_duplicate": pa.string(),
    "image_captions": pa.int32(),
    "image_urls": pa.int32(),
    "image_placeholder": pa.bool_(),
    "further_captions": pa.list_(pa.string()),
    "caption_cluster": pa.string(),
    "caption_images": pa.int32(),
    **EVALUATION,
    **SEMANTIC,
}


class DedupStage(ClusteredStage[DedupConfig]):
    """Rejects duplicate images, images of evaluation sets, and captions shared by many images.

    Two rows show the same image if their downloaded files are equal, or if their perceptual hashes
    and colours are near and their thumbnails agree cell by cell (`models.image.copies`). Equal URLs
    are not enough, since a URL may give another file at another time. Each cluster of near images
    is a star: all its images are copies of the one at the centre, and no chains form.

    One row of each image is kept, its representative. Rows are ranked by whether their caption is
    usable, then by the size of the original image (largest first), the number of images with the
    caption (fewest first), the number of words (most first), and the uid. The representative takes
    over, as further captions, the captions of the rows that are copies of it.

    A caption is not usable if it is boilerplate, or if its URL gave several images, since it is
    unknown which one it describes. An image is a placeholder, and all its rows are rejected, if one
    of its files has more URLs and captions than `max_urls_per_image`, or if at least two of its
    URLs gave other images too.

    All rows of an image are rejected if any of them is near an image of an evaluation set, or has
    the same file.

    A caption is rejected if it, together with its near duplicates, has too many distinct images.
    Near-duplicate captions form stars around the most frequent one. Two captions are near
    duplicates if they differ in numbers only, in one run of words of a long template, or in less
    than a tenth of their word trigrams. Paraphrases, and sentences that share only a grammar, stay
    distinct. A shared caption never merges two images.

    If `semantic` is set, the rows that are not rejected so far are taken from the best rank to the
    worst: a row stays unless its embedding is near that of a row that stays. It takes over no
    captions, since they were said of another picture.
    """

    name: ClassVar[str] = "dedup"
    version: ClassVar[int] = 3
    config_type: ClassVar[type[StageConfig]] = DedupConfig
    reads: ClassVar[tuple[str, ...]] = (
        "url",
        "caption",
        "image",
        "sha256",
        "original_width",
        "original_height",
    )
    uses: ClassVar[tuple[str, ...]] = ("text", *PRINTS)
    spares: ClassVar[Mapping[str, tuple[str, ...]]] = {"image": tuple(PRINTS)}
    writes = WRITES
    summary: ClassVar[pa.Schema] = pa.schema(_SUMMARY)
    later: ClassVar[tuple[str, ...]] = tuple(SEMANTIC)
    reasons: ClassVar[Mapping[str, str]] = {
        "in_evaluation_set": "The image is in an evaluation set, or is a near copy of one that is.",
        "too_many_captions": "The image has more captions than max_captions_per_image.",
        "shared_placeholder": "The image is a placeholder: it appears under many unrelated URLs.",
        "boilerplate_caption": "The caption has more images than max_images_per_caption.",
        "duplicate_url": "Another row with the same URL and the same file is kept.",
        "duplicate_image": "Another row with the same file is kept.",
        "near_duplicate_image": "Another row with nearly the same image is kept.",
        "semantic_copy": "A row is kept whose embedding is nearly the same, by semantic.",
    }
    help: ClassVar[str] = "find copies, near copies and boilerplate captions"
    examples: ClassVar[tuple[str, ...]] = ("capfilt dedup manifest.yaml --set dedup.max_hamming=4",)
    paper: ClassVar[str] = "ALIGN (arXiv:2102.05918), COYO"
    thresholds: ClassVar[Mapping[str, tuple[str, str]]] = {
        "boilerplate_caption": ("max_images_per_caption", "caption_images"),
        "too_many_captions": ("max_captions_per_image", "image_captions"),
        "near_duplicate_image": ("max_hamming", "image_distance"),
        "in_evaluation_set": ("max_hamming", "evaluation_distance"),
        "semantic_copy": ("semantic", "semantic_cosine"),
    }
    histograms: ClassVar[tuple[str, ...]] = ("semantic_cosine",)

    def annotate(self, rows: pa.Table) -> pa.Table:
        """Compute the fingerprints of rows; see `fingerprints.WRITES`."""
        prints: dict[str, Any] = (
            {name: rows[name] for name in PRINTS}
            if set(PRINTS) <= set(rows.column_names)
            else ImagePrints.of(image.as_py() for image in rows["image"]).columns()
        )
        sides = [pc.cast(rows[f"original_{side}"], pa.int64()) for side in ("width", "height")]
        urls: list[Any] = rows["url"].to_pylist()
        texts: list[str | None] = web_captions(rows).to_pylist()
        keys = [None if text is None else caption_key(text) for text in texts]
        present = [key for key in keys if key is not None]
        signatures = iter(minhash([shingles(key) for key in present], NUM_PERM).astype("<u4"))
        columns = [
            pa.array([_digest(url) for url in urls], pa.binary(16)),
            pa.array(
                [
                    checksum and bytes.fromhex(checksum[:32])
                    for checksum in rows["sha256"].to_pylist()
                ],
                pa.binary(16),
            ),
            pc.multiply(*sides),
            *(prints[name] for name in PRINTS),
            pa.array(texts, pa.string()),
            pa.array([key if key is None else _digest(key) for key in keys], pa.binary(16)),
            pa.array([key if key is None else key.count(" ") + 1 for key in keys], pa.int32()),
            pa.array(
                [None if key is None else next(signatures).tobytes() for key in keys],
                pa.binary(4 * NUM_PERM),
            ),
        ]
        return pa.table(columns, schema=self.writes)

    def ties(self, rows: pa.Table) -> pa.Table:
        """Return keys of the URL, file, caption, hash and caption bands of each row."""
        fingerprints = Fingerprints.gather(
            iter([rows]), bands=self.config.bands, rows=self.config.rows
        )
        has_caption, has_hash = fingerprints.caption.any(axis=1), self._has_hash(fingerprints)
        shared = [
            *(
                (digests[:, 0], digests.any(axis=1))
                for digests in (fingerprints.url, fingerprints.sha256, fingerprints.caption)
            ),
            (fingerprints.phash, has_hash),
            *((band.read(), has_caption) for band in fingerprints.bands),
        ]
        kinds = splitmix(np.arange(len(shared), dtype=np.uint64))
        keys = [
            splitmix(values[has] ^ kind) for (values, has), kind in zip(shared, kinds, strict=True)
        ]
        positions = [np.flatnonzero(has) for _, has in shared]
        return pa.table({"row": np.concatenate(positions), "key": np.concatenate(keys)})

    def points(self, rows: pa.Table) -> pa.Table:
        """Return the perceptual hash of each image with enough contrast."""
        columns: list[Any] = [rows["image_contrast"], rows["image_phash"]]
        contrast, hashes = map(np.asarray, map(pc.fill_null, columns, (-1.0, 0)))
        has_hash = contrast >= self.config.min_contrast
        return pa.table({"row": np.flatnonzero(has_hash), "hash": hashes.view(np.uint64)[has_hash]})

    def near(self, hashes: UInt64s, part: int, parts: int) -> Iterator[tuple[Int64s, Int64s]]:
        """Yield pairs of hashes within `max_hamming` bits; colours are not compared."""
        return near_pairs(hashes, self.config.max_hamming, part, parts)

    def _has_hash(self, rows: Fingerprints) -> Bools:
        return rows.contrast >= self.config.min_contrast

    def summarize(self, annotations: Iterator[pa.Table]) -> pa.Table:
        """Cluster the images and captions of the pool.

        Returns:
            uid; image_cluster, the uid of the image's representative; image_distance, the Hamming
            distance to the representative's hash; image_duplicate, the reason why the row is its
            duplicate; image_captions and image_urls, the number of distinct captions and URLs of
            the image; image_placeholder, whether the image is a placeholder; further_captions,
            usable captions of the representative's copies, best rank first.

            image_distance and image_duplicate are null for the representative; further_captions is
            null for all other rows.

            caption_cluster, the uid of a row with the caption at the centre of the star, and
            caption_images, the number of distinct images of the star; null without a caption.

            evaluation_set, evaluation_image and evaluation_distance, the nearest image of an
            evaluation set and the Hamming distance to its hash; null if no such image is near.

            The columns of `semantic.SUMMARY`; null if no embeddings are compared.
        """
        gathered = Gathered(*self.config.pooled)
        table = self.clusters(gathered.through(annotations))
        schema = pa.schema([pa.field("uid", pa.string()), *self.summary])
        if self.min_cosine is None:
            return table.select(schema.names)
        uid = from_hex(table["uid"].combine_chunks())
        order = in_rank(table, uid)
        is_compared = np.asarray(table["compared"]) & gathered.has("image_embedding")
        compared = order[is_compared[order]]
        embeddings = gathered.of("image_embedding", compared)
        columns = find(uid, compared, embeddings, self.min_cosine)
        others: dict[str, Any] = {n: table[n] for n in schema.names if n not in columns}
        return pa.table({**others, **columns}, schema)

    @property
    def min_cosine(self) -> float | None:
        """See `ClusteredStage.min_cosine`."""
        return self.config.semantic

    def clusters(self, annotations: Iterator[pa.Table]) -> pa.Table:
        """See `ClusteredStage.clusters`."""
        rows = Fingerprints.gather(annotations, bands=self.config.bands, rows=self.config.rows)
        caption = codes(rows.caption)
        captioned = caption >= 0
        order = _ranking(rows, captioned, np.zeros(len(rows), np.int32))
        same = components(len(rows), links(rows.sha256))
        image = image_centres(rows, order, first(same, order)[same], self.config)
        star, spread = caption_stars(rows, caption, order, image, self.config)
        url = codes(rows.url)
        is_shared, is_volatile = placeholders(url, caption, same, image, self.config)

        # The representative has a usable caption if any row of the cluster does.
        is_usable = captioned & (spread <= self.config.max_images_per_caption) & ~is_volatile
        order = _ranking(rows, is_usable, spread)
        cluster = np.unique(image, return_inverse=True)[1]
        kept = first(cluster, order)[cluster]
        is_kept = kept == np.arange(len(rows))
        del image, cluster

        duplicate_kind = np.full(len(rows), DUPLICATES.index("near_duplicate_image"), np.int8)
        duplicate_kind[same == same[kept]] = DUPLICATES.index("duplicate_image")
        duplicate_kind[(same == same[kept]) & (url == url[kept])] = DUPLICATES.index(
            "duplicate_url"
        )
        captions = distinct(kept[captioned], caption[captioned], len(rows))[kept]
        urls = distinct(kept, url, len(rows))[kept]
        is_undecodable = rows.contrast < 0
        distance = hamming(rows.phash, rows.phash[kept]).astype(np.int32)
        duplicate: Any = pa.array(duplicate_kind, mask=is_kept)
        columns: dict[str, Any] = {
            "uid": to_hex(rows.uid),
            "image_cluster": to_hex(rows.uid[kept]),
            "image_distance": pa.array(
                distance, mask=is_kept | is_undecodable | is_undecodable[kept]
            ),
            "image_duplicate": pa.array(DUPLICATES).take(duplicate),
            "image_captions": pa.array(captions.astype(np.int32)),
            "image_urls": pa.array(urls.astype(np.int32)),
            "image_placeholder": pa.array(is_shared),
            "further_captions": further_captions(
                rows,
                caption,
                np.where(is_usable & ~is_shared & copies(rows, same, kept, self.config), kept, -1),
                order,
                is_kept,
                self.config.max_further_captions,
            ),
            "caption_cluster": to_hex(np.where(captioned[:, None], rows.uid[star], 0)),
            "caption_images": pa.array(spread, mask=~captioned),
            **evaluation_columns(rows, kept, self.config),
        }
        is_compared = is_kept & (spread <= self.config.max_images_per_caption) & ~is_shared
        is_compared &= captions <= self.config.max_captions_per_image
        is_compared &= ~_numpy(columns["evaluation_set"].is_valid())
        columns |= {
            "compared": pa.array(is_compared),
            "usable": pa.array(is_usable),
            "area": pa.array(rows.area),
            "words": pa.array(rows.words),
        }
        fields: dict[str, Any] = {"uid": pa.string(), **_SUMMARY, **STANDING}
        columns |= {name: pa.nulls(len(rows), fields[name]) for name in SEMANTIC}
        return pa.table(columns, pa.schema(fields))

    def judge(self, annotations: pa.Table) -> pa.StringArray:
        """Reject rows by the reasons in `reasons`; one row of each image stays."""
        captions = _numpy(annotations["image_captions"])
        images = _numpy(annotations["caption_images"].fill_null(pa.scalar(0, pa.int32())))
        verdicts: Any = annotations["image_duplicate"].combine_chunks()
        semantic: Any = annotations["semantic_copy"].combine_chunks().fill_null(False)
        verdicts = pc.if_else(semantic, "semantic_copy", verdicts)
        for reason, applies in (
            ("boilerplate_caption", images > self.config.max_images_per_caption),
            ("shared_placeholder", _numpy(annotations["image_placeholder"])),
            ("too_many_captions", captions > self.config.max_captions_per_image),
            ("in_evaluation_set", _numpy(annotations["evaluation_set"].is_valid())),
        ):
            verdicts = pc.if_else(pa.array(applies), reason, verdicts)
        result: pa.StringArray = verdicts
        return result

    def cutoffs(self, annotations: pa.Table) -> Iterator[Cutoff]:
        """See `Stage.cutoffs`; the representative of an image has no distance to another row."""
        for cutoff in super().cutoffs(annotations):
            if cutoff.reason == "near_duplicate_image":
                cutoff.values[_numpy(annotations["image_duplicate"].is_null())] = np.nan
            yield cutoff


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _ranking(rows: Fingerprints, is_usable: Bools, spread: npt.NDArray[np.int32]) -> Int64s:
    """Rank rows, the best first; the ranking does not depend on their order.

    Args:
        rows: n rows.
        is_usable: (n,) whether the caption of each row is usable.
        spread: (n,) the number of images with each row's caption.
    """
    high, low = rows.uid.T
    return np.lexsort((low, high, -rows.words, spread, -rows.area, ~is_usable))


def _numpy(column: Any) -> npt.NDArray[Any]:
    """Convert a column without nulls to an array."""
    return np.asarray(column)
