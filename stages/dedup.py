"""Dedup: rejects duplicate images, images of evaluation sets, and captions of many images."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from models.image.copies import are_copies
from models.image.hamming import Near, image_centres, near_between, near_pairs
from models.image.perceptual_hash import SIDE, colour_distance, hamming
from models.random import splitmix
from models.text.captions import caption_key
from models.text.minhash import caption_centres, minhash, shingles
from stages import dedup_digests
from stages.base import ClusteredStage, Cutoff, InParts, StageConfig, threshold
from stages.dedup_eval_sets import EvaluationImages, content
from stages.dedup_fingerprints import NUM_PERM, PRINTS, WRITES, Fingerprints, ImagePrints
from stages.dedup_semantic import SUMMARY as SEMANTIC
from stages.dedup_semantic import semantic_columns
from stages.embed import Gathered
from stages.schema import web_captions

__all__ = ["DedupConfig", "DedupStage"]

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]
Prints = Fingerprints | ImagePrints

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
    "evaluation_set": pa.string(),
    "evaluation_image": pa.string(),
    "evaluation_distance": pa.int32(),
    **SEMANTIC,
}


@dataclass(frozen=True, kw_only=True)
class DedupConfig(StageConfig):
    """The thresholds for duplicate images and for boilerplate captions.

    Attributes:
        max_hamming: Maximum number of the 64 bits in which the perceptual hashes of two copies
            differ. Resized and recompressed photographs differ in 0 to 4 bits, different
            photographs in 12 or more.
        max_colour_distance: Maximum difference, on a scale of 255, between the mean colours of two
            copies in any channel of any cell of an 8 x 8 grid. Perceptual hashes ignore colour.
        tolerance: Factor on the cell-by-cell difference that is allowed between the 32 x 32
            thumbnails of two copies (`models.image.copies`); docs/dedup.md has measurements. Hashes
            alone would merge different prints, charts and pages.
        min_contrast: Minimum standard deviation of brightness, on a scale of 255. Below it the hash
            is noise, and only equal files count as one image.
        max_images_per_caption: Maximum number of distinct images of one caption; a caption with
            more is boilerplate of a website (ALIGN, arXiv:2102.05918).
        max_captions_per_image: Maximum number of distinct captions of one image (ALIGN).
        max_urls_per_image: A file with more URLs than this and more distinct captions than this is
            a placeholder.
        max_further_captions: Maximum number of captions that an image takes over from its copies.
        against: Evaluation sets: folders of images, or Parquet files with an `image` column. An
            image that is a near copy of one in these sets is rejected.
        semantic: Minimum cosine of the embeddings of two images for the worse of them to be
            rejected as a semantic copy, such as another view of one scene (SemDeDup,
            arXiv:2303.09540, whose epsilon is 1 minus this); unset compares no embeddings. It
            needs the stage embed before.
            A threshold belongs to its model; docs/embeddings.md says how to choose it.
        min_jaccard: Minimum share of common word trigrams for two captions to count as one.
            Captions of fewer than five words must be equal except for case and punctuation.
            Numbers are ignored in captions with at least six other words.
        min_template: Minimum number of words that two captions must share before and after one run
            of different words to count as one caption, such as a template with a name in it. The
            run may be up to a quarter of the longer caption. 0 turns this off.
        bands: Number of bands of the LSH index of captions. 21 bands of 6 values find 99.8% of the
            pairs with a similarity of 0.8, and 95% of those with 0.71 (20 words, one of them
            different).
        rows: MinHash values per band; bands x rows must be at most 128.
    """

    max_hamming: int = threshold(6)
    max_colour_distance: int = threshold(32)
    tolerance: float = threshold(1.0)
    min_contrast: float = threshold(4.0)
    max_images_per_caption: int = threshold(10)
    max_captions_per_image: int = threshold(1000)
    max_urls_per_image: int = threshold(10)
    max_further_captions: int = threshold(4)
    against: tuple[str, ...] = threshold(())
    semantic: float | None = threshold(None)
    min_jaccard: float = threshold(0.9)
    min_template: int = threshold(15)
    bands: int = threshold(21)
    rows: int = threshold(6)

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_hamming", 0, 16),
            ("max_colour_distance", 0, 255),
            ("tolerance", 0, 100),
            ("min_contrast", 0, 128),
            ("max_images_per_caption", 1, 2**31 - 1),
            ("max_captions_per_image", 1, 2**31 - 1),
            ("max_urls_per_image", 1, 2**31 - 1),
            ("max_further_captions", 0, 1000),
            ("semantic", -1, 1),
            ("min_jaccard", 0, 1),
            ("min_template", 0, 2**31 - 1),
            ("bands", 2, NUM_PERM),
            ("rows", 1, NUM_PERM),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"dedup.{name} must be from {low} to {high}, got {value}")
        if self.bands * self.rows > NUM_PERM:
            raise ValueError(
                f"dedup.bands x dedup.rows must be at most {NUM_PERM}, the length of a signature, "
                f"got {self.bands} x {self.rows}; lower one of them"
            )

    @property
    def pooled(self) -> tuple[str, ...]:
        """The embeddings, if they are compared."""
        return () if self.semantic is None else ("image_embedding",)

    def check(self, columns: pa.Schema) -> None:
        """Check that there are embeddings if they are compared."""
        if self.semantic is not None and "image_embedding" not in columns.names:
            raise ValueError("dedup.semantic needs the stage embed before dedup")

    def settings(self) -> dict[str, Any]:
        """Return every field that is set, and a digest of the contents of each evaluation set.

        Raises:
            ValueError: A set does not exist.
        """
        fields = {**super().settings(), "against_content": list(self.contents)}
        if self.semantic is None:  # as before there was this field
            del fields["semantic"]
        return fields

    @functools.cached_property
    def contents(self) -> tuple[str, ...]:
        """A digest of each evaluation set; cached, since the plan needs the settings often."""
        return tuple(content(path) for path in self.against)


class DedupStage(ClusteredStage[DedupConfig]):
    """Rejects duplicate images, images of evaluation sets, and captions shared by many images.

    Two rows show the same image if their downloaded files are equal, or if their perceptual hashes
    and colours are near and their thumbnails agree cell by cell (`copies.are_copies`). Equal URLs
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
        """Compute the fingerprints of rows; see `dedup_fingerprints.WRITES`."""
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

    @property
    def in_parts(self) -> InParts | None:
        """In parts of whole clusters; in one process if embeddings are compared."""
        return super().in_parts if self.config.semantic is None else None

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

            The columns of `dedup_semantic.SUMMARY`; null if no embeddings are compared.
        """
        gathered = Gathered(*self.config.pooled)
        annotations = gathered.through(annotations)
        rows = Fingerprints.gather(annotations, bands=self.config.bands, rows=self.config.rows)
        caption = dedup_digests.codes(rows.caption)
        captioned = caption >= 0
        order = _ranking(rows, captioned, np.zeros(len(rows), np.int32))
        same = _components(len(rows), dedup_digests.links(rows.sha256))
        image = self._image_centres(rows, order, _first(same, order)[same])
        star, spread = self._captions(rows, caption, order, image)
        url = dedup_digests.codes(rows.url)
        is_shared, is_volatile = self._urls(url, caption, same, image)

        # The representative has a usable caption if any row of the cluster does.
        is_usable = captioned & (spread <= self.config.max_images_per_caption) & ~is_volatile
        order = _ranking(rows, is_usable, spread)
        cluster = np.unique(image, return_inverse=True)[1]
        kept = _first(cluster, order)[cluster]
        is_kept = kept == np.arange(len(rows))
        del image, cluster

        duplicate_kind = np.full(len(rows), DUPLICATES.index("near_duplicate_image"), np.int8)
        duplicate_kind[same == same[kept]] = DUPLICATES.index("duplicate_image")
        duplicate_kind[(same == same[kept]) & (url == url[kept])] = DUPLICATES.index(
            "duplicate_url"
        )
        captions = _distinct(kept[captioned], caption[captioned], len(rows))[kept]
        urls = _distinct(kept, url, len(rows))[kept]
        is_undecodable = rows.contrast < 0
        distance = hamming(rows.phash, rows.phash[kept]).astype(np.int32)
        duplicate: Any = pa.array(duplicate_kind, mask=is_kept)
        columns: dict[str, Any] = {
            "uid": dedup_digests.to_hex(rows.uid),
            "image_cluster": dedup_digests.to_hex(rows.uid[kept]),
            "image_distance": pa.array(
                distance, mask=is_kept | is_undecodable | is_undecodable[kept]
            ),
            "image_duplicate": pa.array(DUPLICATES).take(duplicate),
            "image_captions": pa.array(captions.astype(np.int32)),
            "image_urls": pa.array(urls.astype(np.int32)),
            "image_placeholder": pa.array(is_shared),
            "further_captions": self._further(
                rows,
                caption,
                np.where(is_usable & ~is_shared & self._is_copy(rows, same, kept), kept, -1),
                order,
                is_kept,
            ),
            "caption_cluster": dedup_digests.to_hex(
                np.where(captioned[:, None], rows.uid[star], 0)
            ),
            "caption_images": pa.array(spread, mask=~captioned),
            **self._evaluation(rows, kept),
        }
        is_compared = is_kept & (spread <= self.config.max_images_per_caption) & ~is_shared
        is_compared &= captions <= self.config.max_captions_per_image
        is_compared &= ~_numpy(columns["evaluation_set"].is_valid())
        columns |= self._semantic(rows, gathered, order[is_compared[order]])
        return pa.table(columns, pa.schema([pa.field("uid", pa.string()), *self.summary]))

    def _semantic(self, rows: Fingerprints, gathered: Gathered, compared: Int64s) -> dict[str, Any]:
        """Return the columns on semantic copies.

        Args:
            rows: n rows.
            gathered: Their embeddings.
            compared: The rows that no other rule rejects, best rank first.
        """
        if self.config.semantic is None:
            return {name: pa.nulls(len(rows), self.summary.field(name).type) for name in SEMANTIC}
        compared = compared[gathered.has("image_embedding")[compared]]
        embeddings = gathered.of("image_embedding", compared)
        return semantic_columns(rows.uid, compared, embeddings, self.config.semantic)

    def _image_centres(self, rows: Fingerprints, order: Int64s, head: Int64s) -> Int64s:
        """Return the centre of each row's star of near images.

        Args:
            rows: n rows.
            order: (n,) the rows, best rank first.
            head: (n,) the best row with the same file as each row.
        """
        is_candidate = self._has_hash(rows)
        is_candidate &= head == np.arange(len(rows))
        candidates = order[is_candidate[order]]
        centre = np.arange(len(rows))
        centre[candidates] = candidates[
            image_centres(
                rows.phash[candidates],
                self._alike((rows, candidates), (rows, candidates)),
                max_hamming=self.config.max_hamming,
                lightness=_lightness(rows.luma, candidates),
            )
        ]
        return centre[head]

    def _alike(self, ours: tuple[Prints, Int64s], theirs: tuple[Prints, Int64s]) -> Near:
        """Return a function that compares the colours and thumbnails of pairs of images.

        It takes positions in the row lists of `ours` and `theirs`.
        """

        def near(a: Int64s, b: Int64s) -> Bools:
            is_near = np.zeros(len(a), bool)
            for start in range(0, len(a), 2**14):
                positions = np.arange(start, min(start + 2**14, len(a)))
                i, j = ours[1][a[positions]], theirs[1][b[positions]]
                distance = colour_distance(ours[0].colours[i], theirs[0].colours[j])
                has_colours = distance <= self.config.max_colour_distance
                positions, i, j = positions[has_colours], i[has_colours], j[has_colours]
                is_near[positions] = are_copies(
                    ours[0].luma[i].reshape(-1, SIDE, SIDE),
                    theirs[0].luma[j].reshape(-1, SIDE, SIDE),
                    self.config.tolerance,
                )
            return is_near

        return near

    def _is_copy(self, rows: Fingerprints, same: Int64s, kept: Int64s) -> Bools:
        """Whether each row is a copy of its representative, and not only of the star's centre."""
        is_copy: Bools = same == same[kept]
        rest = np.flatnonzero(~is_copy)
        everything = np.arange(len(rows))
        is_copy[rest] = self._alike((rows, everything), (rows, everything))(kept[rest], rest)
        return is_copy

    def _urls(
        self, url: Int64s, caption: Int64s, same: Int64s, image: Int64s
    ) -> tuple[Bools, Bools]:
        """Return which rows show a placeholder, and which have a URL that gave several images.

        Args:
            url: (n,) the number of each row's URL.
            caption: (n,) the number of each row's caption, -1 without one.
            same: (n,) the number of each row's downloaded file.
            image: (n,) the row at the centre of each row's image.
        """
        n, captioned = len(url), caption >= 0
        is_volatile = (_distinct(url, image, n) > 1)[url]
        changing = _distinct(image[is_volatile], url[is_volatile], n)[image]
        urls = _distinct(same, url, n)
        captions = _distinct(same[captioned], caption[captioned], n)
        is_many = (np.minimum(urls, captions) > self.config.max_urls_per_image)[same]
        holds_many = np.zeros(n, bool)
        holds_many[image[is_many]] = True
        return holds_many[image] | (changing > 1), is_volatile

    def _captions(
        self, rows: Fingerprints, caption: Int64s, order: Int64s, image: Int64s
    ) -> tuple[Int64s, npt.NDArray[np.int32]]:
        """Cluster captions into stars.

        Args:
            rows: n rows.
            caption: (n,) the number of each row's caption, -1 without one.
            order: (n,) the rows, best rank first.
            image: (n,) the row at the centre of each row's image.

        Returns:
            (n,) a row with the caption at the centre of each row's star, -1 without a caption; and
            (n,) the number of distinct images of the star, 0 without a caption.
        """
        captioned = np.flatnonzero(caption >= 0)
        row_of = _first(caption, order[caption[order] >= 0])
        images = _distinct(caption[captioned], image[captioned], len(row_of))
        ranked = np.argsort(-images, kind="stable")
        rows_ranked = row_of[ranked]
        centres = caption_centres(
            (band.read()[rows_ranked] for band in rows.bands),
            lambda position: caption_key(rows.text(rows_ranked[position])),
            len(ranked),
            min_jaccard=self.config.min_jaccard,
            min_template=self.config.min_template or None,
        )
        star_of = np.empty(len(ranked), np.int64)
        star_of[ranked] = ranked[centres]
        own = star_of[caption[captioned]]
        centre, spread = np.full(len(rows), -1), np.zeros(len(rows), np.int32)
        centre[captioned] = row_of[own]
        spread[captioned] = _distinct(own, image[captioned], len(row_of))[own]
        return centre, spread

    def _further(
        self, rows: Fingerprints, caption: Int64s, usable: Int64s, order: Int64s, is_kept: Bools
    ) -> pa.Array[Any]:
        """Return the further captions of each representative as lists of strings.

        Args:
            rows: n rows.
            caption: (n,) the number of each row's caption.
            usable: (n,) the representative of each row with a usable caption, -1 for the others.
            order: (n,) the rows, best rank first.
            is_kept: (n,) whether each row is a representative.
        """
        further = order[(usable[order] >= 0) & ~is_kept[order]]
        further = further[caption[further] != caption[usable[further]]]
        further = further[np.argsort(usable[further], kind="stable")]
        pairs = usable[further] * (int(caption.max(initial=0)) + 1) + caption[further]
        further = further[np.sort(np.unique(pairs, return_index=True)[1])]
        starts = np.flatnonzero(np.diff(usable[further], prepend=-1))
        position = np.arange(len(further)) - np.repeat(starts, np.diff(starts, append=len(further)))
        further = further[position < self.config.max_further_captions]
        ends = np.cumsum(np.bincount(usable[further], minlength=len(rows)))
        offsets: Any = np.append(0, ends).astype(np.int32)
        texts = pa.array([rows.text(row) for row in further.tolist()], pa.string())
        lists: pa.Array[Any] = pa.ListArray.from_arrays(
            pa.array(offsets), texts, mask=pa.array(~is_kept)
        )
        return lists

    def _evaluation(self, rows: Fingerprints, kept: Int64s) -> dict[str, pa.Array[Any]]:
        """Return the columns on the nearest image of an evaluation set.

        Args:
            rows: n rows.
            kept: (n,) the representative of each row.
        """
        if not self.config.against:
            return {
                name: pa.nulls(len(rows), self.summary.field(name).type)
                for name in self.summary.names
                if name.startswith("evaluation_")
            }
        images = _evaluation_images(self.config.against, self.config.contents)
        prints = images.prints
        matches = [dedup_digests.matches(rows.sha256, images.sha256)]
        ours = np.flatnonzero(rows.contrast >= self.config.min_contrast)
        theirs = np.flatnonzero(prints.contrast >= self.config.min_contrast)
        alike = self._alike((rows, ours), (prints, theirs))
        for i, j in near_between(rows.phash[ours], prints.phash[theirs], self.config.max_hamming):
            is_near = alike(i, j)
            matches.append((ours[i[is_near]], theirs[j[is_near]]))
        i, j = (np.concatenate(parts) for parts in zip(*matches, strict=True))
        is_undecodable, theirs_undecodable = rows.contrast < 0, prints.contrast < 0
        ranked = np.lexsort((j, hamming(rows.phash[i], prints.phash[j])))[::-1]
        i, j = i[ranked], j[ranked]
        nearest = np.full(len(rows), -1)
        nearest[kept[i]] = j  # numpy keeps the last assignment, which is the nearest image
        nearest = nearest[kept]
        nearest[i] = j
        is_clear = nearest < 0
        distance = hamming(rows.phash, prints.phash[nearest]).astype(np.int32)
        which: Any = pa.array(nearest, mask=is_clear)
        return {
            "evaluation_set": pa.array(images.sets).take(which),
            "evaluation_image": pa.array(images.names).take(which),
            "evaluation_distance": pa.array(
                distance, mask=is_clear | is_undecodable | theirs_undecodable[nearest]
            ),
        }

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


def _components(n: int, *links: tuple[Int64s, Int64s]) -> Int64s:
    """Number the connected components of n rows; returns the number of each row's component."""
    a, b = (np.concatenate(ends) for ends in zip(*links, strict=True))
    graph = coo_matrix((np.ones(len(a), np.int8), (a, b)), shape=(n, n))
    labels: Int64s = connected_components(graph, directed=False)[1].astype(np.int64)
    return labels


def _first(labels: Int64s, order: Int64s) -> Int64s:
    """Return for each label 0, 1, ... the first row in `order` that has it."""
    first = np.zeros(int(labels.max(initial=-1)) + 1, np.int64)
    first[labels[order[::-1]]] = order[::-1]
    return first


def _distinct(groups: Int64s, values: Int64s, num_groups: int) -> Int64s:
    """Count the distinct values of each of the groups 0, 1, ..."""
    width = int(values.max(initial=0)) + 1
    pairs = np.sort(groups * width + values)
    is_first = np.diff(pairs, prepend=-1) > 0
    return np.bincount(pairs[is_first] // width, minlength=num_groups)


def _lightness(luma: npt.NDArray[np.uint8], rows: Int64s) -> Int64s:
    """Return the total brightness of the thumbnails of `rows`, each below 2^18."""
    parts = (
        luma[rows[i : i + 2**14]].sum(axis=1, dtype=np.int64) for i in range(0, len(rows), 2**14)
    )
    return np.concatenate([np.zeros(0, np.int64), *parts])


def _numpy(column: Any) -> npt.NDArray[Any]:
    """Convert a column without nulls to an array."""
    return np.asarray(column)


@functools.lru_cache(maxsize=1)
def _evaluation_images(against: tuple[str, ...], contents: tuple[str, ...]) -> EvaluationImages:
    """Read evaluation sets; cached for all parts of a summary."""
    return EvaluationImages.read(against)
