"""Which rows lie nearest the threshold that a reason to reject stands for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stages.base import Stage
from stages.clean import CleanStage
from stages.dedup import DedupStage
from stages.filter import FilterStage
from stages.select import SelectStage

__all__ = ["Border", "thresholds"]

Floats = npt.NDArray[np.float64]

CLEAN: Mapping[str, tuple[str, ...]] = {
    "image_too_small": ("min_side", "image_width", "image_height"),
    "aspect_ratio": ("max_aspect", "image_aspect"),
    "too_few_bytes": ("min_bytes", "image_bytes"),
    "single_colour": ("max_single_colour", "image_single_colour"),
    "low_entropy": ("min_entropy", "image_entropy"),
    "too_few_words": ("min_words", "{counts}_words"),
    "too_many_words": ("max_words", "{counts}_words"),
    "too_few_characters": ("min_characters", "{counts}_characters"),
    "too_many_characters": ("max_characters", "{counts}_characters"),
    "repetitive": ("max_repeat_share", "text_repeat_share"),
    "few_distinct_words": ("min_unique_share", "text_unique_share"),
    "low_quality": ("min_letters", "text_letters"),
    "too_many_digits": ("max_digits", "text_digits"),
    "too_many_symbols": ("max_symbols", "text_symbols"),
    "too_many_capitals": ("max_capitals", "text_capitals"),
    "not_english": ("min_language_score", "language_score"),
}
DEDUP: Mapping[str, tuple[str, str]] = {
    "boilerplate_caption": ("max_images_per_caption", "caption_images"),
    "too_many_captions": ("max_captions_per_image", "image_captions"),
    "near_duplicate_image": ("max_hamming", "image_distance"),
    "in_evaluation_set": ("max_hamming", "evaluation_distance"),
}
FILTER: Mapping[str, tuple[str, str]] = {
    "unmatched": ("min_itm", "itm"),
    "dissimilar": ("min_clip", "clip"),
}


class Border(NamedTuple):
    """A threshold and what it is held against.

    Attributes:
        reason: The reason to reject that it decides.
        name: The field of the config.
        limit: Its value; None where the pool decides it, as of the score of a top fraction.
        values: (n,) the measure of each row, NaN where there is none.
    """

    reason: str
    name: str
    limit: float | None
    values: Floats

    def nearness(self, is_rejected: bool) -> Floats:
        """(n,) how far each row of that fate lies from the threshold."""
        if self.limit is not None:
            return np.abs(self.values - self.limit)
        return -self.values if is_rejected else self.values


def thresholds(stage: Stage[Any], table: pa.Table) -> Iterator[Border]:
    """The thresholds of a stage that a number of each row is held against.

    Args:
        stage: The stage.
        table: The columns it wrote for n rows.
    """
    if isinstance(stage, CleanStage):
        limits = stage.config.limits
        for reason, (name, *columns) in CLEAN.items():
            if limits[name] is not False:
                columns = [column.format(counts=limits["counts"]) for column in columns]
                sides = [_floats(table[column]) for column in columns]
                yield Border(reason, name, float(limits[name]), np.fmin.reduce(sides))
    elif isinstance(stage, DedupStage):
        for reason, (name, column) in DEDUP.items():
            limit = float(getattr(stage.config, name))
            values = _floats(table[column])
            if reason == "near_duplicate_image":  # an image is at distance 0 from itself
                values[_floats(table["image_duplicate"].is_valid()) == 0] = np.nan
            yield Border(reason, name, limit, values)
    elif isinstance(stage, FilterStage):
        for reason, (name, score) in FILTER.items():
            least = getattr(stage.config, name)
            columns = [c for c in table.column_names if c.startswith(f"{score}_")]
            if least is not None and reason in stage.reasons and columns:
                best = np.fmax.reduce([_best(table[column]) for column in columns])
                yield Border(reason, name, float(least), best)
    elif isinstance(stage, SelectStage) and stage.config.method == "top_fraction":
        yield Border("not_selected", "score", None, _floats(table["score"]))


def _best(values: Any) -> Floats:
    """The largest number of each row of a column of numbers or of lists of them."""
    if pa.types.is_boolean(values.type):
        return np.full(len(values), np.nan)
    if not pa.types.is_list(values.type):
        return _floats(values)
    whole = values.combine_chunks()
    found = np.full(len(whole), np.nan)
    rows = pc.list_parent_indices(whole).to_numpy().astype(np.int64)
    np.fmax.at(found, rows, _floats(whole.flatten()))
    return found


def _floats(values: Any) -> Floats:
    """A column as float64, null as NaN."""
    found: Floats = np.array(
        values.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False)
    )
    return found
