"""The images of dedup: which rows show the same one, and which show a placeholder."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.image.copies import are_copies
from models.image.hamming import Near
from models.image.hamming import image_centres as star_centres
from models.image.perceptual_hash import SIDE, colour_distance
from stages.dedup.config import DedupConfig
from stages.dedup.fingerprints import Fingerprints
from stages.dedup.groups import Bools, Int64s, distinct
from stages.image_prints import ImagePrints

__all__ = ["alike", "copies", "image_centres", "placeholders"]

Prints = Fingerprints | ImagePrints


def image_centres(rows: Fingerprints, order: Int64s, head: Int64s, config: DedupConfig) -> Int64s:
    """Return the centre of each row's star of near images.

    Args:
        rows: n rows.
        order: (n,) the rows, best rank first.
        head: (n,) the best row with the same file as each row.
        config: The thresholds of a copy.
    """
    is_candidate = rows.contrast >= config.min_contrast
    is_candidate &= head == np.arange(len(rows))
    candidates = order[is_candidate[order]]
    centre = np.arange(len(rows))
    centre[candidates] = candidates[
        star_centres(
            rows.phash[candidates],
            alike((rows, candidates), (rows, candidates), config),
            max_hamming=config.max_hamming,
            lightness=_lightness(rows.luma, candidates),
        )
    ]
    return centre[head]


def alike(ours: tuple[Prints, Int64s], theirs: tuple[Prints, Int64s], config: DedupConfig) -> Near:
    """Return a function that compares the colours and thumbnails of pairs of images.

    It takes positions in the row lists of `ours` and `theirs`.
    """

    def near(a: Int64s, b: Int64s) -> Bools:
        is_near = np.zeros(len(a), bool)
        for start in range(0, len(a), 2**14):
            positions = np.arange(start, min(start + 2**14, len(a)))
            i, j = ours[1][a[positions]], theirs[1][b[positions]]
            distance = colour_distance(ours[0].colours[i], theirs[0].colours[j])
            has_colours = distance <= config.max_colour_distance
            positions, i, j = positions[has_colours], i[has_colours], j[has_colours]
            is_near[positions] = are_copies(
                ours[0].luma[i].reshape(-1, SIDE, SIDE),
                theirs[0].luma[j].reshape(-1, SIDE, SIDE),
                config.tolerance,
            )
        return is_near

    return near


def copies(rows: Fingerprints, same: Int64s, kept: Int64s, config: DedupConfig) -> Bools:
    """Whether each row is a copy of its representative, and not only of the star's centre."""
    is_copy: Bools = same == same[kept]
    rest = np.flatnonzero(~is_copy)
    everything = np.arange(len(rows))
    is_copy[rest] = alike((rows, everything), (rows, everything), config)(kept[rest], rest)
    return is_copy


def placeholders(
    url: Int64s, caption: Int64s, same: Int64s, image: Int64s, config: DedupConfig
) -> tuple[Bools, Bools]:
    """Return which rows show a placeholder, and which have a URL that gave several images.

    Args:
        url: (n,) the number of each row's URL.
        caption: (n,) the number of each row's caption, -1 without one.
        same: (n,) the number of each row's downloaded file.
        image: (n,) the row at the centre of each row's image.
        config: Its `max_urls_per_image`.
    """
    n, captioned = len(url), caption >= 0
    is_volatile = (distinct(url, image, n) > 1)[url]
    changing = distinct(image[is_volatile], url[is_volatile], n)[image]
    urls = distinct(same, url, n)
    captions = distinct(same[captioned], caption[captioned], n)
    is_many = (np.minimum(urls, captions) > config.max_urls_per_image)[same]
    holds_many = np.zeros(n, bool)
    holds_many[image[is_many]] = True
    return holds_many[image] | (changing > 1), is_volatile


def _lightness(luma: npt.NDArray[np.uint8], rows: Int64s) -> Int64s:
    """Return the total brightness of the thumbnails of `rows`, each below 2^18."""
    parts = (
        luma[rows[i : i + 2**14]].sum(axis=1, dtype=np.int64) for i in range(0, len(rows), 2**14)
    )
    return np.concatenate([np.zeros(0, np.int64), *parts])
