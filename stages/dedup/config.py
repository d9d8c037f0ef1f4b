"""The settings of dedup."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from stages.base import StageConfig, threshold
from stages.dedup.fingerprints import NUM_PERM
from stages.sources.image_sets import content

__all__ = ["DedupConfig"]


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
        return tuple(content(path, "dedup.against") for path in self.against)
